"""The MLP of a one-bit transformer as one autograd function: fc1, GELU and fc2."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F  # noqa: N812

from ..quantize import SCALE_MIN
from .interface import SIGN, Inputs, InputSettings, Kernels, PackedWeight
from .linear import LinearBackward


class FusedMlp(Function):
    """fc1, GELU and fc2. Keeps fc1's integer products, int16 each, and makes GELU and fc2's plane again from them.

    Takes x (..., C), how fc2's inputs become a plane, the dtype of products, the kernels, and of each layer what
    ``BinaryLinear.fused_inputs`` says.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, second: InputSettings, dtype: torch.dtype, by: Kernels, *layers: Any) -> Tensor:
        weight1, bias1, shift1, scale1, rows1, weight2, bias2, shift2, scale2, rows2 = layers
        rows = x.contiguous().view(-1, x.shape[-1])
        used1, used2 = (scale.clamp(min=SCALE_MIN) for scale in (scale1, scale2))
        packed1, packed2 = by.pack_weight(weight1, rows1), by.pack_weight(weight2, rows2)
        integers, code = by.multiply_integers(Inputs(rows, shift1, used1, SIGN), packed1, dtype)
        scales = used1 * packed1.scale
        hidden = F.gelu(by.rescale(integers, scales, bias1, dtype))
        out, _ = by.multiply(Inputs(hidden, shift2, used2, second), packed2, bias2, dtype, with_code=False)
        ctx.save_for_backward(
            *(code, integers, scales, bias1, shift2, used1, used2), *packed1.tensors(), *packed2.tensors()
        )
        ctx.second, ctx.dtype, ctx.by, ctx.x_shape, ctx.x_dtype = second, dtype, by, x.shape, x.dtype
        ctx.shapes = packed1.shape, packed2.shape
        ctx.has = [(bias1 is not None, shift1 is not None), (bias2 is not None, shift2 is not None)]
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        code, integers, scales, bias1, shift2, used1, used2, *packed = ctx.saved_tensors
        weight1, weight2 = (PackedWeight.restore(packed[3 * i : 3 * i + 3], ctx.shapes[i]) for i in range(2))
        grad = grad.contiguous().view(len(code), -1)
        one = LinearBackward(ctx.by, used1, SIGN, weight1, ctx.has[0])
        two = LinearBackward(ctx.by, used2, ctx.second, weight2, ctx.has[1])
        grad_x = grad.new_empty(ctx.x_shape, dtype=ctx.x_dtype)
        count = math.ceil(integers.numel() * ctx.dtype.itemsize / ctx.by.block_bytes)
        blocks = (part.tensor_split(count) for part in (grad, code, integers, grad_x.view(len(code), -1)))
        for block, block_code, block_integers, out in zip(*blocks, strict=True):
            hidden = ctx.by.rescale(block_integers, scales, bias1, ctx.dtype)
            code2 = ctx.by.encode(Inputs(F.gelu(hidden), shift2, used2, ctx.second))
            inner = two.rows(block, code2)
            torch.ops.aten.gelu_backward.grad_input(inner, hidden, grad_input=inner)
            del hidden, code2
            out.copy_(one.rows(inner, block_code))
        return grad_x, None, None, None, *one.sum(), *two.sum()
