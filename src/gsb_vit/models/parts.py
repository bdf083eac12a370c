"""The quantized parts of a model, one by one: what more bits would take, and the model without one of them."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedConv2d, QuantizedLinear, QuantizedWeight
from gsb_vit.nn.exact import OrderedNorm
from gsb_vit.nn.input_quantizers import Planes
from gsb_vit.nn.tokenizer import BinaryConv, QuantizedTokenizer
from gsb_vit.nn.weight_quantizers import WeightQuantizer
from gsb_vit.quantization import Quantization

from .footprint import row_bytes

KINDS = ("weights", "inputs", "queries and keys", "attention", "Value", "edges")
HIGHEST = 127  # of the signed eight-bit weights that take a part's place
_FLOAT_BITS = 32

Swap = tuple[nn.Module, str, Any]  # a module's attribute, and what stands there while a part is switched off


@dataclass(frozen=True)
class Part:
    """Numbers that one quantizer, or one pair of them, cuts down to ``bits``.

    ``more_bits`` is what they would be kept in: 8 where they have fewer, else 32. ``bytes`` is what a file would grow
    by; activations are in no file. ``bit_operations`` is what the products of one picture would grow by, in products of
    single bits: multiplications × bits of one factor × bits of the other.
    """

    name: str
    kind: str
    bits: int
    more_bits: int
    bytes: int
    bit_operations: int
    swaps: tuple[Swap, ...]


class _Whole(Planes):
    """Activations as they are; ``positive`` cuts them as ReLU does, where the quantizer did that, too."""

    is_ready = True

    def __init__(self, signed: bool, positive: bool = False) -> None:
        super().__init__()
        self.signed, self.positive = signed, positive

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        return [x.clamp(min=0) if self.positive else x], x.new_ones(())


class _EightBits(WeightQuantizer):
    """Weights in eight bits, W_q = s·round(W/s) with s = max|W|/127 of each row (1 for a row of zeros)."""

    bits = 8

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / HIGHEST
        scale = torch.where(scale > 0, scale, 1.0)
        return (weight / scale).round(), scale


class _WholeWeight(WeightQuantizer):
    """Weights as they are."""

    bits = _FLOAT_BITS

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight, weight.new_ones(1, 1)


def quantized_parts(model: nn.Module) -> list[Part]:
    """Return the parts of a binarized timm VisionTransformer, in the order of its layers; none if nothing is quantized.

    Of each block these are the weights and the inputs of each of its four linear layers, queries and keys, the
    attention matrix, and the Value. Of the edges: weights of the patch embedding or of each convolution of the
    tokenizer, weights and inputs of the heads, and inputs of the convolutions.
    """
    vit = cast(VisionTransformer, model)
    patches = vit.patch_embed.num_patches
    tokens = patches + vit.num_prefix_tokens
    found: list[Part] = []
    for name, module in vit.named_modules():
        if isinstance(module, BinaryLinear):
            found += _linear(name, module, tokens)
        elif isinstance(module, GSBAttention):
            found += _attention(name, module, tokens)
        elif isinstance(module, BinaryConv):
            found += _binary_convolution(name, module, patches * _places(vit, name))
        elif isinstance(module, QuantizedWeight):
            places = 1 if isinstance(module, QuantizedLinear) else patches * _places(vit, name)
            found += _edge(name, module, places)
    return found


def _places(vit: VisionTransformer, name: str) -> int:
    """Outputs that a convolution of the tokenizer gives for each token; 1 for a patch embedding."""
    proj = vit.patch_embed.proj
    if not isinstance(proj, QuantizedTokenizer):
        return 1
    return 4 ** (len(proj.convs) - 1 - int(name.rsplit(".", 1)[1]))


def _bits_of(quantizer: nn.Module | None) -> int:
    """Bits of one number: its planes of one bit each, or its bits; 32 where nothing is quantized."""
    if quantizer is None:
        return _FLOAT_BITS
    bits = getattr(quantizer, "bits", None)
    return bits if bits is not None else len(getattr(quantizer, "thresholds", ())) + 1


def _linear(name: str, layer: BinaryLinear, tokens: int) -> Iterator[Part]:
    products = tokens * layer.in_features * layer.out_features
    weights, inputs = layer.weight_quantizer, layer.input_quantizer
    weight_bits, input_bits = _bits_of(weights), _bits_of(inputs)
    if weights is not None:
        more = 8 if weight_bits < 8 else _FLOAT_BITS
        size = layer.out_features * (row_bytes(layer.in_features, more) - row_bytes(layer.in_features, weight_bits))
        instead = _EightBits() if more == 8 else _WholeWeight()
        grown = products * input_bits * (more - weight_bits)
        yield Part(f"{name}.weight", "weights", weight_bits, more, size, grown, ((layer, "weight_quantizer", instead),))
    if inputs is not None:
        more = 8 if input_bits < 8 else _FLOAT_BITS
        swap = (layer, "input_quantizer", _Whole(layer.signed))
        yield Part(
            f"{name}.input", "inputs", input_bits, more, 0, products * weight_bits * (more - input_bits), (swap,)
        )


def _attention(name: str, attention: GSBAttention, tokens: int) -> Iterator[Part]:
    if attention.attention_quantizer is None:
        return
    products = tokens * tokens * attention.attn_dim
    bits = _bits_of(attention.query_quantizer)
    more = 8 if bits < 8 else _FLOAT_BITS
    swaps = tuple((attention, part, _Whole(True)) for part in ("query_quantizer", "key_quantizer"))
    yield Part(f"{name}.query_key", "queries and keys", bits, more, 0, products * (more**2 - bits**2), swaps)
    names = {"attention": "value", "value": "attention"}
    for one, other in names.items():
        quantizer = getattr(attention, f"{one}_quantizer")
        bits, others = _bits_of(quantizer), _bits_of(getattr(attention, f"{other}_quantizer"))
        more = 8 if bits < 8 else _FLOAT_BITS
        swap: list[Swap] = [(attention, f"{one}_quantizer", _Whole(quantizer.signed))]
        if one == "attention" and not attention.softmax:  # without its quantizer the scores need one
            swap.append((attention, "softmax", True))
        kind = "Value" if one == "value" else one
        yield Part(f"{name}.{one}", kind, bits, more, 0, products * others * (more - bits), tuple(swap))


def _binary_convolution(name: str, layer: BinaryConv, places: int) -> Iterator[Part]:
    """Weights and inputs of a one-bit convolution of the tokenizer; both would be kept in 8 bits."""
    numbers, grown = layer.weight[0].numel(), places * layer.weight.numel() * (8 - 1)
    size = layer.out_channels * (row_bytes(numbers, 8) - row_bytes(numbers, 1))
    yield Part(f"{name}.weight", "edges", 1, 8, size, grown, ((layer, "weight_quantizer", _EightBits()),))
    whole = _Whole(False, positive=True)
    yield Part(f"{name}.input", "edges", 1, 8, 0, grown, ((layer, "input_quantizer", whole),))


def _edge(name: str, layer: Any, places: int) -> Iterator[Part]:
    """The weights of an eight-bit layer, and its inputs where they are quantized; all would be kept in 32 bits."""
    products, numbers = places * layer.weight.numel(), layer.weight.numel()
    quantizer = getattr(layer, "input_quantizer", None)
    size, grown = numbers * 3, products * (_FLOAT_BITS - 8)
    weight = layer.weight
    swaps = (
        (layer, "quantized_weight", lambda: (weight, weight.new_ones(layer.weight_scale.shape))),
        (layer, "dequantized_weight", lambda: weight),
    )
    yield Part(f"{name}.weight", "edges", 8, _FLOAT_BITS, size, grown * _bits_of(quantizer), swaps)
    if quantizer is not None:
        swap = (layer, "input_quantizer", _Whole(True, positive=not isinstance(layer, QuantizedLinear)))
        yield Part(f"{name}.input", "edges", 8, _FLOAT_BITS, 0, grown * 8, (swap,))


@contextmanager
def without(parts: Iterable[Part]) -> Iterator[None]:
    """Run the model that ``parts`` belong to without their quantization, inside; afterwards it is as it was.

    The model is in evaluation mode, and inside :func:`plain_order`.
    """
    with _swapped(swap for part in parts for swap in part.swaps):
        yield


@contextmanager
def plain_order(model: nn.Module) -> Iterator[None]:
    """Let evaluation use PyTorch's own order of sums, inside: that of docs/numerics.md knows integers only."""
    swaps: list[Swap] = []
    never: Callable[[Tensor], bool] = lambda x: False  # noqa: E731
    for module in model.modules():
        if isinstance(module, GSBAttention):
            swaps.append((module, "ordered", False))
        elif isinstance(module, OrderedNorm):
            swaps.append((module, "is_ordered", never))
        elif isinstance(module, QuantizedConv2d | QuantizedTokenizer):
            swaps.append((module, "pixel_scaling", None))
    with _swapped(swaps):
        yield


_CHILD, _OWN, _INHERITED = "child", "own", "inherited"


@contextmanager
def _swapped(swaps: Iterable[Swap]) -> Iterator[None]:
    undo: list[tuple[nn.Module, str, str, Any]] = []
    try:
        for module, name, value in swaps:
            if name in module._modules:
                undo.append((module, name, _CHILD, module._modules[name]))
                module._modules[name] = value
            else:
                kind = _OWN if name in vars(module) else _INHERITED
                undo.append((module, name, kind, vars(module).get(name)))
                vars(module)[name] = value
        yield
    finally:
        for module, name, kind, value in reversed(undo):
            if kind == _CHILD:
                module._modules[name] = value
            elif kind == _OWN:
                vars(module)[name] = value
            else:
                del vars(module)[name]


def is_quantized(model: nn.Module) -> bool:
    """Whether the model is one that :func:`gsb_vit.binarize` made, with anything quantized."""
    quantization = getattr(model, "quantization", None)
    return quantization not in (None, Quantization.full_precision())
