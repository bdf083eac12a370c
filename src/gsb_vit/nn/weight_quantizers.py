"""Modules that turn a latent weight matrix into an integer plane and a scale: one bit, ternary, eight bits."""

from typing import Literal

import torch
from torch import Tensor, nn

from .input_quantizers import InitializedOnce
from .quantize import (
    SCALE_MIN,
    WEIGHT_SCALE_MIN,
    binary_weight,
    elastic_integer,
    integer_range,
    lsq,
    scale_ste,
    ternary_weight,
)

WeightBits = Literal[1, 2, 8]
WeightScale = Literal["row", "layer", "learned_row"]

_PLANES = {1: binary_weight, 2: ternary_weight}


class WeightQuantizer(nn.Module):
    """Base of the weight quantizers; ``factored`` as in ``input_quantizers.Planes``."""

    factored = True
    bits: int

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the integer plane (out, in) of the weight and its scale, (out, 1) or (1, 1)."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """Return the dequantized weight (out, in)."""
        plane, scale = self.quantize(weight)
        return plane * scale


class AnalyticWeight(WeightQuantizer):
    """One-bit or ternary weights whose scale follows from the weights: ``binary_weight``, ``ternary_weight``."""

    def __init__(self, bits: int = 1, per_row: bool = True) -> None:
        super().__init__()
        self.bits, self.per_row = bits, per_row

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _PLANES[self.bits](weight, self.per_row)


class LearnedWeight(InitializedOnce, WeightQuantizer):
    """One-bit or ternary weights with a learned scale per row, ``weight_scale`` (out,), in use as max(s, 1e-5).

    W_b = s·B with the plane B of ``binary_weight`` or ``ternary_weight``. grad_W = g (straight through);
    grad_s = k Σ g·B over the row, k = 1/√in. Initial s: the analytic one of each row. Learned scales of XNOR-Net++
    (https://arxiv.org/abs/1909.13863), there without the factor k of LSQ (https://arxiv.org/abs/1902.08153).
    """

    def __init__(self, bits: int, rows: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.weight_scale = nn.Parameter(torch.ones(rows, device=device))
        self._add_flag(device)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set the scales from the weights as they are now and mark the module initialized."""
        _, scale = _PLANES[self.bits](weight, True)
        self.weight_scale.copy_(scale.squeeze(1).clamp(min=SCALE_MIN))
        self._mark_ready()

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_ready:
            self.initialize(weight)
        scale = scale_ste(self.weight_scale, weight.shape[1] ** -0.5).unsqueeze(1)
        return _PLANES[self.bits](weight, True, scale)


class IntegerWeight(InitializedOnce, WeightQuantizer):
    """Eight-bit weights W_q = s·clamp(round(W/s), -128, 127) with learned scales ``weight_scale`` (out,) or (1,).

    Gradients: ``quantizers.lsq``, k = 1/√(n·127), n the weights that share a scale. Initial s = 2·mean|W|/√127 over
    those. LSQ, https://arxiv.org/abs/1902.08153.
    """

    factored = False
    bits = 8

    def __init__(self, rows: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.low, self.high = integer_range(8)
        self.weight_scale = nn.Parameter(torch.ones(rows, device=device))
        self._add_flag(device)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set the scales from the weights as they are now and mark the module initialized."""
        size = weight.abs().reshape(len(self.weight_scale), -1).mean(1).clamp(min=WEIGHT_SCALE_MIN)
        self.weight_scale.copy_((2 * size / self.high**0.5).clamp(min=SCALE_MIN))
        self._mark_ready()

    def _factor(self, weight: Tensor) -> float:
        """k, after initialization where needed."""
        if not self.is_ready:
            self.initialize(weight)
        return (weight.numel() // len(self.weight_scale) * self.high) ** -0.5

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = scale_ste(self.weight_scale, self._factor(weight)).unsqueeze(1)
        return elastic_integer(weight, scale, self.low, self.high), scale

    def forward(self, weight: Tensor) -> Tensor:
        factor = self._factor(weight)
        return lsq(weight, self.weight_scale.unsqueeze(1), self.low, self.high, factor)


def weight_quantizer(
    bits: WeightBits, scale: WeightScale, rows: int, device: torch.device | None = None
) -> WeightQuantizer:
    """Return the quantizer of a weight matrix of that many rows; eight-bit scales are learned in any case."""
    if bits == 8:
        return IntegerWeight(1 if scale == "layer" else rows, device)
    if scale == "learned_row":
        return LearnedWeight(bits, rows, device)
    return AnalyticWeight(bits, scale == "row")
