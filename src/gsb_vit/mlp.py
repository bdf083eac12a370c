"""The MLP of a one-bit transformer: two binary linear layers with GELU between, trained as one function."""

import math
from typing import Any, cast

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.nn import functional as F  # noqa: N812

from . import fused
from .fused_linear import SIGN, InputSettings, LinearBackward, PackedWeight, forward_product, new_code, rescale
from .layers import BinaryLinear
from .quantizers import SCALE_MIN

BLOCK_BYTES = 5 << 18  # of what fc1 gives, in the backward pass: what is made again there stays small, and in the cache


class _FusedMlp(Function):
    """fc1, GELU and fc2. Keeps fc1's integer products, int16 each, and makes GELU and fc2's plane again from them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, second: InputSettings, dtype: torch.dtype, *layers: Any) -> Tensor:
        weight1, bias1, shift1, scale1, rows1, weight2, bias2, shift2, scale2, rows2 = layers
        rows = x.contiguous().view(-1, x.shape[-1])
        used1, used2 = (scale.clamp(min=SCALE_MIN) for scale in (scale1, scale2))
        packed1, packed2 = PackedWeight.pack(weight1, rows1), PackedWeight.pack(weight2, rows2)
        code, integers = new_code(rows), torch.empty(len(rows), len(weight1), dtype=torch.int16)
        forward_product(rows, shift1, used1, SIGN, packed1, integers=integers, code=code)
        scales = used1 * packed1.scale
        hidden = F.gelu(rescale(integers, scales, bias1, dtype))
        out = torch.empty(len(rows), len(weight2), dtype=dtype)
        forward_product(hidden, shift2, used2, second, packed2, used2 * packed2.scale, bias2, out)
        ctx.save_for_backward(
            *(code, integers, scales, bias1, shift2, used1, used2), *packed1.tensors(), *packed2.tensors()
        )
        ctx.second, ctx.dtype, ctx.x_shape, ctx.x_dtype = second, dtype, x.shape, x.dtype
        ctx.shapes = packed1.shape, packed2.shape
        ctx.has = [(bias1 is not None, shift1 is not None), (bias2 is not None, shift2 is not None)]
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        code, integers, scales, bias1, shift2, used1, used2, *packed = ctx.saved_tensors
        weight1, weight2 = (PackedWeight.restore(packed[3 * i : 3 * i + 3], ctx.shapes[i]) for i in range(2))
        grad = grad.contiguous().view(len(code), -1)
        one = LinearBackward(used1, SIGN, weight1, ctx.has[0])
        two = LinearBackward(used2, ctx.second, weight2, ctx.has[1])
        grad_x = torch.empty(ctx.x_shape, dtype=ctx.x_dtype)
        count = math.ceil(integers.numel() * ctx.dtype.itemsize / BLOCK_BYTES)
        blocks = (part.tensor_split(count) for part in (grad, code, integers, grad_x.view(len(code), -1)))
        for block, block_code, block_integers, out in zip(*blocks, strict=True):
            hidden = rescale(block_integers, scales, bias1, ctx.dtype)
            code2 = new_code(hidden)
            forward_product(F.gelu(hidden), shift2, used2, ctx.second, code=code2)
            inner = two.rows(block, code2)
            torch.ops.aten.gelu_backward.grad_input(inner, hidden, grad_input=inner)
            del hidden, code2
            out.copy_(one.rows(inner, block_code))
        return grad_x, None, None, *one.sum(), *two.sum()


class BinaryMlp(Mlp):
    """timm's Mlp of binary linear layers. Module by module, or in one function with the same values.

    The function keeps a third of the bytes for the backward pass. It needs the fused kernels, one-bit layers with an
    elastic sign before fc1 and an elastic step before fc2, plain GELU, no dropout and no hooks between the layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fc1, self.fc2
        if not (isinstance(first, BinaryLinear) and isinstance(second, BinaryLinear) and self._runs_fused(x)):
            return super().forward(x)
        settings = InputSettings(True, math.inf if second.clip is None else second.clip)
        return _FusedMlp.apply(x, settings, fused.compute_dtype(x), *first.fused_inputs(), *second.fused_inputs())

    def _runs_fused(self, x: Tensor) -> bool:
        first, second = cast(BinaryLinear, self.fc1), cast(BinaryLinear, self.fc2)
        return (
            first.runs_fused(x)
            and second.runs_fused(x)
            and (first.signed, second.signed, first.clip) == (True, False, None)
            and type(self.act) is nn.GELU
            and self.act.approximate == "none"
            and isinstance(self.norm, nn.Identity)
            and self.drop1.p == self.drop2.p == 0
            and first.output is None
            and second.output is None
            and not any(part._forward_hooks or part._forward_pre_hooks for part in (first, self.act, second))
        )
