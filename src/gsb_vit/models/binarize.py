"""Turn a timm vision transformer into a one-bit one: the conversion, the first scales."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from timm.layers import Mlp, PatchEmbed
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.attention_bias import FullAttentionBias, RelativeAttentionBias
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedConv2d, QuantizedLinear
from gsb_vit.nn.exact import order_norm
from gsb_vit.nn.input_quantizers import InitializedOnce
from gsb_vit.nn.mlp import BinaryMlp
from gsb_vit.nn.schemes import Scheme, scheme_of
from gsb_vit.nn.superposition_quantizers import Superposition
from gsb_vit.nn.tokenizer import ConvTokenizer, QuantizedTokenizer
from gsb_vit.quantization import Quantization

from .packable import final_norm, packable
from .pixel_inputs import PIXEL_MODELS

MLP_CLIP = 10.0


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the channels of tokens (B, N, C), as the released stage 1 has it after the patch embedding."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(x.shape)


def binarize(vit: VisionTransformer, quantization: Quantization | dict[str, Any] | str | None = None) -> nn.Module:
    """Replace the modules of a timm VisionTransformer in place, as the switches say, and return it.

    Weights, biases and names are kept; scales are set later, by the first batch or ``initialize_scales``. Any timm
    VisionTransformer will do, with or without class and distillation tokens or qkv bias. ``full_precision`` changes
    nothing.

    Raises InputError for another kind of model, one that is binarized already, or parts without a one-bit form
    (qk_norm, gated or custom attention, custom MLPs, attention pooling, dynamic image size with an attention bias).
    """
    quantization = Quantization.create(quantization)
    _check_model(vit, quantization)
    if quantization.changes_blocks:
        scheme = scheme_of(quantization)
        for block in cast(Iterable[Block], vit.blocks):
            block.attn = _gsb_attention(vit, cast(Attention, block.attn), quantization, scheme)
            _binarize_mlp(cast(Mlp, block.mlp), quantization, scheme)
    if quantization.edge_bits == 8:
        proj = vit.patch_embed.proj
        if isinstance(proj, ConvTokenizer):
            vit.patch_embed.proj = QuantizedTokenizer.from_tokenizer(proj, quantization.tokenizer_bits)
        else:
            vit.patch_embed.proj = QuantizedConv2d.from_conv(proj)
        quantize_heads(vit)
    if quantization.patch_norm:
        vit.patch_embed.norm = TokenBatchNorm(vit.embed_dim).to(next(vit.patch_embed.parameters()).device)
    setattr(vit, "quantization", quantization)  # noqa: B010 (timm's class declares no such attribute)
    _order(vit)
    return vit


def _order(vit: Any) -> None:
    """Make a packable model's evaluation follow docs/numerics.md, so that it answers as its packed file will."""
    if not packable(vit):
        return
    for block in vit.blocks:
        block.attn.ordered = True
        order_norm(block.norm1, block.attn.qkv)
        order_norm(block.norm2, block.mlp.fc1)
    order_norm(final_norm(vit), *_quantized_heads(vit))
    vit.__class__ = PIXEL_MODELS.get(type(vit), type(vit))


def set_pixel_scaling(model: nn.Module, preprocessing: Preprocessing) -> None:
    """Tell a model how its pictures come about, (u/255 − mean)/std of whole pixels u.

    Where the model can be packed, evaluation then embeds such pictures as the packed model does. Other models, and
    pictures that are not of whole pixels, are treated as ever.
    """
    if packable(model):
        conv = cast(QuantizedConv2d | QuantizedTokenizer, cast(VisionTransformer, model).patch_embed.proj)
        conv.pixel_scaling = (tuple(preprocessing.mean), tuple(preprocessing.std))


def _quantized_heads(vit: nn.Module) -> list[QuantizedLinear]:
    heads = [getattr(vit, name, None) for name in ("head", "head_dist")]
    return [head for head in heads if isinstance(head, QuantizedLinear)]


def quantize_heads(vit: VisionTransformer) -> None:
    """Replace the linear heads ``head`` and ``head_dist``, where present, by 8-bit ones."""
    for name in ("head", "head_dist"):
        head = getattr(vit, name, None)
        if type(head) is nn.Linear:
            setattr(vit, name, QuantizedLinear.from_linear(head))
    _order(vit)


