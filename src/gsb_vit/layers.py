"""Modules that own a quantizer's learned state: input quantizers, the binary linear layer, the 8-bit edges.

Scales are set from the first batch seen, or explicitly by ``convert.initialize_scales``. Whether that has happened is
the saved buffer ``initialized``, mirrored in a Python attribute so that a forward pass never branches on data.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .errors import InputError
from .quantizers import (
    SCALE_MIN,
    binary_weight,
    elastic_integer,
    elastic_sign,
    elastic_step,
    integer_range,
    lsq,
    processes,
    scale_ste,
)


class InitializedOnce(nn.Module):
    """A module with a saved ``initialized`` flag; mix in before the torch layer, if any."""

    initialized: Tensor

    def _add_flag(self) -> None:
        self.register_buffer("initialized", torch.tensor(False))
        self.is_ready = False

    def _mark_ready(self) -> None:
        self.initialized.fill_(True)
        self.is_ready = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.initialized.is_meta:
            self.is_ready = bool(self.initialized)


class Quantizer(InitializedOnce):
    """Base of the input quantizers: a Parameter ``scale`` (() or (G,)) and its ``initialized`` state."""

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

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the integer planes of x and the scales in use."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the dequantized x."""
        (plane,), scale = self.quantize(x)
        return plane * scale


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
    unsigned.
    """

    def __init__(self, bits: int = 8, signed: bool = True) -> None:
        super().__init__()
        if bits < 2:
            raise InputError(
                f"ElasticInteger needs at least 2 bits, not {bits}; use ElasticSign or ElasticStep for one"
            )
        self.bits, self.signed = bits, signed
        self.low, self.high = integer_range(bits, signed)

    def initial_scale(self, x: Tensor) -> Tensor:
        return (2 if self.signed else 4) * x.abs().mean(dtype=torch.float32) / self.high**0.5

    def _factor(self, x: Tensor) -> float:
        """k = 1/√(n·Qp), after initialization where needed."""
        if not self.is_ready:
            self.initialize(x)
        return (x.numel() * processes() * self.high) ** -0.5

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the one plane of x and the scale; unsigned planes stand for x - min(x)."""
        scale = scale_ste(self.scale, self._factor(x))
        x = x if self.signed else x - x.detach().amin()
        return [elastic_integer(x, scale, self.low, self.high)], scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the dequantized x, for unsigned ones with min(x) added back (a constant for the gradient)."""
        factor = self._factor(x)
        if self.signed:
            return lsq(x, self.scale, self.low, self.high, factor)
        offset = x.detach().amin()
        return lsq(x - offset, self.scale, self.low, self.high, factor) + offset


class BinaryLinear(nn.Linear):
    """Linear layer on one-bit inputs and weights: y = (s_x·s_w)·(B_x B_wᵀ) + b, the product on the integers.

    x (..., in) is clipped to ±``clip`` if given, ``shift`` (in,) is added, then ``input_quantizer`` makes the plane
    B_x: ElasticSign where ``signed``, else ElasticStep. ``activations="full"`` leaves the inputs in floating point
    and ``weights="full"`` the weights. Gradients of the parts: ``quantizers``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        signed: bool = True,
        clip: float | None = None,
        activations: Literal["binary", "full"] = "binary",
        weights: Literal["binary", "full"] = "binary",
        weight_scale: Literal["row", "layer"] = "row",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.signed, self.clip = signed, clip
        self.activations, self.weights, self.weight_scale_per = activations, weights, weight_scale
        self.shift = nn.Parameter(torch.zeros(in_features, device=device, dtype=dtype))
        self.input_quantizer: Quantizer | None = None
        if activations == "binary":
            self.input_quantizer = (ElasticSign() if signed else ElasticStep()).to(device=device)

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> "BinaryLinear":
        """Return a binary layer that takes over the weight and bias of a linear layer."""
        weight = linear.weight
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
            **options,
        )
        layer.weight, layer.bias = weight, linear.bias
        return layer.train(linear.training)

    def binary_weight(self) -> tuple[Tensor, Tensor]:
        """Return the signs (out, in) in ±1 and the scale, (out, 1) or (1, 1) per layer."""
        return binary_weight(self.weight, self.weight_scale_per == "row")

    def forward(self, x: Tensor) -> Tensor:
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        x = x + self.shift
        signs, weight_scale = self.binary_weight() if self.weights == "binary" else (self.weight, None)
        if self.input_quantizer is None:
            return F.linear(x, signs if weight_scale is None else signs * weight_scale, self.bias)
        (plane,), scale = self.input_quantizer.quantize(x)
        y = F.linear(plane, signs)
        scale = scale if weight_scale is None else scale * weight_scale.squeeze(1)
        # The scale follows the product's dtype, so that under autocast the output is as narrow as nn.Linear's.
        y = y * scale.to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weights}, activations={self.activations}, signed={self.signed}"


