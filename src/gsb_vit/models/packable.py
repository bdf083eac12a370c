"""Can this model be packed, and does it evaluate as its packed file will? One answer, asked of the model itself."""

from collections.abc import Iterator
from typing import Any

from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from gsb_vit.errors import InputError
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedConv2d, QuantizedLinear
from gsb_vit.nn.tokenizer import MOST_CONVOLUTIONS, ConvEmbed, ConvTokenizer, QuantizedTokenizer
from gsb_vit.quantization import PACKED_VALUES

from .pixel_inputs import PIXEL_MODELS, PixelInputs

MOST_PREFIX_TOKENS = 16
# Switch → the way out of a value that a packed file cannot hold.
_WAYS_OUT = {
    "scheme": "the runtime runs scheme = gsb or bit; this one is for comparison only",
    "weight_bits": "the runtime multiplies one-bit weights; train with weight_bits = 1",
    "activation_bits": "the runtime multiplies one-bit activations; train stage 2 with activation_bits = 1",
    "weights": "train stage 2 with weights = all",
    "activations": "export the last stage, trained with activations = binary",
    "edge_bits": "train stage 2 with edge_bits = 8",
    "threshold_scope": "a batch is unknown on the device; train with sample or fixed",
    "patch_norm": "train stage 2 with patch_norm = false",
}


def packable(model: nn.Module) -> bool:
    """Return whether a packed file can hold the model; then it evaluates as docs/numerics.md says."""
    return next(obstacles(model), None) is None


def check_packable(model: nn.Module) -> None:
    """Check that a packed file can hold the model. Raises InputError for the first obstacle, with the way out."""
    for message in obstacles(model):
        raise InputError(message)


def obstacles(model: nn.Module) -> Iterator[str]:
    """Yield what a packed file cannot hold of a model, each with the way out; nothing where it can hold all of it."""
    if not isinstance(model, VisionTransformer):
        yield f"{type(model).__name__} is not a timm VisionTransformer; export a binarized one"
        return
    quantization = getattr(model, "quantization", None)
    if quantization is None:
        yield "the model is not binarized; call gsb_vit.binarize and train it, or export a run"
        return
    for name, allowed in PACKED_VALUES.items():
        value = getattr(quantization, name)
        if value not in allowed:
            yield f"a packed model cannot have {name} = {value!r}; {_WAYS_OUT[name]}"
    for what, way_out in _misfits(model):
        yield f"a packed model cannot have {what}; {way_out}"


def _misfits(model: VisionTransformer) -> Iterator[tuple[str, str]]:
    """Yield the modules and options that the format has no place for, and the way out."""
    if type(model) not in PIXEL_MODELS and not isinstance(model, PixelInputs):
        yield f"the forward pass of {type(model).__name__}", "train timm's VisionTransformer or a gsb_vit model"
    pooled = model.global_pool == "avg"
    if model.global_pool not in ("token", "avg") or (pooled and isinstance(model, VisionTransformerDistilled)):
        yield f"global_pool = {model.global_pool!r}", "train with global_pool = 'token' or, on one head, 'avg'"
    if pooled and model.pool_include_prefix:
        yield "pool_include_prefix = True", "train with pool_include_prefix = False"
    if not model.has_class_token and not pooled:
        yield "class_token = False", "train with a class token, or with global_pool = 'avg'"
    if model.num_prefix_tokens > MOST_PREFIX_TOKENS:
        yield f"{model.num_prefix_tokens} prefix tokens", f"train with at most {MOST_PREFIX_TOKENS}"
    if getattr(model, "pos_embed", None) is not None and model.dynamic_img_size:
        yield "dynamic_img_size = True", "train with one image size"
    if not isinstance(model.norm_pre, nn.Identity):
        yield "a norm before the blocks (norm_pre)", "train with pre_norm = False"
    has_fc_norm = not isinstance(model.fc_norm, nn.Identity)
    if has_fc_norm and (not isinstance(model.norm, nn.Identity) or isinstance(model, VisionTransformerDistilled)):
        yield "two norms before the head (norm, fc_norm)", "train with fc_norm = False"
    if not isinstance(model.patch_drop, nn.Identity):
        yield "patch dropout", "train with patch_drop_rate = 0"
    yield from _patch_misfits(model)
    heads = [model.head, getattr(model, "head_dist", model.head)]
    if not all(isinstance(head, QuantizedLinear) for head in heads):
        yield f"the head {model.head}", "train with edge_bits = 8 and num_classes above 0"
    if not len(model.blocks):
        yield "no blocks", "train with depth above 0"
    for index, block in enumerate(model.blocks):
        yield from _block_misfits(index, block, model.embed_dim)
    norms: list[Any] = [final_norm(model), *(getattr(b, n, None) for b in model.blocks for n in ("norm1", "norm2"))]
    odd = [norm for norm in norms if not isinstance(norm, nn.LayerNorm)]
    if odd:
        yield f"the norm {type(odd[0]).__name__}", "train with LayerNorm"
    elif len({norm.eps for norm in norms}) != 1:
        yield "LayerNorms with different eps", "train with one eps"


