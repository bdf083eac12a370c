"""One-bit linear layers in fused kernels: shift, sign, packing, product, scale and bias in one pass over the inputs.

Forward products are counts of bits. The backward pass keeps three bytes per input: where the gradient passes, the
plane, and x/s to 1e-7 inside the clip region, which only the gradient of the scale reads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from . import fused
from .products import matmul
from .quantizers import SCALE_MIN, processes

CODE_BYTES = 3  # of an input; native/train/inputs.h says how they lie in a row


@dataclass(frozen=True)
class InputSettings:
    """How inputs become a plane: ``step`` 1[x > s/2] instead of sign(x), after a clip to ±``clip``."""

    step: bool
    clip: float = math.inf


SIGN = InputSettings(step=False)


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
        native, (rows, width) = fused.native(), weight.shape
        words = torch.empty(native.packed_words(rows, width), dtype=torch.int64)
        sums = torch.empty(-(-rows // 16) * 16, dtype=torch.int32)
        mean = weight.mean()
        native.pack_weight(
            weight.data_ptr(), rows, width, mean.data_ptr(), words.data_ptr(), sums.data_ptr(), torch.get_num_threads()
        )
        return cls(words, sums, scale.squeeze(1).expand(rows).contiguous(), weight.shape)

    @classmethod
    def restore(cls, tensors: Sequence[Tensor], shape: torch.Size) -> "PackedWeight":
        """From what ``tensors`` gave."""
        words, sums, scale = tensors
        return cls(words, sums, scale, shape)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What to save for the backward pass."""
        return self.words, self.sums, self.scale

    def expand(self, dtype: torch.dtype) -> Tensor:
        """Return s_w·B (out, in)."""
        out = torch.empty(self.shape, dtype=dtype)
        fused.native().expand_weight(
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
    """Quantize x (M, in), multiply, and write what is given: out and integers (M, out), code (M, 3·in)."""
    a = fused.address
    rows, width = x.shape
    words, sums, channels = (0, 0, 0) if weight is None else (a(weight.words), a(weight.sums), weight.shape[0])
    fused.native().linear_forward(
        *(a(x), fused.is_half(x), rows, width, a(shift), settings.clip, a(scale), settings.step),
        *(words, sums, channels, a(row_scale), a(bias), a(out), fused.is_half(out), a(integers), a(code)),
        torch.get_num_threads(),
    )


def rescale(integers: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return y = integers·scale + bias (M, out) of integers (M, out), scale and bias (out,)."""
    out = torch.empty(integers.shape, dtype=dtype)
    fused.native().rescale(
        *(integers.data_ptr(), *integers.shape, scale.data_ptr(), fused.address(bias), out.data_ptr()),
        *(fused.is_half(out), torch.get_num_threads()),
    )
    return out


def inputs_backward(
    grad: Tensor, code: Tensor, scale: Tensor, settings: InputSettings, with_shift: bool
) -> tuple[Tensor, Tensor | None, float]:
    """From the gradient of s·B (M, in), which becomes that of x in place: s·B, the gradients of shift and scale."""
    rows, width = grad.shape
    dequantized = torch.empty_like(grad)
    shift_grad = torch.empty(width) if with_shift else None
    scale_grad = fused.native().inputs_backward(
        *(code.data_ptr(), rows, width, scale.data_ptr(), settings.step, grad.data_ptr(), dequantized.data_ptr()),
        *(fused.is_half(grad), fused.address(shift_grad), torch.get_num_threads()),
    )
    return dequantized, shift_grad, scale_grad


class LinearBackward:
    """The gradients of one layer, over blocks of its rows one after the other; ``has`` a bias, a shift."""

    def __init__(self, scale: Tensor, settings: InputSettings, packed: PackedWeight, has: tuple[bool, bool]) -> None:
        self.scale, self.settings, self.packed, self.has = scale, settings, packed, has
        self.sums: list[Tensor | None] = []
        self.inputs = 0

    def rows(self, grad: Tensor, code: Tensor) -> Tensor:
        """Add a block's share, from its code (m, 3·in) and its gradient of y (m, out); return that of x (m, in)."""
        grad_x = matmul(grad, self.packed.expand(grad.dtype))
        dequantized, grad_shift, grad_scale = inputs_backward(grad_x, code, self.scale, self.settings, self.has[1])
        grad_weight = matmul(grad.t(), dequantized).float()
        grad_bias = grad.sum(0, dtype=torch.float32) if self.has[0] else None
        self.inputs += grad_x.numel()
        block = [grad_weight, grad_bias, grad_shift, torch.tensor(grad_scale)]
        if not self.sums:
            self.sums = block
            return grad_x
        for total, part in zip(self.sums, block, strict=True):
            if total is not None and part is not None:
                total += part
        return grad_x

    def sum(self) -> list[Tensor | None]:
        """The gradients of weight, bias, shift and scale, and None for the scale of the rows, which is a constant."""
        weight, bias, shift, scale = self.sums
        return [weight, bias, shift, cast(Tensor, scale) * (self.inputs * processes()) ** -0.5, None]


def new_code(rows: Tensor) -> Tensor:
    """Return room for the codes of inputs (M, in): (M, 3·in), so that blocks of rows are slices."""
    return torch.empty((len(rows), CODE_BYTES * rows.shape[1]), dtype=torch.uint8)


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
        code, used = new_code(rows), scale.clamp(min=SCALE_MIN)
        forward_product(rows, shift, used, settings, packed, used * packed.scale, bias, out, code=code)
        ctx.save_for_backward(code, used, *packed.tensors())
        ctx.settings, ctx.x_shape, ctx.x_dtype = settings, x.shape, x.dtype
        ctx.weight_shape, ctx.has = weight.shape, (bias is not None, shift is not None)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        code, scale, *packed = ctx.saved_tensors
        grad = grad.contiguous().view(-1, ctx.weight_shape[0])
        weight = PackedWeight.restore(packed, ctx.weight_shape)
        layer = LinearBackward(scale, ctx.settings, weight, ctx.has)
        grad_x = layer.rows(grad, code).view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, *layer.sum(), None, None


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    scale: Tensor,
    row_scale: Tensor,
    settings: InputSettings,
    dtype: torch.dtype,
) -> Tensor:
    """Return y = (s_x·s_w)·(B_x B_wᵀ) + b of x (..., in), B_x and its gradients as ``elastic_sign``, ``elastic_step``.

    B_w = sign(W - mean W), row_scale (out, 1) or (1, 1) constant. The values are those of the unfused layer; in
    bfloat16 the product is rounded once, at the end.
    """
    return _FusedLinear.apply(x, weight, bias, shift, scale, row_scale, settings, dtype)
