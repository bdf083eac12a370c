"""The full-precision twin of a packed model: timm's vision transformer of the same shape, fed with raw pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
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
    ``conv((x/255 − mean)/std) = conv'(x)`` with ``w' = w/(255·std)`` and ``b' = b − Σ w·mean/std``.

    Raises:
        InputError: where the weights' names or shapes are not those of the twin.
    """
    import torch
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    class FromPixels(torch.nn.Module):
        def __init__(self, vit: torch.nn.Module) -> None:
            super().__init__()
            self.vit = vit

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = pixels.permute(0, 3, 1, 2).to(next(self.vit.parameters()).dtype)
            return self.vit(x).to(torch.float32)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = (VisionTransformerDistilled if twin.num_heads_out == 2 else VisionTransformer)(
            img_size=twin.image_size,
            patch_size=twin.patch_size,
            embed_dim=twin.embed_dim,
            depth=twin.depth,
            num_heads=twin.num_heads,
            mlp_ratio=twin.mlp_hidden / twin.embed_dim,
            num_classes=twin.num_classes,
            norm_layer=partial(torch.nn.LayerNorm, eps=twin.layer_norm_eps),
        )
    if twin.weights is not None:
        _load(vit, twin.weights)
    projection, mean, std = vit.patch_embed.proj, torch.tensor(twin.mean), torch.tensor(twin.std)
    with torch.no_grad():
        projection.bias -= (projection.weight * (mean / std).view(1, 3, 1, 1)).sum((1, 2, 3))
        projection.weight /= (255 * std).view(1, 3, 1, 1)
    model: nn.Module = FromPixels(vit).eval().requires_grad_(False)
    return model.to(torch.bfloat16) if precision == "bf16" else model


def _load(vit: nn.Module, path: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        vit.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(f"weights {path} do not fit the full-precision twin: {reason}") from error
