"""The edges in eight bits: patch embedding and heads."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gsb_vit.errors import InputError

from . import exact
from .input_quantizers import ElasticInteger, InitializedOnce
from .quantize import SCALE_MIN, elastic_integer, integer_range, lsq, scale_ste


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
        self._add_flag(self.weight.device)

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
    """Convolution with 8-bit weights, a scale per output channel; inputs stay in floating point.

    Where ``pixel_scaling`` says what a picture's pixels were scaled with (``set_pixel_scaling``), evaluation
    gives the sums of docs/numerics.md over whole pixels, to which ``PixelInputs`` adds the rest.
    """

    pixel_scaling: exact.Scaling | None = None

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
        if self.pixel_scaling is not None and self.is_ready and not self.training and exact.applies(x):
            pixels = exact.grey_levels(x, self.pixel_scaling)
            if pixels is not None:
                weight, scale = (part.detach() for part in self.quantized_weight())
                sums = exact.patch_sums(pixels, weight, exact.pixel_scale(scale, self.pixel_scaling[1]))
                return exact.in_order(sums.double(), lambda: self._convolve(x).double())
        return self._convolve(x)

    @torch.no_grad()
    def position_offset(self, scaling: exact.Scaling) -> Tensor:
        """What ``position`` holds besides the position embedding, (C), float64.

        bias[o] − s_w[o]·Σ_c (mean_c/std_c)·Σ w[o,c,·]: the normalisation of the pixels.
        """
        weight, scale = (part.double() for part in self.quantized_weight())
        mean, std = scaling
        sums = weight.sum(dim=(2, 3))
        offset = -scale * sum(sums[:, c] * (mean[c] / std[c]) for c in range(3))
        return offset if self.bias is None else self.bias.double() + offset

    def _convolve(self, x: Tensor) -> Tensor:
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
