"""The layers of a quantized transformer: the binary linear layer, its activation function, the 8-bit edges."""

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gsb_vit.errors import InputError

from . import fused
from .fused.interface import InputSettings
from .fused.linear import fused_linear
from .input_quantizers import ElasticSign, ElasticStep, Planes, Quantizer
from .matmul import plane_product
from .quantize import binary_scale
from .weight_quantizers import AnalyticWeight, WeightBits, WeightScale, weight_quantizer


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
