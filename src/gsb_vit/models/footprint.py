"""How many bytes a model's numbers take at the bits they are trained for, whether or not the runtime can run it.

``summary`` says what a packed file takes, to the byte; this is the same measure for the whole ladder of precisions
(one-bit, ternary, eight-bit, float32), so that they can be compared in one plot.
"""

import math
from dataclasses import dataclass

from torch import nn

from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedWeight
from gsb_vit.nn.tokenizer import BinaryConv
from gsb_vit.nn.weight_quantizers import AnalyticWeight

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Footprint:
    """Parameters as PyTorch counts them, and the bytes of a file that stores each at its bits."""

    parameters: int
    bytes: int


def row_bytes(numbers: int, bits: int) -> int:
    """Return the bytes of a row of weights of 1, 2, 8 or 32 bits; one and two bits fill whole 64-bit words."""
    return numbers * bits // 8 if bits >= 8 else 8 * math.ceil(bits * numbers / 64)


def footprint(model: nn.Module) -> Footprint:
    """Sum up a model: weights at 1, 2 or 8 bits as they are quantized, every other parameter as float32.

    Rows of one- and two-bit weights are padded to whole 64-bit words, as a packed file pads them. An analytic scale,
    which is no parameter, counts as one float32 a row or layer. What export folds away (shifts into norms and
    thresholds, the prefix tokens' positions) is counted as it was trained.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = FLOAT_BYTES * parameters
    for module in model.modules():
        if isinstance(module, BinaryLinear) and module.weight_quantizer is not None:
            quantizer = module.weight_quantizer
            size += module.out_features * row_bytes(module.in_features, quantizer.bits)
            size -= FLOAT_BYTES * module.weight.numel()
            if isinstance(quantizer, AnalyticWeight):
                size += FLOAT_BYTES * (module.out_features if quantizer.per_row else 1)
        elif isinstance(module, BinaryConv):
            numbers = module.weight[0].numel()
            size += module.out_channels * (row_bytes(numbers, 1) + FLOAT_BYTES * (1 - numbers))
        elif isinstance(module, QuantizedWeight):
            size += (1 - FLOAT_BYTES) * module.weight.numel()
    return Footprint(parameters, size)
