"""Attention with superposed attention and Value matrices."""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from . import fused, numerics
from .attention_bias import FullAttentionBias, RelativeAttentionBias
from .errors import InputError
from .fused_attention import CoreSettings, fused_attention
from .input_quantizers import ElasticSign, Planes, Quantizer
from .layers import BinaryLinear
from .quantizers import scale_ste
from .superposition import (
    attention_groups,
    attention_levels,
    attention_planes,
    attention_superposition,
    group_factors,
    increments,
    value_groups,
    value_levels,
    value_planes,
    value_superposition,
)

ThresholdScope = Literal["sample", "batch", "fixed"]
EXTREME_MOMENTUM = 0.1


class Superposition(Quantizer):
    """Base of the two superpositions: ``scale`` (G,), thresholds as ratios of the extremes, and their scope.

    Scopes: ``sample`` takes the extremes of each picture, ``batch`` of the whole tensor (the released code; a
    prediction then depends on the picture's neighbours), ``fixed`` those stored in the buffer ``running_extremes``.
    The stored ones are the means over pictures of each picture's extremes: set by the first batch, moved by 0.1 of
    the way to each further training batch before they are used, constant in eval mode, or set by
    ``convert.calibrate_thresholds``.

    Initial scales: ``increment`` starts each further group at the difference of two levels, because the groups add
    up. ``authors`` (the released code) uses these differences in the first forward pass only and then goes on with
    the levels themselves.
    """

    extremes_count: int
    running_extremes: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = (0.7, 0.9),
        threshold_scope: ThresholdScope = "sample",
        initial_scales: Literal["increment", "authors"] = "increment",
    ) -> None:
        super().__init__((len(thresholds) + 1,))
        self.thresholds = tuple(thresholds)
        self.threshold_scope = threshold_scope
        self.initial_scales = initial_scales
        self.calibration: list[Tensor] | None = None
        if threshold_scope == "fixed":
            self.register_buffer("running_extremes", torch.zeros(self.extremes_count))

    def extremes(self, x: Tensor) -> Tensor:
        """Return the extremes of every picture in x (B, h, ., .): (E, B, 1, 1, 1)."""
        raise NotImplementedError

    def _of_batch(self, extremes: Tensor) -> Tensor:
        """The extremes (E, 1, 1, 1, 1) of the whole batch, from those of its pictures."""
        raise NotImplementedError

    def _levels(self, x: Tensor, limits: Tensor) -> Tensor:
        raise NotImplementedError

    def _ratio_limits(self, extremes: Tensor) -> Tensor:
        """The limits (G - 1, E, ...) that go with extremes (E, ...)."""
        if not self.thresholds:
            return extremes.new_zeros((0, *extremes.shape))
        return torch.stack([extremes * ratio for ratio in self.thresholds])

    def fixed_limits(self) -> Tensor:
        """Return the stored limits (G - 1, E), E = 1 (maximum) or 2 (maximum, minimum); scope ``fixed`` only.

        Raises InputError for other scopes, which have no stored limits.
        """
        if self.threshold_scope != "fixed":
            raise InputError(f"threshold_scope={self.threshold_scope!r} stores no limits; only 'fixed' does")
        return self._ratio_limits(self.running_extremes)

    @torch.no_grad()
    def set_extremes(self, extremes: Tensor) -> None:
        """Store the extremes (E,) that scope ``fixed`` uses."""
        self.running_extremes.copy_(extremes)

    @torch.no_grad()
    def _limits(self, x: Tensor) -> Tensor:
        if self.threshold_scope == "fixed" and self.is_ready and not self.training and self.calibration is None:
            return self._ratio_limits(self.running_extremes.clone().to(x.dtype).view(-1, 1, 1, 1, 1))
        return self.limits_of(self.extremes(x.detach()))

    @torch.no_grad()
    def limits_of(self, extremes: Tensor) -> Tensor:
        """Return the limits (G - 1, E, B | 1, 1, 1, 1) that the scope makes of the pictures' extremes (E, B, 1, 1, 1).

        In training scope ``fixed`` moves the stored extremes.
        """
        if self.threshold_scope == "batch":
            return self._ratio_limits(self._of_batch(extremes))
        if self.threshold_scope == "sample":
            return self._ratio_limits(extremes)
        if self.calibration is not None:
            self.calibration.append(extremes.flatten(1).to(torch.float32))
            return self._ratio_limits(extremes)
        if self.training or not self.is_ready:
            batch_mean = extremes.flatten(1).mean(1, dtype=torch.float32)
            self.running_extremes.lerp_(batch_mean, EXTREME_MOMENTUM if self.is_ready else 1.0)
        return self._ratio_limits(self.running_extremes.clone().to(extremes.dtype).view(-1, 1, 1, 1, 1))

    def initial_scale(self, x: Tensor) -> Tensor:
        levels = self._levels(x, self._limits(x))
        return levels if self.initial_scales == "authors" else increments(levels)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scales (G,) and the limits (G - 1, E, B | 1, 1, 1, 1) for x, after initialization where needed."""
        if self.is_ready:
            return self.scale, self._limits(x)
        self.initialize(x)
        limits = self._limits(x)
        if self.initial_scales == "authors":
            levels = self.scale.detach()
            return self.scale + (increments(levels) - levels), limits
        return self.scale, limits


class AttentionSuperposition(Superposition):
    """Superposition of the attention matrix A (B, h, N, N): A_b = s_1·1[A > s_1/2] + Σ s_g·1[A > ratio_g·max A].

    Gradients and ties: ``superposition.attention_superposition``. Initial levels: ``superposition.attention_levels``;
    of a single group that would leave everything out (a flat matrix, max A ≤ 2·mean|A|), s_1 = max A instead, because
    behind a matrix of zeros nothing learns. Further groups always have a member.
    """

    extremes_count = 1

    def initial_scale(self, x: Tensor) -> Tensor:
        scale, largest = super().initial_scale(x), x.amax().float()
        return scale if self.thresholds else torch.where(largest > scale / 2, scale, largest)

    def extremes(self, x: Tensor) -> Tensor:
        return x.amax((1, 2, 3), keepdim=True).unsqueeze(0)

    def _of_batch(self, extremes: Tensor) -> Tensor:
        return extremes.amax(1, keepdim=True)

    def _levels(self, x: Tensor, limits: Tensor) -> Tensor:
        return attention_levels(x, limits[:, 0])

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        scale, limits = self._prepare(x)
        limits = limits[:, 0]
        scale = scale_ste(scale, group_factors(attention_groups(x.detach(), limits), x))
        return attention_planes(x, scale[0], limits), scale

    def forward(self, x: Tensor) -> Tensor:
        scale, limits = self._prepare(x)
        return attention_superposition(x, scale, limits[:, 0])


class ValueSuperposition(Superposition):
    """Superposition of the Value V (B, h, N, d): V_b = s_1·sign(V) + Σ s_g·T_g·sign(V).

    T_g = 1[V > ratio_g·max V or V < ratio_g·min V]. Gradients (``aligned`` or the released code's) and ties:
    ``superposition.value_superposition``. Initial levels: ``superposition.value_levels``.
    """

    extremes_count = 2

    def __init__(
        self,
        thresholds: Sequence[float] = (0.7, 0.9),
        threshold_scope: ThresholdScope = "sample",
        initial_scales: Literal["increment", "authors"] = "increment",
        gradient: Literal["aligned", "authors"] = "aligned",
    ) -> None:
        super().__init__(thresholds, threshold_scope, initial_scales)
        self.gradient = gradient

    def extremes(self, x: Tensor) -> Tensor:
        return torch.stack([x.amax((1, 2, 3), keepdim=True), x.amin((1, 2, 3), keepdim=True)])

    def _of_batch(self, extremes: Tensor) -> Tensor:
        largest, smallest = extremes
        return torch.stack([largest.amax(0, keepdim=True), smallest.amin(0, keepdim=True)])

    def _levels(self, x: Tensor, limits: Tensor) -> Tensor:
        return value_levels(x, limits)

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        scale, limits = self._prepare(x)
        scale = scale_ste(scale, group_factors(value_groups(x.detach(), limits), x))
        return value_planes(x, scale, limits, self.gradient == "aligned"), scale

    def forward(self, x: Tensor) -> Tensor:
        scale, limits = self._prepare(x)
        return value_superposition(x, scale, limits, self.gradient == "aligned")


def _shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    return x if shift is None else x + shift


def _scale_per_plane(planes: list[Tensor], scale: Tensor) -> Sequence[Tensor]:
    """The scale of each plane: of scales (G,), or the one scale of one plane, of any shape."""
    return scale.unbind(0) if scale.shape == (len(planes),) else (scale,)


class GSBAttention(nn.Module):
    """Multi-head attention on one-bit queries and keys and superposed attention and Value matrices.

    x (B, N, C) → qkv; q, k, v (B, h, N, d) each plus a learned shift (h, 1, d), unless ``with_shifts`` is False;
    A = dropout(softmax(s_q·s_k·(B_q B_kᵀ)/√d) + E); y = A_b V_b → proj. The bias E is added after the softmax.
    In eval mode A_b V_b is the sum of integer plane products times S_ab = s_Aa·s_Vb, in the order of
    docs/numerics.md; in training mode one product of the superposed tensors. Without quantizers (all four None) q, k,
    v and A stay in floating point. ``query_key`` makes the quantizers of q and k; without ``softmax`` the attention
    quantizer gets the scores plus E. ``ordered`` attention evaluates as docs/numerics.md says: ``numerics``. GSB,
    https://arxiv.org/abs/2305.07931; other quantizers: ``schemes``.

    Raises InputError when called with an attention mask or causal, which one-bit attention does not have, and for
    attention dropout without softmax, where a dropped score of 0 would not drop its entry.
    """

    q_shift: nn.Parameter | None
    k_shift: nn.Parameter | None
    v_shift: nn.Parameter | None
    ordered = False  # convert.binarize sets it where the model can be packed
    fused_attn = True  # timm's switch: products.fast_attention

    def __init__(
        self,
        qkv: nn.Linear,
        proj: nn.Linear,
        num_heads: int,
        attention_bias: RelativeAttentionBias | FullAttentionBias | None = None,
        attention_quantizer: Planes | None = None,
        value_quantizer: Planes | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        query_key: Callable[[], Planes] = ElasticSign,
        with_shifts: bool = True,
        softmax: bool = True,
    ) -> None:
        super().__init__()
        if (attention_quantizer is None) != (value_quantizer is None):
            raise InputError("give both attention_quantizer and value_quantizer, or neither")
        if attn_drop and not softmax:
            raise InputError(f"attention without softmax has no dropout, got {attn_drop}; build with attn_drop_rate=0")
        self.num_heads = num_heads
        self.attn_dim = qkv.out_features // 3
        self.head_dim = self.attn_dim // num_heads
        self.qkv, self.proj, self.softmax = qkv, proj, softmax
        for name in ("q_shift", "k_shift", "v_shift"):
            shift = nn.Parameter(qkv.weight.new_zeros(num_heads, 1, self.head_dim)) if with_shifts else None
            self.register_parameter(name, shift)
        binary = attention_quantizer is not None
        self.query_quantizer = query_key() if binary else None
        self.key_quantizer = query_key() if binary else None
        self.attention_quantizer, self.value_quantizer = attention_quantizer, value_quantizer
        self.attention_bias = attention_bias
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self.to(qkv.weight.device)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the shifted queries, keys and values (B, h, N, d), before their quantizers."""
        B, N, _ = x.shape
        one_sum = self._runs_ordered(x)
        qkv = self.qkv(x, output_shift=self.output_shift()) if one_sum else self.qkv(x)
        q, k, v = qkv.reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if one_sum:
            return q, k, v
        return _shifted(q, self.q_shift), _shifted(k, self.k_shift), _shifted(v, self.v_shift)

    def output_shift(self) -> Tensor:
        """Return the shifts of queries, keys and values as one (3C,), in the order of qkv's outputs."""
        return torch.cat([shift.flatten() for shift in self._shifts()])

    def _runs_ordered(self, x: Tensor) -> bool:
        """Whether evaluation of x follows docs/numerics.md: in models that can be packed, once all scales are set."""
        quantizers = (self.query_quantizer, self.key_quantizer, self.attention_quantizer, self.value_quantizer)
        return (
            self.ordered
            and not self.training
            and numerics.applies(x)
            and all(cast(Quantizer, part).is_ready for part in quantizers)
        )

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, h, N, N): products of queries and keys, scaled."""
        scale = self.head_dim**-0.5
        queries, keys = self.query_quantizer, self.key_quantizer
        if queries is None or keys is None:
            return q @ k.transpose(-2, -1) * scale
        if self.training and not queries.factored:
            return queries(q) @ keys(k).transpose(-2, -1) * scale
        (q,), query_scale = queries.quantize(q)
        (k,), key_scale = keys.quantize(k)
        if key_scale.dim():
            key_scale = key_scale.transpose(-2, -1)
        return q @ k.transpose(-2, -1) * (query_scale * key_scale * scale)

    def attention_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """Return A (B, h, N, N) before its quantizer: softmax, plus the bias, through dropout."""
        if self._runs_ordered(q):
            return numerics.in_order(self._ordered_matrix(q, k), lambda: self._matrix(q, k))
        return self._matrix(q, k)

    @torch.no_grad()
    def _ordered_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """A in the order of docs/numerics.md."""
        (q,), query_scale = cast(Quantizer, self.query_quantizer).quantize(q)
        (k,), key_scale = cast(Quantizer, self.key_quantizer).quantize(k)
        table = numerics.exp_table(query_scale * key_scale, self.head_dim)
        A = numerics.softmax(q @ k.transpose(-2, -1), table)
        return A if self.attention_bias is None else A.add_(self.attention_bias.stored())

    def _matrix(self, q: Tensor, k: Tensor) -> Tensor:
        A = self._scores(q, k)
        if self.softmax:
            A = A.softmax(-1)
        if self.attention_bias is not None:
            A = A + self.attention_bias()
        return self.attn_drop(A)

    def _full_precision_product(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.fused_attn or (self.training and self.attn_drop.p > 0):
            return self.attention_matrix(q, k) @ v
        y = F.scaled_dot_product_attention(q, k, v)
        return y if self.attention_bias is None else y + self.attention_bias() @ v

    def _planewise_product(self, attention: Planes, A: Tensor, value: Planes, v: Tensor) -> Tensor:
        """Σ I_ab·S_ab over planes a of A and b of V, with S_ab = s_Aa·s_Vb, a outer and b inner."""
        rows, row_scales = attention.quantize(A)
        columns, column_scales = value.quantize(v)
        terms = [
            (row @ column) * (row_scale * column_scale)
            for row, row_scale in zip(rows, _scale_per_plane(rows, row_scales), strict=True)
            for column, column_scale in zip(columns, _scale_per_plane(columns, column_scales), strict=True)
        ]
        y = terms[0]
        for term in terms[1:]:
            y = y + term
        return y

    def _runs_fused(self, x: Tensor) -> bool:
        """Whether this training step's superposed attention runs in fused kernels: ``fused_attention``."""
        attention, value = self.attention_quantizer, self.value_quantizer
        learned = (self.query_quantizer, self.key_quantizer, attention, value)
        return (
            self.training
            and fused.enabled()
            and type(attention) is AttentionSuperposition
            and type(value) is ValueSuperposition
            and type(self.query_quantizer) is type(self.key_quantizer) is ElasticSign
            and all(cast(Quantizer, part).is_ready for part in learned)
            and not any(part._forward_hooks or part._forward_pre_hooks for part in (attention, value))
            and max(len(attention.thresholds), len(value.thresholds)) < fused.MOST_GROUPS
            and self.softmax
            and self.attn_drop.p == 0
            and self.head_dim % 16 == 0
            and fused.fits(x, torch.float32, torch.bfloat16)
            and fused.compute_dtype(x) is not None
            and all(fused.fits_parameter(shift) for shift in self._shifts())
        )

    def _shifts(self) -> list[Tensor]:
        return [shift for shift in (self.q_shift, self.k_shift, self.v_shift) if shift is not None]

    def _fused_core(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C), all before proj."""
        attention = cast(AttentionSuperposition, self.attention_quantizer)
        value = cast(ValueSuperposition, self.value_quantizer)
        quantizers = (self.query_quantizer, self.key_quantizer, attention, value)
        scales = [cast(Quantizer, part).scale for part in quantizers]
        bias = None if self.attention_bias is None else self.attention_bias()
        core = CoreSettings(self.num_heads, attention.limits_of, value.limits_of, value.gradient == "aligned")
        qkv, layer = self.qkv, None
        whole = isinstance(qkv, BinaryLinear) and not (qkv._forward_hooks or qkv._forward_pre_hooks)
        if whole and qkv.signed and qkv.clip is None and qkv.output is None and qkv.runs_fused(x):
            layer = qkv.fused_inputs()
        dtype = cast(torch.dtype, fused.compute_dtype(x))
        shifts = (self.q_shift, self.k_shift, self.v_shift)
        return fused_attention(x if layer else qkv(x), core, dtype, layer, shifts, scales, bias)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise InputError("GSBAttention takes no attention mask and is never causal; call the model without them")
        B, N, _ = x.shape
        if self._runs_fused(x):
            return self.proj_drop(self.proj(self._fused_core(x)))
        q, k, v = self.project(x)
        if self.attention_quantizer is None or self.value_quantizer is None:
            y = self._full_precision_product(q, k, v)
        elif self.training:
            y = self.attention_quantizer(self.attention_matrix(q, k)) @ self.value_quantizer(v)
        else:
            A = self.attention_matrix(q, k)
            y = self._planewise_product(self.attention_quantizer, A, self.value_quantizer, v)
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, N, self.attn_dim)))
