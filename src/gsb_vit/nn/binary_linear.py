"""The layers of a quantized transformer: the binary linear layer, its activation function, the 8-bit edges."""

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gsb_vit.errors import InputError

from . import exact, fused
from .fused.interface import InputSettings
from .fused.linear import fused_linear
from .input_quantizers import ElasticInteger, ElasticSign, ElasticStep, InitializedOnce, Planes, Quantizer
from .matmul import plane_product
from .quantize import SCALE_MIN, binary_scale, elastic_integer, integer_range, lsq, scale_ste
from .weight_quantizers import AnalyticWeight, WeightBits, WeightScale, weight_quantizer

__all__ = [
    "BinaryLinear",
    "ElasticInteger",
    "ElasticSign",
    "ElasticStep",
    "InitializedOnce",
    "QuantizedConv2d",
    "QuantizedLinear",
    "QuantizedWeight",
    "Quantizer",
    "RPReLU",
]


class RPReLU(nn.Module):
    """y = r(x - γ) + ζ with r(z) = z where z > 0 and β·z elsewhere, γ, β, ζ learned per channel (C,).

    x (..., C). Starts as PReLU does: γ = ζ = 0, β = 0.25. ReActNet, https://arxiv.org/abs/2003.03488.
    """

    def __init__(self, channels: int, device: Any = None) -> None:
        super().__init__()
        self.input_shift = nn.Parameter(torch.zeros(channels, device=device))
        self.slope = nn.Parameter(torch.full((channels,), 0.25, device=device))
        self.output_shift = nn.Parameter(torch.zeros(channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        input_shift, slope, output_shift = (p.to(x.dtype) for p in (self.input_shift, self.slope, self.output_shift))
        z = x - input_shift
        return torch.where(z > 0, z, slope * z) + output_shift


class BinaryLinear(nn.Linear):
    """Linear layer on one-bit inputs and weights: y = (s_x·s_w)·(B_x B_wᵀ) + b, the product on the integers.

    x (..., in) is clipped to ±``clip`` if given, ``shift`` (in,) is added (unless it is None: ``with_shift=False``),
    then ``input_quantizer`` makes the plane B_x: the one given, else ElasticSign where ``signed``, else ElasticStep.
    ``activations="full"`` leaves the inputs in floating point and ``weights="full"`` the weights; ``weight_bits`` and
    ``weight_scale`` choose the ``weight_quantizer``. Planes of many levels are multiplied dequantized while training
    (``Planes.factored``). ``output`` is applied to y last. Gradients of the parts: ``quantizers``.
    """

    shift: nn.Parameter  # None with with_shift=False, as torch has it for the bias

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
        weight_bits: WeightBits = 1,
        weight_scale: WeightScale = "row",
        input_quantizer: Planes | None = None,
        with_shift: bool = True,
        output: nn.Module | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.clip, self.activations, self.weights = clip, activations, weights
        shift = nn.Parameter(torch.zeros(in_features, device=device, dtype=dtype)) if with_shift else None
        self.register_parameter("shift", shift)
        if input_quantizer is None:
            input_quantizer = ElasticSign() if signed else ElasticStep()
        self.signed = input_quantizer.signed
        self.input_quantizer = input_quantizer.to(device=device) if activations == "binary" else None
        self.weight_quantizer = (
            weight_quantizer(weight_bits, weight_scale, out_features, device) if weights == "binary" else None
        )
        self.factored = all(part is None or part.factored for part in (self.input_quantizer, self.weight_quantizer))
        self.output = output

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
        """Return the integer plane (out, in), ±1 for one-bit weights, and the scale, (out, 1) or (1, 1) per layer.

        Raises InputError where the weights are not quantized.
        """
        if self.weight_quantizer is None:
            raise InputError("this layer has full-precision weights; only weights='binary' ones have a plane")
        return self.weight_quantizer.quantize(self.weight)

    def forward(self, x: Tensor, *, output_shift: Tensor | None = None) -> Tensor:
        """Return y (..., out); in evaluation ``output_shift`` (out,) may be given, which is added to b first."""
        y = self._fused(x) if self.runs_fused(x) else self._product(self._shifted(x), output_shift)
        return y if self.output is None else self.output(y)

    def output_bias(self, output_shift: Tensor | None = None) -> Tensor | None:
        """Return the bias b (out,), or None, with ``output_shift`` (out,) added if given."""
        if output_shift is None or self.bias is None:
            return self.bias if output_shift is None else output_shift
        return self.bias + output_shift

    def _shifted(self, x: Tensor) -> Tensor:
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        return x if self.shift is None else x + self.shift

    def runs_fused(self, x: Tensor) -> bool:
        """Whether this training step on x (..., in) runs in one function: ``fused.linear``."""
        inputs, weights = self.input_quantizer, self.weight_quantizer
        return (
            self.training
            and fused.kernels(x) is not None
            and isinstance(inputs, ElasticSign | ElasticStep)
            and bool(inputs.is_ready)
            and isinstance(weights, AnalyticWeight)
            and weights.bits == 1
            and self.in_features <= fused.WIDEST
            and fused.compute_dtype(x) is not None
            and all(p is None or fused.fits_parameter(p, x) for p in (self.weight, self.bias, self.shift))
        )

    def fused_inputs(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Return what the fused function needs: weight, bias, shift, scale of the inputs, scale of the rows."""
        inputs, weights = cast(Quantizer, self.input_quantizer), cast(AnalyticWeight, self.weight_quantizer)
        row_scale = binary_scale(self.weight.detach(), weights.per_row)
        return self.weight, self.bias, self.shift, inputs.scale, row_scale

    def _fused(self, x: Tensor) -> Tensor:
        settings = InputSettings(not self.signed, math.inf if self.clip is None else self.clip)
        return fused_linear(x, self.fused_inputs(), settings, cast(torch.dtype, fused.compute_dtype(x)))

    def _product(self, x: Tensor, output_shift: Tensor | None) -> Tensor:
        inputs, weights = self.input_quantizer, self.weight_quantizer
        if inputs is None or (self.training and not self.factored):
            weight = self.weight if weights is None else weights(self.weight)
            return F.linear(x if inputs is None else inputs(x), weight, self.bias)
        (plane,), scale = inputs.quantize(x)
        signs, weight_scale = (self.weight, None) if weights is None else weights.quantize(self.weight)
        y = plane_product(plane, signs)
        scale = scale if weight_scale is None else scale * weight_scale.squeeze(1)
        # The scale follows the product's dtype, so that under autocast the output is as narrow as nn.Linear's.
        y = y * scale.to(y.dtype)
        bias = self.output_bias(output_shift)
        return y if bias is None else y + bias.to(y.dtype)

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

    Where ``pixel_scaling`` says what a picture's pixels were scaled with (``convert.set_pixel_scaling``), evaluation
    gives the sums of docs/numerics.md over whole pixels, to which ``exact.PixelInputs`` adds the rest.
    """

    pixel_scaling: exact.Scaling | None = None

    @property
    def reads_patches(self) -> bool:
        """Whether this is the projection of three-channel patches that lie side by side."""
        return self.in_channels == 3 and self.stride == self.kernel_size

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
