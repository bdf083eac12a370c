"""The full-precision twin of a packed model: timm's vision transformer of the same shape, fed with raw pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gsb_vit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from gsb_vit.data.preprocess import Preprocessing
    from gsb_vit.runtime.schema import Architecture

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Twin:
    """The twin's shape, its normalisation and (path) its weights; without weights they are random, seed 0.

    Speed does not depend on the weights. They matter for what int8 does to the predictions.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    prefix_tokens: int
    num_heads_out: int
    num_classes: int
    layer_norm_eps: float = 1e-6
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    weights: str | None = None
    global_pool: str = "token"
    pool_norm: str = "after"
    tokenizer_channels: tuple[int, ...] = ()

    @classmethod
    def of(cls, architecture: Architecture, preprocessing: Preprocessing, weights: str | None = None) -> Twin:
        """Return the twin of a packed model; ``weights`` names a safetensors file of timm's parameters (a teacher)."""
        return cls(
            image_size=architecture.image_size,
            patch_size=architecture.patch_size,
            embed_dim=architecture.embed_dim,
            depth=architecture.depth,
            num_heads=architecture.num_heads,
            mlp_hidden=architecture.mlp_hidden,
            prefix_tokens=architecture.prefix_tokens,
            num_heads_out=architecture.num_heads_out,
            num_classes=architecture.num_classes,
            layer_norm_eps=architecture.layer_norm_eps,
            mean=tuple(preprocessing.mean),
            std=tuple(preprocessing.std),
            weights=weights,
            global_pool=architecture.global_pool,
            pool_norm=architecture.pool_norm,
            tokenizer_channels=architecture.tokenizer_channels,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Twin:
        """Return what ``to_json`` gave away, lists as tuples again."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)


def build(twin: Twin, precision: str = "fp32") -> nn.Module:
    """Return the twin in eval mode: uint8 pixels (B, H, W, 3) → float32 logits (B, K), the mean of two heads.

    Normalisation is folded into the patch embedding, as in the packed model, so no engine pays for it:
    ``conv((x/255 − mean)/std) = conv'(x)`` with ``w' = w/(255·std)`` and ``b' = b − Σ w·mean/std``. Of a convolutional
    tokenizer the norms are folded into the convolutions, and ``w'`` meets ``x − 255·mean``, so that zeros beside the
    picture stay what they are.

    Raises:
        InputError: where the weights' names or shapes are not those of the twin.
    """
    import torch
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    class FromPixels(torch.nn.Module):
        def __init__(self, vit: torch.nn.Module, zero: torch.Tensor | None) -> None:
            super().__init__()
            self.vit = vit
            self.register_buffer("zero", zero)  # the pixel that is 0 when normalised

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.permute(0, 3, 1, 2).to(next(self.vit.parameters()).dtype)
            return self.vit(x - self.zero if isinstance(self.zero, torch.Tensor) else x).to(torch.float32)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options: dict[str, Any] = {}
        if twin.global_pool == "avg":
            options = {"global_pool": "avg", "class_token": False, "fc_norm": twin.pool_norm == "after"}
        if registers := twin.prefix_tokens - (0 if options else twin.num_heads_out):
            options["reg_tokens"] = registers
        vit = (VisionTransformerDistilled if twin.num_heads_out == 2 else VisionTransformer)(
            img_size=twin.image_size,
            patch_size=twin.patch_size,
            embed_dim=twin.embed_dim,
            depth=twin.depth,
            num_heads=twin.num_heads,
            mlp_ratio=twin.mlp_hidden / twin.embed_dim,
            num_classes=twin.num_classes,
            norm_layer=partial(torch.nn.LayerNorm, eps=twin.layer_norm_eps),
            **options,
        )
        if twin.tokenizer_channels:
            vit.patch_embed.proj = _tokenizer(twin)
    if twin.weights is not None:
        _load(vit, twin.weights)
    vit.eval()
    projection, mean, std = vit.patch_embed.proj, torch.tensor(twin.mean), torch.tensor(twin.std)
    zero = None
    with torch.no_grad():
        if twin.tokenizer_channels:
            zero = (255 * mean).view(1, 3, 1, 1)
            projection = _fold_norms(vit.patch_embed)
        else:
            projection.bias -= (projection.weight * (mean / std).view(1, 3, 1, 1)).sum((1, 2, 3))
        projection.weight /= (255 * std).view(1, 3, 1, 1)
    model: nn.Module = FromPixels(vit, zero).eval().requires_grad_(False)
    return model.to(torch.bfloat16) if precision == "bf16" else model


def _tokenizer(twin: Twin) -> nn.Module:
    """Convolutions 3 × 3 of stride 2, each with BatchNorm, ReLU between them; names as in the twin's training."""
    import torch
    from torch import nn

    class Tokenizer(nn.Module):
        def __init__(self, channels: tuple[int, ...]) -> None:
            super().__init__()
            pairs = list(pairwise((3, *channels)))
            self.convs = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False) for inputs, outputs in pairs)
            self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for outputs in channels)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                x = norm(conv(torch.relu(x) if index else x))
            return x

    return Tokenizer((*twin.tokenizer_channels, twin.embed_dim))


def _fold_norms(embed: Any) -> Any:
    """Put convolutions with their norms folded in, ReLU between them, in the tokenizer's place; return the first."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    layers: list[nn.Module] = []
    for conv, norm in zip(embed.proj.convs, embed.proj.norms, strict=True):
        layers += [*([nn.ReLU()] if layers else []), fuse_conv_bn_eval(conv, norm)]
    embed.proj = nn.Sequential(*layers)
    return layers[0]


def _load(vit: nn.Module, path: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        vit.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"weights {path} do not fit the full-precision twin: {reason}") from error