def final_norm(model: Any) -> Any:
    """The norm before the heads: timm's ``fc_norm``, behind the pooling, or ``norm``, before it."""
    return model.norm if isinstance(model.fc_norm, nn.Identity) else model.fc_norm


def _patch_misfits(model: VisionTransformer) -> Iterator[tuple[str, str]]:
    embed = model.patch_embed
    if type(embed) not in (PatchEmbed, ConvEmbed) or not isinstance(embed.norm, nn.Identity) or embed.img_size is None:
        yield (
            f"the patch embedding {type(embed).__name__} with a norm or without a size",
            "train with timm's PatchEmbed",
        )
    elif isinstance(embed.proj, ConvTokenizer):
        if not isinstance(embed.proj, QuantizedTokenizer) or embed.proj.convs[0].in_channels != 3:
            yield "a convolutional tokenizer in full precision", "train on 3 channels with edge_bits = 8"
        elif len(embed.proj.convs) > MOST_CONVOLUTIONS:
            yield f"{len(embed.proj.convs)} convolutions", f"train with at most {MOST_CONVOLUTIONS}"
    elif not isinstance(embed.proj, QuantizedConv2d) or embed.proj.in_channels != 3:
        yield f"the patch projection {embed.proj}", "train on 3 channels with edge_bits = 8"
    elif embed.proj.stride != embed.proj.kernel_size or any(
        side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)
    ):
        yield f"patches {embed.patch_size} that do not tile the picture {embed.img_size}", "train with ones that do"


def _block_misfits(index: int, block: nn.Module, width: int) -> Iterator[tuple[str, str]]:
    if type(block) is not Block:
        yield f"the block {type(block).__name__}", "train with timm's Block"
        return
    if not isinstance(block.ls1, nn.Identity) or not isinstance(block.ls2, nn.Identity):
        yield f"layer scale (block {index})", "train with init_values = None"
    attention, mlp = block.attn, block.mlp
    if not isinstance(attention, GSBAttention) or attention.attn_dim != width:
        yield f"the attention {type(attention).__name__} (block {index})", "train with gsb_vit.binarize"
        return
    layers = {"attn.qkv": attention.qkv, "attn.proj": attention.proj, "mlp.fc1": mlp.fc1, "mlp.fc2": mlp.fc2}
    for name, layer in layers.items():
        if not isinstance(layer, BinaryLinear) or (layer.weights, layer.activations) != ("binary", "binary"):
            yield f"full-precision numbers in blocks.{index}.{name}", "train stage 2 with weights = all"
        elif layer.signed == (name == "mlp.fc2") or (layer.clip is not None and name != "mlp.fc2"):
            yield f"these inputs of blocks.{index}.{name}", "train with gsb_vit.binarize"
