"""Superposed attention in fused kernels: everything between qkv and proj, as ``GSBAttention`` defines it.

Queries and keys are multiplied as bits; the attention matrix is made again in the backward pass instead of being kept,
so that besides the integer products behind qkv only the limits of the groups are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from . import fused
from .fused_linear import SIGN, LinearBackward, PackedWeight, forward_product, new_code, rescale
from .quantizers import SCALE_MIN, processes, whole_batch_counts

LimitsOf = Callable[[Tensor], Tensor]
LAYER_TENSORS = 5  # weight, bias, shift, scale of the inputs, scale of the rows


@dataclass(frozen=True)
class CoreSettings:
    """Heads; what the scopes make of the extremes (E, B, 1, 1, 1) of attention and Value; the Value's gradient."""

    heads: int
    attention_limits: LimitsOf
    value_limits: LimitsOf
    aligned: bool


class _Core:
    """The kernels' view of one call: shapes, addresses, and the steps that forward and backward share."""

    def __init__(self, qkv: Tensor, heads: int, shifts: tuple[Tensor | None, ...], scales: list[Tensor]) -> None:
        self.qkv, self.native, self.threads = qkv, fused.native(), torch.get_num_threads()
        batch, tokens, width = qkv.shape
        self.shape = batch, tokens, heads, width // (3 * heads)
        self.query_scale, self.key_scale, self.attention_scale, self.value_scale = scales
        self.shifted = [shift is not None for shift in shifts]
        shift_addresses = [fused.address(shift) for shift in shifts]
        self.heads = self.native.Heads(*self.shape, qkv.data_ptr(), fused.is_half(qkv), *shift_addresses)

    def probabilities(self) -> Tensor:
        """The softmax of the scores (B, h, N, N), float32."""
        batch, tokens, heads, channels = self.shape
        factor = self.query_scale * self.key_scale * channels**-0.5
        scores = torch.empty(batch, heads, tokens, tokens)
        self.native.scores(self.heads, factor.data_ptr(), scores.data_ptr(), self.threads)
        return scores.softmax(-1)

    def attention_extremes(self, P: Tensor, bias: Tensor | None) -> Tensor:
        """(1, B, 1, 1, 1): the largest entry of every picture's matrix."""
        largest = torch.empty(1, len(P), 1, 1, 1)
        self.native.attention_extremes(self.heads, P.data_ptr(), fused.address(bias), largest.data_ptr(), self.threads)
        return largest

    def value_extremes(self) -> Tensor:
        """(2, B, 1, 1, 1): every picture's largest and smallest Value."""
        extremes = torch.empty(2, self.shape[0], 1, 1, 1)
        self.native.value_extremes(self.heads, extremes.data_ptr(), self.threads)
        return extremes

    def attention_groups(self, limits: Tensor) -> tuple[int, int, int, int]:
        """What the kernels want to know of the attention's groups: number, scales, limits, their batch."""
        return len(self.attention_scale), self.attention_scale.data_ptr(), limits.data_ptr(), limits.shape[2]

    def value_groups(self, limits: Tensor) -> tuple[int, int, int, int]:
        """The same of the Value's groups."""
        return len(self.value_scale), self.value_scale.data_ptr(), limits.data_ptr(), limits.shape[2]

    def values(self, limits: Tensor) -> Tensor:
        """V_b (B, h, N, d), float32."""
        batch, tokens, heads, channels = self.shape
        out = torch.empty(batch, heads, tokens, channels)
        self.native.superpose_values(self.heads, *self.value_groups(limits), out.data_ptr(), self.threads)
        return out

    def attend(self, P: Tensor, bias: Tensor | None, limits: Tensor, V: Tensor) -> Tensor:
        """y = A_b·V_b (B, N, h·d) in the dtype of qkv."""
        batch, tokens, heads, channels = self.shape
        y = torch.empty(batch, tokens, heads * channels, dtype=self.qkv.dtype)
        self.native.attend(
            *(self.heads, P.data_ptr(), fused.address(bias), *self.attention_groups(limits)),
            *(V.data_ptr(), y.data_ptr(), fused.is_half(y), self.threads),
        )
        return y

    def backward(
        self,
        grad: Tensor,
        bias: Tensor | None,
        limits: Tensor,
        value_limits: Tensor,
        aligned: bool,
        in_place: bool,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients from that of y: of qkv, where qkv is if ``in_place``, and of shifts, scales and bias in order."""
        batch, _, heads, channels = self.shape
        P, V = self.probabilities(), self.values(value_limits)
        sizes = [1, 1, len(self.attention_scale), len(self.value_scale)]
        grad_qkv, work = self.qkv if in_place else torch.empty_like(self.qkv), torch.empty_like(P)
        grad_bias = None if bias is None else torch.empty_like(bias)
        shift_sums = torch.empty(batch, heads, 3, 1, channels)
        scale_sums = torch.empty(batch * heads, sum(sizes))
        members = torch.empty(batch * heads, sum(sizes[2:]), dtype=torch.int32)
        self.native.attend_backward(
            *(self.heads, self.query_scale.data_ptr(), self.key_scale.data_ptr(), P.data_ptr(), fused.address(bias)),
            *(*self.attention_groups(limits), *self.value_groups(value_limits), aligned),
            *(V.data_ptr(), grad.data_ptr(), fused.is_half(grad), grad_qkv.data_ptr(), work.data_ptr()),
            *(fused.address(grad_bias), shift_sums.data_ptr(), scale_sums.data_ptr(), members.data_ptr()),
            self.threads,
        )
        query, key, attention, value = (scale_sums.sum(0) * self.scale_factors(members.sum(0))).split(sizes)
        shifts = [part if used else None for part, used in zip(shift_sums.sum(0).unbind(1), self.shifted, strict=True)]
        return grad_qkv, [*shifts, query.view(()), key.view(()), attention, value, grad_bias]

    def scale_factors(self, members: Tensor) -> Tensor:
        """k of (query, key, attention groups, Value groups), from the members (groups,) of the groups."""
        batch, tokens, heads, channels = self.shape
        vectors = (batch * tokens * heads * channels * processes()) ** -0.5
        matrix = (batch * heads * tokens * tokens * processes()) ** -0.5
        factors = torch.cat([torch.empty(2), whole_batch_counts(members).clamp(min=1).to(torch.float32).rsqrt()])
        factors[0] = factors[1] = factors[2 + len(self.attention_scale)] = vectors
        factors[2] = matrix
        return factors


@dataclass
class LayerInputs:
    """The one-bit layer qkv around the core: x's shape and dtype, the dtype of its outputs."""

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
        packed, used = PackedWeight.pack(weight, row_scale), scale.clamp(min=SCALE_MIN)
        code, integers = new_code(rows), torch.empty(len(rows), len(weight), dtype=torch.int16)
        forward_product(rows, shift, used, SIGN, packed, integers=integers, code=code)
        self.weight_shape, self.has = packed.shape, (bias is not None, shift is not None)
        kept = [code, integers, used * packed.scale, bias, used, *packed.tensors()]
        return self.again(kept), kept

    def again(self, kept: list[Any]) -> Tensor:
        """qkv (B, N, 3C) from what was kept."""
        _, integers, scales, bias, *_ = kept
        return rescale(integers, scales, bias, self.dtype).view(*self.x_shape[:-1], -1)

    def backward(self, grad: Tensor, kept: list[Any]) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of x, and of weight, bias, shift, scale and row_scale."""
        code, _, _, _, used, *packed = kept
        grad = grad.view(-1, grad.shape[-1])
        layer = LinearBackward(used, SIGN, PackedWeight.restore(packed, self.weight_shape), self.has)
        return layer.rows(grad, code).view(self.x_shape).to(self.x_dtype), layer.sum()


class _FusedAttention(Function):
    """qkv and the core. Of qkv's outputs the integer products are kept, int16 each, or, of another layer, all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: CoreSettings, layer: LayerInputs | None, *tensors: Any) -> Tensor:
        *shifts, query, key, attention, value, bias = tensors[LAYER_TENSORS:]
        scales = [scale.clamp(min=SCALE_MIN) for scale in (query, key, attention, value)]
        if layer is None:
            qkv = x.contiguous()
            kept: list[Tensor | None] = [qkv]
        else:
            qkv, kept = layer.forward(x, *tensors[:LAYER_TENSORS])
        bias = None if bias is None else bias.contiguous()
        core = _Core(qkv, settings.heads, tuple(shifts), scales)
        P = core.probabilities()
        limits = settings.attention_limits(core.attention_extremes(P, bias)).contiguous()
        value_limits = settings.value_limits(core.value_extremes()).contiguous()
        y = core.attend(P, bias, limits, core.values(value_limits))
        ctx.save_for_backward(limits, value_limits, bias, *shifts, *scales, *kept)
        ctx.settings, ctx.layer = settings, layer
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        limits, value_limits, bias, *rest = ctx.saved_tensors
        shifts, scales, kept = tuple(rest[:3]), rest[3:7], rest[7:]
        qkv = kept[0] if ctx.layer is None else ctx.layer.again(kept)
        core = _Core(qkv, ctx.settings.heads, shifts, scales)
        grad_qkv, grads = core.backward(  # in place where qkv was made again and nobody else has it
            grad.contiguous(), bias, limits, value_limits, ctx.settings.aligned, in_place=ctx.layer is not None
        )
        if ctx.layer is None:
            return grad_qkv, None, None, *[None] * LAYER_TENSORS, *grads
        grad_x, layer_grads = ctx.layer.backward(grad_qkv, kept)
        return grad_x, None, None, *layer_grads, *grads


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
    those of ``elastic_sign``, ``attention_superposition`` and ``value_superposition``, sums in another order.
    """
    inputs = None if layer is None else LayerInputs(x.shape, x.dtype, dtype)
    tensors = layer or [None] * LAYER_TENSORS
    return _FusedAttention.apply(x, settings, inputs, *tensors, *shifts, *scales, bias)
