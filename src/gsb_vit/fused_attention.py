"""Superposed attention in fused kernels: everything between qkv and proj, as ``GSBAttention`` defines it.

Queries and keys are multiplied as bits; the attention matrix is made again in the backward pass instead of being kept,
so that besides qkv only the limits of the groups are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from . import fused
from .quantizers import SCALE_MIN, processes, whole_batch_counts

LimitsOf = Callable[[Tensor], Tensor]


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
        self.qkv, self.native, self.threads = qkv, fused.kernels(), torch.get_num_threads()
        batch, tokens, width = qkv.shape
        self.shape = batch, tokens, heads, width // (3 * heads)
        self.query_scale, self.key_scale, self.attention_scale, self.value_scale = scales
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

    def scale_factors(self, members: Tensor) -> Tensor:
        """k of (query, key, attention groups, Value groups), from the members (groups,) of the groups."""
        batch, tokens, heads, channels = self.shape
        vectors = (batch * tokens * heads * channels * processes()) ** -0.5
        matrix = (batch * heads * tokens * tokens * processes()) ** -0.5
        factors = torch.cat([torch.empty(2), whole_batch_counts(members).clamp(min=1).to(torch.float32).rsqrt()])
        factors[0] = factors[1] = factors[2 + len(self.attention_scale)] = vectors
        factors[2] = matrix
        return factors


class _FusedAttention(Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, settings: CoreSettings, *tensors: Tensor | None) -> Tensor:
        *shifts, query, key, attention, value, bias = tensors
        scales = [scale.clamp(min=SCALE_MIN) for scale in (query, key, attention, value) if scale is not None]
        qkv = qkv.contiguous()
        bias = None if bias is None else bias.contiguous()
        core = _Core(qkv, settings.heads, tuple(shifts), scales)
        P = core.probabilities()
        limits = settings.attention_limits(core.attention_extremes(P, bias)).contiguous()
        value_limits = settings.value_limits(core.value_extremes()).contiguous()
        y = core.attend(P, bias, limits, core.values(value_limits))
        ctx.save_for_backward(qkv, limits, value_limits, bias, *shifts, *scales)
        ctx.settings = settings
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        qkv, limits, value_limits, bias, *rest = ctx.saved_tensors
        shifts, scales = tuple(rest[:3]), rest[3:]
        core, grad = _Core(qkv, ctx.settings.heads, shifts, scales), grad.contiguous()
        batch, _, heads, channels = core.shape
        P, V = core.probabilities(), core.values(value_limits)
        groups = len(scales[2]) + len(scales[3])
        grad_qkv, work = torch.empty_like(qkv), torch.empty_like(P)
        grad_bias = None if bias is None else torch.empty_like(bias)
        shift_sums = torch.empty(batch, heads, 3, 1, channels)
        scale_sums = torch.empty(batch * heads, 2 + groups)
        members = torch.empty(batch * heads, groups, dtype=torch.int32)
        core.native.attend_backward(
            *(core.heads, scales[0].data_ptr(), scales[1].data_ptr(), P.data_ptr(), fused.address(bias)),
            *(*core.attention_groups(limits), *core.value_groups(value_limits), ctx.settings.aligned),
            *(V.data_ptr(), grad.data_ptr(), fused.is_half(grad), grad_qkv.data_ptr(), work.data_ptr()),
            *(fused.address(grad_bias), shift_sums.data_ptr(), scale_sums.data_ptr(), members.data_ptr()),
            core.threads,
        )
        factors = core.scale_factors(members.sum(0))
        query, key, attention, value = (scale_sums.sum(0) * factors).split([1, 1, len(scales[2]), len(scales[3])])
        shift_grads = shift_sums.sum(0).unbind(1)
        grads = [part if shift is not None else None for part, shift in zip(shift_grads, shifts, strict=True)]
        return grad_qkv, None, *grads, query.view(()), key.view(()), attention, value, grad_bias


def fused_attention(
    qkv: Tensor,
    settings: CoreSettings,
    query_shift: Tensor | None,
    key_shift: Tensor | None,
    value_shift: Tensor | None,
    query_scale: Tensor,
    key_scale: Tensor,
    attention_scale: Tensor,
    value_scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """Return y = A_b V_b (B, N, C) of qkv (B, N, 3C), C = heads·d, d a multiple of 16.

    Shifts (h, 1, d), query and key scales (), scales of the groups (G,), bias (h, N, N). Planes and gradients are those
    of ``elastic_sign``, ``attention_superposition`` and ``value_superposition``; sums are added in another order.
    """
    scales = (query_scale, key_scale, attention_scale, value_scale)
    return _FusedAttention.apply(qkv, settings, query_shift, key_shift, value_shift, *scales, bias)
