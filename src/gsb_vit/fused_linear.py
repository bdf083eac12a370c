"""One-bit linear layers in fused kernels: shift, sign, packing, product, scale and bias in one pass over the inputs.

Forward products are counts of bits. The backward pass keeps three bytes per input: where the gradient passes, the
plane, and x/s to 1e-7 inside the clip region, which only the gradient of the scale reads.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from . import fused
from .products import matmul
from .quantizers import processes

CODE_BYTES = 3


@dataclass(frozen=True)
class InputSettings:
    """How inputs become a plane: ``step`` 1[x > s/2] instead of sign(x), after a clip to ±``clip``."""

    step: bool
    clip: float

    def factor(self, x: Tensor) -> float:
        """The LSQ factor 1/√n of the gradient of the scale."""
        return (x.numel() * processes()) ** -0.5


@dataclass(frozen=True)
class PackedWeight:
    """The plane of a weight matrix (out, in) as bits, the sums of its rows, and the scale of each row (out,)."""

    words: Tensor
    sums: Tensor
    scale: Tensor
    shape: torch.Size

    @classmethod
    def pack(cls, weight: Tensor, scale: Tensor) -> "PackedWeight":
        """Pack sign(W - mean W); scale (out, 1) or (1, 1)."""
        native, (rows, width) = fused.kernels(), weight.shape
        words = torch.empty(native.packed_words(rows, width), dtype=torch.int64)
        sums = torch.empty(-(-rows // 16) * 16, dtype=torch.int32)
        mean = weight.mean()
        native.pack_weight(
            weight.data_ptr(), rows, width, mean.data_ptr(), words.data_ptr(), sums.data_ptr(), torch.get_num_threads()
        )
        return cls(words, sums, scale.squeeze(1).expand(rows).contiguous(), weight.shape)

    def expand(self, dtype: torch.dtype) -> Tensor:
        """Return s_w·B (out, in)."""
        out = torch.empty(self.shape, dtype=dtype)
        fused.kernels().expand_weight(
            self.words.data_ptr(),
            *self.shape,
            self.scale.data_ptr(),
            out.data_ptr(),
            fused.is_half(out),
            torch.get_num_threads(),
        )
        return out


def forward_product(
    x: Tensor,
    shift: Tensor | None,
    scale: Tensor,
    settings: InputSettings,
    weight: PackedWeight | None = None,
    row_scale: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    integers: Tensor | None = None,
    code: Tensor | None = None,
) -> None:
    """Quantize x (M, in) and multiply: writes ``out`` (M, out), ``integers`` (M, out), ``code`` (M, in, 3) where given."""
    a = fused.address
    rows, width = x.shape
    words, sums, channels = (0, 0, 0) if weight is None else (a(weight.words), a(weight.sums), weight.shape[0])
    fused.kernels().linear_forward(
        *(a(x), fused.is_half(x), rows, width, a(shift), settings.clip, a(scale), settings.step),
        *(words, sums, channels, a(row_scale), a(bias), a(out), fused.is_half(out), a(integers), a(code)),
        torch.get_num_threads(),
    )


def inputs_backward(
    grad: Tensor, code: Tensor, scale: Tensor, settings: InputSettings, with_shift: bool
) -> tuple[Tensor, Tensor | None, float]:
    """From the gradient of s·B (M, in), which becomes that of x in place: s·B, the gradients of shift and scale."""
    rows, width, _ = code.shape
    dequantized = torch.empty_like(grad)
    shift_grad = torch.empty(width) if with_shift else None
    scale_grad = fused.kernels().inputs_backward(
        *(code.data_ptr(), rows, width, scale.data_ptr(), settings.step, grad.data_ptr(), dequantized.data_ptr()),
        *(fused.is_half(grad), fused.address(shift_grad), torch.get_num_threads()),
    )
    return dequantized, shift_grad, scale_grad


class _FusedLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shift: Tensor | None,
        scale: Tensor,
        row_scale: Tensor,
        settings: InputSettings,
        dtype: torch.dtype,
    ) -> Tensor:
        rows = x.contiguous().view(-1, x.shape[-1])
        packed = PackedWeight.pack(weight, row_scale)
        out = torch.empty(len(rows), len(weight), dtype=dtype)
        code = torch.empty((*rows.shape, CODE_BYTES), dtype=torch.uint8)
        used = scale.clamp(min=1e-5)
        forward_product(rows, shift, used, settings, packed, used * packed.scale, bias, out, code=code)
        ctx.save_for_backward(code, used, packed.words, packed.sums, packed.scale)
        ctx.settings, ctx.x_shape, ctx.x_dtype, ctx.factor = settings, x.shape, x.dtype, settings.factor(x)
        ctx.weight_shape, ctx.has = weight.shape, (bias is not None, shift is not None)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        code, scale, *packed = ctx.saved_tensors
        has_bias, has_shift = ctx.has
        grad = grad.contiguous().view(-1, ctx.weight_shape[0])
        grad_x = matmul(grad, PackedWeight(*packed, ctx.weight_shape).expand(grad.dtype))
        dequantized, grad_shift, grad_scale = inputs_backward(grad_x, code, scale, ctx.settings, has_shift)
        grad_weight = matmul(grad.t(), dequantized).float()
        grad_bias = grad.sum(0, dtype=torch.float32) if has_bias else None
        scale_grad = torch.tensor(grad_scale * ctx.factor)
        grad_x = grad_x.view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, grad_weight, grad_bias, grad_shift, scale_grad, None, None, None


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    scale: Tensor,
    row_scale: Tensor,
    step: bool,
    clip: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """Return y = (s_x·s_w)·(B_x B_wᵀ) + b of x (..., in), B_x and its gradients as ``elastic_sign``, ``elastic_step``.

    B_w = sign(W - mean W), row_scale (out, 1) or (1, 1) constant. The values are those of the unfused layer; in
    bfloat16 the product is rounded once, at the end.
    """
    settings = InputSettings(step, math.inf if clip is None else clip)
    return _FusedLinear.apply(x, weight, bias, shift, scale, row_scale, settings, dtype)
