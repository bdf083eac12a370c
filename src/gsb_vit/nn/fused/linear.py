"""One-bit linear layers as one autograd function: shift, sign, product, scale and bias.

The backward pass keeps what ``Kernels.encode`` makes of the inputs: where the gradient passes, the plane, and x/s
inside the clip region, which only the gradient of the scale reads.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from ..quantize import SCALE_MIN, processes
from . import kernels
from .interface import Inputs, InputSettings, Kernels, PackedWeight


class LinearBackward:
    """The gradients of one layer, over blocks of its rows one after the other; ``has`` a bias, a shift."""

    def __init__(
        self, by: Kernels, scale: Tensor, settings: InputSettings, packed: PackedWeight, has: tuple[bool, bool]
    ) -> None:
        self.by, self.scale, self.settings, self.packed, self.has = by, scale, settings, packed, has
        self.sums: list[Tensor | None] = []
        self.inputs = 0

    def rows(self, grad: Tensor, code: Tensor) -> Tensor:
        """Add a block's share, from its code (m, …) and its gradient of y (m, out); return that of x (m, in)."""
        grad_x = self.by.matmul(grad, self.by.expand_weight(self.packed, grad.dtype))
        found = self.by.input_gradients(grad_x, code, self.scale, self.settings, self.has[1])
        grad_weight = self.by.matmul(grad.t(), found.dequantized).float()
        grad_bias = grad.sum(0, dtype=torch.float32) if self.has[0] else None
        self.inputs += grad_x.numel()
        block = [grad_weight, grad_bias, found.shift, found.scale]
        if not self.sums:
            self.sums = block
            return found.x
        for total, part in zip(self.sums, block, strict=True):
            if total is not None and part is not None:
                total += part
        return found.x

    def sum(self) -> list[Tensor | None]:
        """The gradients of weight, bias, shift and scale, and None for the scale of the rows, which is a constant."""
        weight, bias, shift, scale = self.sums
        return [weight, bias, shift, cast(Tensor, scale) * (self.inputs * processes()) ** -0.5, None]


class _FusedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: InputSettings, dtype: torch.dtype, by: Kernels, *layer: Any) -> Tensor:
        weight, bias, shift, scale, row_scale = layer
        rows = x.contiguous().view(-1, x.shape[-1])
        packed, used = by.pack_weight(weight, row_scale), scale.clamp(min=SCALE_MIN)
        out, code = by.multiply(Inputs(rows, shift, used, settings), packed, bias, dtype)
        ctx.save_for_backward(code, used, *packed.tensors())
        ctx.settings, ctx.by, ctx.x_shape, ctx.x_dtype = settings, by, x.shape, x.dtype
        ctx.weight_shape, ctx.has = weight.shape, (bias is not None, shift is not None)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        code, scale, *packed = ctx.saved_tensors
        grad = grad.contiguous().view(-1, ctx.weight_shape[0])
        weight = PackedWeight.restore(packed, ctx.weight_shape)
        layer = LinearBackward(ctx.by, scale, ctx.settings, weight, ctx.has)
        grad_x = layer.rows(grad, code).view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, None, None, None, *layer.sum()


def fused_linear(x: Tensor, layer: Sequence[Tensor | None], settings: InputSettings, dtype: torch.dtype) -> Tensor:
    """Return y = (s_x·s_w)·(B_x B_wᵀ) + b of x (..., in), B_x and its gradients as ``elastic_sign``, ``elastic_step``.

    ``layer``: weight (out, in), bias (out,), shift (in,), input scale (), scale of the rows (out, 1) or (1, 1), a
    constant; bias and shift may be None. B_w = sign(W - mean W). The values are those of the layer module by module; in
    bfloat16 the extension's kernels round the product once, at the end. Only where ``kernels(x)`` are.
    """
    return _FusedLinear.apply(x, settings, dtype, kernels(x), *layer)