def _check_model(vit: nn.Module, quantization: Quantization) -> None:
    if not isinstance(vit, VisionTransformer):
        raise InputError(
            f"binarize takes a timm VisionTransformer, not {type(vit).__name__}; build one with "
            "timm.create_model('vit_tiny_patch16_224') or 'gsb_vit_small_patch16_224'"
        )
    if getattr(vit, "quantization", None) not in (None, Quantization.full_precision()):
        raise InputError("this model is binarized already; build a fresh one and load the weights into it")
    if quantization.edge_bits == 8 or quantization.patch_norm:
        embed = vit.patch_embed
        if not isinstance(embed, PatchEmbed) or type(embed.proj) not in (nn.Conv2d, ConvTokenizer):
            raise InputError(f"the patch embedding {type(embed).__name__} has no 8-bit form; pass edge_bits=32")
    if quantization.tokenizer_bits == 1 and not isinstance(vit.patch_embed.proj, ConvTokenizer):
        raise InputError(
            "tokenizer_bits = 1 is of a convolutional tokenizer, and this model has patches; give "
            "model.tokenizer_channels, or leave tokenizer_bits at 8"
        )
    if quantization.patch_norm and (vit.dynamic_img_size or not isinstance(vit.patch_embed.norm, nn.Identity)):
        raise InputError("patch_norm needs a fixed image size and a patch embedding without a norm of its own")
    if not quantization.changes_blocks:
        return
    if vit.attn_pool is not None:
        raise InputError(f"global_pool={vit.global_pool!r} has no one-bit form; use 'token' or 'avg'")
    if vit.dynamic_img_size and quantization.attention_bias != "none":
        raise InputError("dynamic_img_size needs attention_bias='none': a bias belongs to one grid of patches")
    if not isinstance(vit.patch_drop, nn.Identity) and quantization.attention_bias != "none":
        raise InputError("patch_drop_rate needs attention_bias='none': a bias belongs to one grid of patches")
    for index, block in enumerate(vit.blocks):
        _check_block(index, block)
        dropout = block.attn.attn_drop.p
        if dropout and quantization.activations == "binary" and not scheme_of(quantization).softmax:
            raise InputError(f"scheme = {quantization.scheme!r} has no attention dropout; build with attn_drop_rate=0")


def _check_block(index: int, block: nn.Module) -> None:
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    if attention is None or mlp is None:
        raise InputError(f"block {index} is a {type(block).__name__}; only timm's plain Block has a one-bit form")
    if type(attention) is not Attention or type(mlp) is not Mlp:
        raise InputError(
            f"block {index} has {type(attention).__name__} and {type(mlp).__name__}; only timm's plain Attention and "
            "Mlp have a one-bit form"
        )
    extras = {"qk_norm": ("q_norm", "k_norm"), "scale_attn_norm": ("norm",), "gated attention": ("gate",)}
    for option, names in extras.items():
        modules = [getattr(attention, name, None) for name in names]
        if any(module is not None and not isinstance(module, nn.Identity) for module in modules):
            raise InputError(f"block {index} uses {option}, which has no one-bit form; build the model without it")
    if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
        raise InputError(f"block {index} uses scale_mlp_norm, which has no one-bit form; build the model without it")
    if not isinstance(mlp.fc1, nn.Linear):
        raise InputError(f"block {index} has a convolutional MLP, which has no one-bit form")


def _linear(linear: nn.Linear, one_bit: bool, quantization: Quantization, scheme: Scheme, **options: Any) -> nn.Linear:
    """The layer that the switches ask for; the very same one where neither its weights nor inputs change."""
    if not one_bit and quantization.activations == "full":
        return linear
    options.setdefault("input_quantizer", scheme.linear())
    return BinaryLinear.from_linear(
        linear,
        activations=quantization.activations,
        weights="binary" if one_bit else "full",
        weight_bits=quantization.weight_bits,
        weight_scale=quantization.weight_scale,
        with_shift=scheme.shift,
        **options,
    )


