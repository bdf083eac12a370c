"""Trained model → packed file: the only bridge from the training side to the device side.

Where the device compares integers, the limits are found by running the trained layer's own float32 operations on every
integer its product can give, so that equal input bits give equal output bits, ties included.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.models.packable import final_norm
from gsb_vit.models.pixel_inputs import stored_tokens
from gsb_vit.nn import exact
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedConv2d
from gsb_vit.nn.input_quantizers import Quantizer
from gsb_vit.nn.quantize import SCALE_MIN
from gsb_vit.nn.tokenizer import FoldedConv, QuantizedTokenizer
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.bits import pack
from gsb_vit.runtime.packed_file import PackedModel

from .architecture import architecture_of, heads_of
from .checks import check_exportable

Arrays = dict[str, NDArray[Any]]


def export_model(
    trained_model: nn.Module,
    path: packed_file.PathLike,
    *,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any] | None = None,
) -> PackedModel:
    """Pack ``trained_model`` and write it to ``path``, whole or not at all; return what was written.

    Raises:
        InputError: as :func:`pack_model` and ``packed_file.write``.
    """
    model = pack_model(trained_model, class_names=class_names, preprocessing=preprocessing, provenance=provenance or {})
    packed_file.write(Path(path), model)
    return model


@torch.no_grad()
def pack_model(
    trained_model: nn.Module,
    *,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any],
) -> PackedModel:
    """Pack a binarized timm VisionTransformer: class token with or without distillation token, or mean pooling.

    The model is not changed.

    ``preprocessing`` must give the size the model reads; its mean and std are folded into the patch embedding.

    Raises:
        InputError: for a model the packed format cannot hold (batch thresholds, full-precision activations, weights
            or edges, layer scale, scales never set, numbers that are not finite),
            saying how to train one that it can; and for class names or a picture size that do not fit.
    """
    check_exportable(trained_model)
    model: Any = copy.deepcopy(trained_model).cpu().float().eval()
    tensors = _embedding(model, preprocessing)
    tensors["norm.weight"], tensors["norm.bias"] = _norm(final_norm(model))
    for index, head in enumerate(heads_of(model)):
        tensors.update({f"heads.{index}.{name}": array for name, array in _head(head).items()})
    for index, block in enumerate(model.blocks):
        tensors.update({f"blocks.{index}.{name}": array for name, array in _block(index, block).items()})
    result = PackedModel(architecture_of(model), tuple(class_names), preprocessing, dict(provenance), tensors)
    packed_file.check(result)
    return result


def _embedding(model: Any, preprocessing: Preprocessing) -> Arrays:
    """Patch embedding or tokenizer with the normalisation of the pixels folded in, in float64, rounded once."""
    conv: QuantizedConv2d | QuantizedTokenizer = model.patch_embed.proj
    scaling = (tuple(preprocessing.mean), tuple(preprocessing.std))
    prefixes, position = stored_tokens(model, scaling)
    tokens = {"patch_embed.position": _array(position), "prefix_tokens": _array(prefixes)}
    if isinstance(conv, QuantizedTokenizer):
        return tokens | _tokenizer(conv.folded(scaling))
    weight, scale = conv.quantized_weight()
    return tokens | {
        "patch_embed.weight": weight.numpy().astype(np.int8),
        "patch_embed.scale": _array(exact.pixel_scale(scale, preprocessing.std)),
    }


def _tokenizer(convs: Sequence[FoldedConv]) -> Arrays:
    """Weights of the first convolution colour by colour, of the others tap by tap, channels last."""
    arrays: Arrays = {}
    for index, conv in enumerate(convs):
        weight = conv.weight if index == 0 else conv.weight.permute(0, 2, 3, 1)
        packed = pack(weight.flatten(1).numpy() > 0) if conv.bits == 1 else weight.numpy().astype(np.int8)
        arrays[f"tokenizer.{index}.weight"] = np.ascontiguousarray(packed)
        arrays[f"tokenizer.{index}.scale"] = _array(conv.scale)
        if index + 1 < len(convs):
            arrays[f"tokenizer.{index}.{'bias' if index else 'offset'}"] = _array(conv.offset)
    return arrays


def _head(head: Any) -> Arrays:
    weight, weight_scale = head.quantized_weight()
    input_scale = _scale(head.input_quantizer)
    return {
        "shift": _array(head.shift),
        "input_scale": _array(input_scale.reshape(1)),
        "weight": weight.numpy().astype(np.int8),
        "scale": _array((input_scale * weight_scale).expand(head.out_features)),
        "bias": _bias(head),
    }


def _block(index: int, block: Any) -> Arrays:
    attention, mlp = block.attn, block.mlp
    norm1, norm2 = _norm(block.norm1, attention.qkv), _norm(block.norm2, mlp.fc1)
    return {
        "norm1.weight": norm1[0],
        "norm1.bias": norm1[1],
        **{f"attn.{name}": array for name, array in _attention(attention).items()},
        "norm2.weight": norm2[0],
        "norm2.bias": norm2[1],
        "mlp.fc1.weight": _bits(mlp.fc1),
        "mlp.fc1.zero_interval": _zero_intervals(index, mlp),
        "mlp.fc2.weight": _bits(mlp.fc2),
        "mlp.fc2.scale": _array(_product_scale(mlp.fc2).expand(mlp.fc2.out_features)),
        "mlp.fc2.bias": _bias(mlp.fc2),
    }


def _attention(attention: Any) -> Arrays:
    qkv, proj, width = attention.qkv, attention.proj, attention.attn_dim
    shift = attention.output_shift()
    attention_scales, value_scales = _scale(attention.attention_quantizer), _scale(attention.value_quantizer)
    query_key = _scale(attention.query_quantizer) * _scale(attention.key_quantizer)
    arrays: Arrays = {
        "qkv.weight": _bits(qkv),
        "qkv.threshold": _thresholds(_every_output(qkv, output_shift=shift) >= 0),
        "v_scale": _array(_product_scale(qkv).expand(3 * width)[2 * width :]),
        "v_bias": _array(qkv.output_bias(shift)[2 * width :]),
        "exp_table": _array(exact.exp_table(query_key, attention.head_dim)),
        "attention_half_scale": _array(0.5 * attention_scales[:1]),
        "product_scale": _array(attention_scales[:, None] * value_scales[None, :]),
        "proj.weight": _bits(proj),
        "proj.shift": _array(proj.shift),
        "proj.scale": _array(_product_scale(proj).expand(width)),
        "proj.bias": _bias(proj),
    }
    bias = attention.attention_bias
    if bias is not None:
        relative = hasattr(bias, "table")
        arrays["bias"] = _array(bias.table) if relative else bias.stored().numpy().astype(np.float16)
    if attention.attention_quantizer.threshold_scope == "fixed":
        arrays["attention_limits"] = _array(attention.attention_quantizer.fixed_limits().reshape(-1))
        arrays["value_limits"] = _array(attention.value_quantizer.fixed_limits().reshape(-1, 2))
    return arrays


def _every_output(
    layer: BinaryLinear, dtype: torch.dtype = torch.float32, output_shift: Tensor | None = None
) -> Tensor:
    """Return what the layer gives for popcounts 0 … k of the XOR of its operands: (k + 1, out)."""
    depth = layer.in_features
    dots = depth - 2 * torch.arange(depth + 1, dtype=dtype)
    y = dots[:, None] * _product_scale(layer).to(dtype)
    bias = layer.output_bias(output_shift)
    return y if bias is None else y + bias.to(dtype)


def _thresholds(bits: Tensor) -> NDArray[np.int16]:
    """(k + 1, out) bits by popcount → the largest popcount whose bit is 1, −1 where none is.

    The output falls as the popcount grows, because scales are positive and rounding keeps order; so the ones come
    first.
    """
    return (bits.sum(dim=0) - 1).numpy().astype(np.int16)


def _zero_intervals(index: int, mlp: Any) -> NDArray[np.int16]:
    """Return the popcounts (M, 2), first and last, whose hidden bit is 0; (1, 0) where none is.

    Near its left tail a float32 GELU is not quite monotone (1 + erf cancels); where that tears an interval, float64
    decides.

    Raises:
        InputError: if the zeros are no interval even so, as another activation function may have it.
    """
    intervals, whole = _interval(_hidden_zeros(mlp, torch.float32))
    if not whole.all():
        exact, exact_whole = _interval(_hidden_zeros(mlp, torch.float64))
        if not (whole | exact_whole).all():
            raise InputError(
                f"block {index}: {type(mlp.act).__name__} turns no single interval into zeros; train with GELU or ReLU"
            )
        intervals[~whole] = exact[~whole]
    return intervals.numpy().astype(np.int16)


def _hidden_zeros(mlp: Any, dtype: torch.dtype) -> Tensor:
    """(C + 1, M): whether the input bit of fc2 is 0, by fc1's popcount."""
    x = mlp.act(_every_output(mlp.fc1, dtype))
    if mlp.fc2.clip is not None:
        x = x.clamp(-mlp.fc2.clip, mlp.fc2.clip)
    x = x + mlp.fc2.shift.to(dtype)
    (plane,), _ = mlp.fc2.input_quantizer.quantize(x)
    return plane == 0


