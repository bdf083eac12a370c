"""What a trained model must be for the packed format to hold it."""

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from gsb_vit.errors import InputError
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedConv2d, QuantizedLinear
from gsb_vit.nn.input_quantizers import InitializedOnce
from gsb_vit.quantization import PACKED_VALUES

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


def check_exportable(model: nn.Module) -> None:
    """Check that the packed format can hold ``model``.

    Raises:
        InputError: for the first thing it cannot hold, with the way out.
    """
    if not isinstance(model, VisionTransformer):
        raise InputError(f"{type(model).__name__} is not a timm VisionTransformer; export a binarized one")
    quantization = getattr(model, "quantization", None)
    if quantization is None:
        raise InputError("the model is not binarized; call gsb_vit.binarize and train it, or export a run")
    for name, allowed in PACKED_VALUES.items():
        value = getattr(quantization, name)
        if value not in allowed:
            raise InputError(f"a packed model cannot have {name} = {value!r}; {_WAYS_OUT[name]}")
    for what, way_out in _misfits(model):
        raise InputError(f"a packed model cannot have {what}; {way_out}")
    for name, module in model.named_modules():
        if isinstance(module, InitializedOnce) and not module.is_ready:
            raise InputError(f"the scale of {name} was never set; train the model, or call initialize_scales")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{name} holds numbers that are not finite: training diverged; export an earlier checkpoint"
            )


def _misfits(model: VisionTransformer) -> Iterator[tuple[str, str]]:
    """Yield what the format has no place for, and the way out."""
    if model.global_pool != "token":
        yield f"global_pool = {model.global_pool!r}", "train with global_pool = 'token'"
    if model.num_reg_tokens or model.num_prefix_tokens != 1 + isinstance(model, VisionTransformerDistilled):
        yield "register tokens", "train with reg_tokens = 0"
    if not isinstance(model.norm_pre, nn.Identity) or not isinstance(model.fc_norm, nn.Identity):
        yield "a norm before the blocks or behind the pooling", "train with pre_norm = False, fc_norm = False"
    embed = model.patch_embed
    if type(embed) is not PatchEmbed or not isinstance(embed.norm, nn.Identity) or embed.img_size is None:
        yield (
            f"the patch embedding {type(embed).__name__} with a norm or without a size",
            "train with timm's PatchEmbed",
        )
    elif not isinstance(embed.proj, QuantizedConv2d) or embed.proj.in_channels != 3:
        yield f"the patch projection {embed.proj}", "train on 3 channels with edge_bits = 8"
    elif embed.proj.stride != embed.proj.kernel_size or any(
        side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)
    ):
        yield f"patches {embed.patch_size} that do not tile the picture {embed.img_size}", "train with ones that do"
    heads = [model.head, getattr(model, "head_dist", model.head)]
    if not all(isinstance(head, QuantizedLinear) for head in heads):
        yield f"the head {model.head}", "train with edge_bits = 8 and num_classes above 0"
    if not len(model.blocks):
        yield "no blocks", "train with depth above 0"
    for index, block in enumerate(model.blocks):
        yield from _block_misfits(index, block, model.embed_dim)
    norms: list[Any] = [model.norm, *(norm for block in model.blocks for norm in (block.norm1, block.norm2))]
    if not all(isinstance(norm, nn.LayerNorm) for norm in norms):
        yield f"the norm {type(model.norm).__name__}", "train with LayerNorm"
    elif len({norm.eps for norm in norms}) != 1:
        yield "LayerNorms with different eps", "train with one eps"


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