class QuantizedWeight(InitializedOnce):
    """Mixin for a torch layer with 8-bit LSQ weights: W_q = s·clamp(round(W/s), -128, 127).

    Gradients: ``quantizers.elastic_integer``, k = 1/√(n(W)·127). Initial s = 2·mean|W|/√127, the mean over the whole
    tensor also where every output channel has its own s. LSQ, https://arxiv.org/abs/1902.08153.
    """

    weight: Tensor
    weight_scale: nn.Parameter

    def _add_weight_scale(self, shape: tuple[int, ...]) -> None:
        self.low, self.high = integer_range(8)
        self.weight_scale = nn.Parameter(torch.ones(shape, device=self.weight.device))
        self._add_flag()
        self.initialized = self.initialized.to(self.weight.device)

    @torch.no_grad()
    def initialize(self) -> None:
        """Set the weight scale from the weights as they are now and mark the module initialized."""
        self.weight_scale.copy_((2 * self.weight.abs().mean() / self.high**0.5).clamp(min=SCALE_MIN))
        self._mark_ready()

    def _factor(self) -> float:
        """k = 1/√(n(W)·127), after initialization where needed."""
        if not self.is_ready:
            self.initialize()
        return (self.weight.numel() * self.high) ** -0.5

    def _broadcast(self, scale: Tensor) -> Tensor:
        return scale.view(-1, *[1] * (self.weight.dim() - 1)) if scale.dim() else scale

    def quantized_weight(self) -> tuple[Tensor, Tensor]:
        """Return the weights as whole numbers in [-128, 127] and the scales in use, shaped like ``weight_scale``."""
        scale = scale_ste(self.weight_scale, self._factor())
        return elastic_integer(self.weight, self._broadcast(scale), self.low, self.high), scale

    def dequantized_weight(self) -> Tensor:
        """Return W_q, shaped like the weight."""
        factor = self._factor()
        return lsq(self.weight, self._broadcast(self.weight_scale), self.low, self.high, factor)


class QuantizedConv2d(QuantizedWeight, nn.Conv2d):
    """Convolution with 8-bit weights, a scale per output channel; inputs stay in floating point."""

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "QuantizedConv2d":
        """Return a quantized convolution that takes over the weight and bias of conv.

        Raises InputError unless conv is a plain patch projection: no padding, dilation or groups.
        """
        if conv.groups != 1 or conv.padding not in ((0, 0), "valid") or conv.dilation != (1, 1):
            raise InputError(
                f"the patch embedding {conv} has padding, dilation or groups; only a plain patch projection can be "
                "quantized: pass edge_bits=32 to leave it in full precision"
            )
        weight = conv.weight
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            cast(tuple[int, int], conv.kernel_size),
            cast(tuple[int, int], conv.stride),
            bias=conv.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        layer.weight, layer.bias = weight, conv.bias
        layer._add_weight_scale((conv.out_channels,))
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dequantized_weight(), self.bias, self.stride)


class QuantizedLinear(QuantizedWeight, nn.Linear):
    """Linear layer with 8-bit weights (one scale) and 8-bit signed inputs after a ``shift`` (in,).

    y = (s_x·s_w)·(Q_x Q_wᵀ) + b, in eval mode with the product on the integers, in training mode on the dequantized
    tensors (one function each for value and gradient, ``quantizers.lsq``).
    """

    shift: nn.Parameter
    input_quantizer: ElasticInteger

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "QuantizedLinear":
        """Return a quantized layer that takes over the weight and bias of a linear layer."""
        weight = linear.weight
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, device=weight.device, dtype=weight.dtype
        )
        layer.weight, layer.bias = weight, linear.bias
        layer.shift = nn.Parameter(weight.new_zeros(linear.in_features))
        layer.input_quantizer = ElasticInteger(8).to(device=weight.device)
        layer._add_weight_scale(())
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shift
        if self.training:
            return F.linear(self.input_quantizer(x), self.dequantized_weight(), self.bias)
        weights, weight_scale = self.quantized_weight()
        (plane,), scale = self.input_quantizer.quantize(x)
        y = F.linear(plane, weights)
        y = y * (scale * weight_scale).to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)
