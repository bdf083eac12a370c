"""Superposed attention as one autograd function: everything between qkv and proj, as ``GSBAttention`` defines it.

The attention matrix is made again in the backward pass instead of being kept, so that besides the integer products
behind qkv only the limits of the groups are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from ..quantize import SCALE_MIN, processes, whole_batch_counts
from . import kernels
from .interface import SIGN, CoreSettings, CoreTensors, Inputs, Kernels, PackedWeight
from .linear import LinearBackward

LAYER_TENSORS = 5  # weight, bias, shift, scale of the inputs, scale of the rows


def _scale_gradients(sums: Tensor, members: Tensor, scales: Sequence[Tensor], qkv: Tensor, heads: int) -> list[Tensor]:
    """The gradients of all scales, in their shapes, from ``CoreGradients`` and the factors k of LSQ."""
    batch, tokens, width = qkv.shape
    vectors = (batch * tokens * (width // 3) * processes()) ** -0.5
    matrix = (batch * heads * tokens * tokens * processes()) ** -0.5
    sizes = [scale.numel() for scale in scales]
    factors = whole_batch_counts(members).clamp(min=1).to(torch.float32).rsqrt()
    attention, value = factors.split(sizes[2:])
    attention[0], value[0] = matrix, vectors
    parts = sums.split(sizes)
    scaled = [parts[0] * vectors, parts[1] * vectors, parts[2] * attention, parts[3] * value]
    return [part.view(scale.shape) for part, scale in zip(scaled, scales, strict=True)]


@dataclass
class LayerInputs:
    """The one-bit layer qkv around the core: x's shape and dtype, the dtype of its outputs."""

    by: Kernels
    x_shape: torch.Size
    x_dtype: torch.dtype
    dtype: torch.dtype
    weight_shape: torch.Size = field(default_factory=torch.Size)
    has: tuple[bool, bool] = (False, False)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, shift: Tensor | None, scale: Tensor, row_scale: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """qkv (B, N, 3C), and what to keep."""
        rows = x.contiguous().view(-1, x.shape[-1])
        packed, used = self.by.pack_weight(weight, row_scale), scale.clamp(min=SCALE_MIN)
        integers, code = self.by.multiply_integers(Inputs(rows, shift, used, SIGN), packed, self.dtype)
        self.weight_shape, self.has = packed.shape, (bias is not None, shift is not None)
        kept = [code, integers, used * packed.scale, bias, used, *packed.tensors()]
        return self.again(kept), kept

    def again(self, kept: list[Any]) -> Tensor:
        """qkv (B, N, 3C) from what was kept."""
        _, integers, scales, bias, *_ = kept
        return self.by.rescale(integers, scales, bias, self.dtype).view(*self.x_shape[:-1], -1)

    def backward(self, grad: Tensor, kept: list[Any]) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of x, and of weight, bias, shift, scale and row_scale."""
        code, _, _, _, used, *packed = kept
        grad = grad.view(-1, grad.shape[-1])
        layer = LinearBackward(self.by, used, SIGN, PackedWeight.restore(packed, self.weight_shape), self.has)
        return layer.rows(grad, code).view(self.x_shape).to(self.x_dtype), layer.sum()


class _FusedAttention(Function):
    """qkv and the core. Of qkv's outputs the integer products are kept, int16 each, or, of another layer, all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, settings: CoreSettings, layer: LayerInputs | None, by: Kernels, *tensors: Any
    ) -> Tensor:
        *shifts, query, key, attention, value, bias = tensors[LAYER_TENSORS:]
        scales = [scale.clamp(min=SCALE_MIN) for scale in (query, key, attention, value)]
        if layer is None:
            qkv = x.contiguous()
            kept: list[Tensor | None] = [qkv]
        else:
            qkv, kept = layer.forward(x, *tensors[:LAYER_TENSORS])
        bias = None if bias is None else bias.contiguous()
        y, limits, value_limits = by.attend(CoreTensors(qkv, shifts, scales, bias), settings)
        ctx.save_for_backward(limits, value_limits, bias, *shifts, *scales, *kept)
        ctx.settings, ctx.layer, ctx.by = settings, layer, by
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        limits, value_limits, bias, *rest = ctx.saved_tensors
        shifts, scales, kept = rest[:3], rest[3:7], rest[7:]
        qkv = kept[0] if ctx.layer is None else ctx.layer.again(kept)
        found = ctx.by.attend_backward(  # in place where qkv was made again and nobody else has it
            *(CoreTensors(qkv, shifts, scales, bias), ctx.settings, (limits, value_limits), grad.contiguous()),
            in_place=ctx.layer is not None,
        )
        scale_grads = _scale_gradients(found.scale_sums, found.members, scales, qkv, ctx.settings.heads)
        grads = [*found.shifts, *scale_grads, found.bias]
        if ctx.layer is None:
            return found.qkv, None, None, None, *[None] * LAYER_TENSORS, *grads
        grad_x, layer_grads = ctx.layer.backward(found.qkv, kept)
        return grad_x, None, None, None, *layer_grads, *grads


def fused_attention(
    x: Tensor,
    settings: CoreSettings,
    dtype: torch.dtype,
    layer: Sequence[Tensor | None] | None,
    shifts: Sequence[Tensor | None],
    scales: Sequence[Tensor],
    bias: Tensor | None,
) -> Tensor:
    """Return y = A_b V_b (B, N, C), C = heads·d, d a multiple of 16, of x (B, N, C) through the one-bit layer qkv.

    ``layer``: what ``BinaryLinear.fused_inputs`` says of qkv; where it is None x is qkv (B, N, 3C). ``shifts``
    (h, 1, d) and ``scales`` of queries, keys (), attention and Value (G,), bias (h, N, N). Planes and gradients are
    those of ``elastic_sign``, ``attention_superposition`` and ``value_superposition``, sums in another order. Only
    where ``kernels(x)`` are.
    """
    by = cast(Kernels, kernels(x))
    inputs = None if layer is None else LayerInputs(by, x.shape, x.dtype, dtype)
    tensors = layer or [None] * LAYER_TENSORS
    return _FusedAttention.apply(x, settings, inputs, by, *tensors, *shifts, *scales, bias)