def _interval(zeros: Tensor) -> tuple[Tensor, Tensor]:
    """(k + 1, M) → first and last zero (M, 2), and whether all between them are zeros (M,)."""
    counts = zeros.sum(dim=0)
    first = zeros.int().argmax(dim=0)
    last = zeros.shape[0] - 1 - zeros.flip(0).int().argmax(dim=0)
    empty = counts == 0
    bounds = torch.stack([torch.where(empty, 1, first), torch.where(empty, 0, last)], dim=1)
    return bounds, empty | (counts == last - first + 1)


def _product_scale(layer: BinaryLinear) -> Tensor:
    """s_x·s_w per output channel, (out,) or (1,), in the layer's own order."""
    return _scale(cast(Quantizer, layer.input_quantizer)) * layer.binary_weight()[1].squeeze(1)


def _scale(quantizer: Quantizer) -> Tensor:
    """The scale in use."""
    return quantizer.scale.clamp(min=SCALE_MIN)


def _bits(layer: BinaryLinear) -> NDArray[np.uint64]:
    return pack((layer.binary_weight()[0] > 0).numpy())


def _norm(norm: nn.LayerNorm, following: BinaryLinear | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Weight and bias; where a one-bit layer follows, the bias with which y ≥ 0 is that layer's input bit."""
    weight = torch.ones(norm.normalized_shape) if norm.weight is None else norm.weight
    bias = torch.zeros(norm.normalized_shape) if norm.bias is None else norm.bias
    return _array(weight), _array(bias if following is None else _folded(bias, following.shift))


def _folded(bias: Tensor, shift: Tensor) -> Tensor:
    """Return b with t + b ≥ 0 exactly where (t + bias) + shift ≥ 0, for every float32 t, each sum rounded.

    The right side grows with t, so there is a smallest such t, and b = −t. It is found by halving the interval of all
    float32 numbers; it is near bias + shift, but not always that sum as rounded.
    """
    high = torch.full(bias.shape, 0x7F7FFFFF, dtype=torch.int64)
    low = -high
    while bool((low < high).any()):
        middle = (low + high) // 2
        inside = (_float(middle) + bias) + shift >= 0
        low, high = torch.where(inside, low, middle + 1), torch.where(inside, middle, high)
    return 0.0 - _float(low)


def _float(number: Tensor) -> Tensor:
    """The float32 number so many steps above 0, or below it where negative."""
    size = number.abs().to(torch.int32).view(torch.float32)
    return torch.where(number < 0, -size, size)


def _bias(layer: nn.Linear) -> NDArray[Any]:
    return np.zeros(layer.out_features, np.float32) if layer.bias is None else _array(layer.bias)


def _array(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().numpy().astype(np.float32))