def _activation(linear: nn.Linear, scheme: Scheme) -> nn.Module | None:
    """The scheme's activation function for the outputs of a layer, if it has one."""
    return None if scheme.activation is None else scheme.activation(linear.out_features).to(linear.weight.device)


def _binarize_mlp(mlp: Mlp, quantization: Quantization, scheme: Scheme) -> None:
    one_bit = quantization.weights != "none"
    fc1, fc2 = cast(nn.Linear, mlp.fc1), cast(nn.Linear, mlp.fc2)
    mlp.fc1 = _linear(fc1, one_bit, quantization, scheme)
    output = _activation(fc2, scheme)
    mlp.fc2 = _linear(fc2, one_bit, quantization, scheme, input_quantizer=scheme.hidden(), clip=MLP_CLIP, output=output)
    if mlp.fc1 is not fc1:
        mlp.__class__ = BinaryMlp
    if scheme.activation is not None and mlp.fc1 is not fc1:
        mlp.act = cast(nn.Module, _activation(fc1, scheme))


def _attention_bias(
    vit: VisionTransformer, num_heads: int, kind: str
) -> RelativeAttentionBias | FullAttentionBias | None:
    if kind == "none":
        return None
    if kind == "full":
        return FullAttentionBias(num_heads, vit.patch_embed.num_patches + vit.num_prefix_tokens)
    return RelativeAttentionBias(num_heads, tuple(vit.patch_embed.grid_size), vit.num_prefix_tokens)


def _gsb_attention(
    vit: VisionTransformer, attention: Attention, quantization: Quantization, scheme: Scheme
) -> GSBAttention:
    one_bit = quantization.weights == "all"
    binary = quantization.activations == "binary"
    result = GSBAttention(
        _linear(attention.qkv, one_bit, quantization, scheme),
        _linear(attention.proj, one_bit, quantization, scheme, output=_activation(attention.proj, scheme)),
        attention.num_heads,
        _attention_bias(vit, attention.num_heads, quantization.attention_bias),
        scheme.attention() if binary else None,
        scheme.value() if binary else None,
        attn_drop=attention.attn_drop.p,
        proj_drop=attention.proj_drop.p,
        query_key=scheme.query_key,
        with_shifts=scheme.shift,
        softmax=scheme.softmax or not binary,
    )
    return result.train(attention.training)


@torch.no_grad()
def initialize_scales(model: nn.Module, images: Tensor, force: bool = False) -> None:
    """Set the scales that are not set yet from one batch of images (B, 3, H, W), before DDP or torch.compile.

    Runs one forward pass in eval mode (no dropout, no stochastic depth; BatchNorm with its running statistics) and
    restores the mode. ``force`` sets those that are set already anew.
    """
    for module in model.modules():
        if force and isinstance(module, InitializedOnce):
            module.initialized.fill_(False)
            module.is_ready = False
    with _eval_mode(model):
        model(images)


@torch.no_grad()
def calibrate_thresholds(model: nn.Module, batches: Iterable[Tensor | Sequence[Tensor]]) -> None:
    """Set the stored limits of a ``threshold_scope="fixed"`` model from batches of images, or (images, labels).

    The extremes become the means, over all pictures, of each picture's own extremes; while they are collected every
    picture uses its own, as in scope ``sample``.

    Raises InputError if the model has no stored limits or there is no batch.
    """
    quantizers = [m for m in model.modules() if isinstance(m, Superposition) and m.threshold_scope == "fixed"]
    if not quantizers:
        raise InputError("the model stores no thresholds to calibrate; build it with threshold_scope='fixed'")
    device = next(model.parameters()).device
    try:
        for quantizer in quantizers:
            quantizer.calibration = []
        with _eval_mode(model):
            for batch in batches:
                model((batch if isinstance(batch, Tensor) else batch[0]).to(device))
        if not quantizers[0].calibration:
            raise InputError("calibrate_thresholds got no batch; give it at least one batch of images")
        for quantizer in quantizers:
            quantizer.set_extremes(torch.cat(quantizer.calibration or [], dim=1).mean(1))
    finally:
        for quantizer in quantizers:
            quantizer.calibration = None


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
