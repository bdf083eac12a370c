"""Modules that own an input quantizer's learned state: its scale, and whether that is set.

Scales are set from the first batch seen, or explicitly by ``convert.initialize_scales``. Whether that has happened is
the saved buffer ``initialized``, mirrored in a Python attribute so that a forward pass never branches on data.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gsb_vit.errors import InputError

from .quantize import SCALE_MIN, elastic_integer, elastic_sign, elastic_step, integer_range, lsq, processes, scale_ste


class InitializedOnce(nn.Module):
    """A module with a saved ``initialized`` flag; mix in before the torch layer, if any."""

    initialized: Tensor

    def _add_flag(self, device: Any = None) -> None:
        self.register_buffer("initialized", torch.tensor(False, device=device))
        self.is_ready = False

    def _mark_ready(self) -> None:
        self.initialized.fill_(True)
        self.is_ready = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.initialized.is_meta:
            self.is_ready = bool(self.initialized)


class Planes(nn.Module):
    """Base of everything that turns a tensor into integer planes and their scales.

    ``signed`` tells ±1 planes from {0, 1} ones. ``factored``: training multiplies planes, as evaluation does; where it
    is False training multiplies dequantized tensors, because the gradient of the scale of a plane of many levels would
    be the difference of two large sums.
    """

    signed = True
    factored = True

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the integer planes of x and the scales in use: (G,), or of one plane any shape that broadcasts."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the dequantized x."""
        (plane,), scale = self.quantize(x)
        return plane * scale


class Quantizer(InitializedOnce, Planes):
    """Base of the quantizers that learn: a Parameter ``scale`` (() or (G,)) and its ``initialized`` state."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))
        self._add_flag()

    def initial_scale(self, x: Tensor) -> Tensor:
        """Return the scale to start with, from a first batch x."""
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set the scale from a first batch x and mark the module initialized."""
        self.scale.copy_(self.initial_scale(x.detach()).clamp(min=SCALE_MIN))
        self._mark_ready()


class ElasticSign(Quantizer):
    """Signed one-bit quantizer, y = s·sign(x), sign(0) = +1.

    Gradients: ``quantizers.elastic_sign``, k = 1/√n. Initial s = 2·mean|x|.
    """

    def initial_scale(self, x: Tensor) -> Tensor:
        return 2 * x.abs().mean(dtype=torch.float32)

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        if not self.is_ready:
            self.initialize(x)
        scale = scale_ste(self.scale, (x.numel() * processes()) ** -0.5)
        return [elastic_sign(x, scale)], scale


class ElasticStep(Quantizer):
    """Unsigned one-bit quantizer, y = s·1[x > s/2].

    Gradients: ``quantizers.elastic_step``, k = 1/√n. Initial s = 4·mean|x|.
    """

    signed = False

    def initial_scale(self, x: Tensor) -> Tensor:
        return 4 * x.abs().mean(dtype=torch.float32)

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        if not self.is_ready:
            self.initialize(x)
        scale = scale_ste(self.scale, (x.numel() * processes()) ** -0.5)
        return [elastic_step(x, scale)], scale


class ElasticInteger(Quantizer):
    """Quantizer of b > 1 bits, y = s·clamp(round(x/s), Qn, Qp), unsigned ones after a shift by -min(x).

    Gradients: ``quantizers.elastic_integer``, k = 1/√(n·Qp). Initial s = 2·mean|x|/√Qp signed, 4·mean|x|/√Qp
    unsigned. Without ``offset`` unsigned ones are not shifted, so that negative numbers become 0 and an answer does
    not depend on the smallest number of the batch.
    """

    factored = False

    def __init__(self, bits: int = 8, signed: bool = True, offset: bool = True) -> None:
        super().__init__()
        if bits < 2:
            raise InputError(
                f"ElasticInteger needs at least 2 bits, not {bits}; use ElasticSign or ElasticStep for one"
            )
        self.bits, self.signed = bits, signed
        self.offset = offset and not signed
        self.low, self.high = integer_range(bits, signed)

    def initial_scale(self, x: Tensor) -> Tensor:
        return (2 if self.signed else 4) * x.abs().mean(dtype=torch.float32) / self.high**0.5

    def _factor(self, x: Tensor) -> float:
        """k = 1/√(n·Qp), after initialization where needed."""
        if not self.is_ready:
            self.initialize(x)
        return (x.numel() * processes() * self.high) ** -0.5

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the one plane of x and the scale; with an offset the plane stands for x - min(x)."""
        scale = scale_ste(self.scale, self._factor(x))
        x = x - x.detach().amin() if self.offset else x
        return [elastic_integer(x, scale, self.low, self.high)], scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the dequantized x, for unsigned ones with min(x) added back (a constant for the gradient)."""
        factor = self._factor(x)
        if not self.offset:
            return lsq(x, self.scale, self.low, self.high, factor)
        offset = x.detach().amin()
        return lsq(x - offset, self.scale, self.low, self.high, factor) + offset
