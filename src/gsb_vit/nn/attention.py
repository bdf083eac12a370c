"""Attention with superposed attention and Value matrices."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gsb_vit.errors import InputError

from . import exact, fused
from .attention_bias import FullAttentionBias, RelativeAttentionBias
from .binary_linear import BinaryLinear
from .fused.attention import fused_attention
from .fused.interface import CoreSettings
from .input_quantizers import ElasticSign, Planes, Quantizer
from .superposition_quantizers import AttentionSuperposition, ValueSuperposition


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
    quantizer gets the scores plus E. ``ordered`` attention evaluates as docs/numerics.md says: ``exact``. GSB,
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
            and exact.applies(x)
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
            return exact.in_order(self._ordered_matrix(q, k), lambda: self._matrix(q, k))
        return self._matrix(q, k)

    @torch.no_grad()
    def _ordered_matrix(self, q: Tensor, k: Tensor) -> Tensor:
        """A in the order of docs/numerics.md."""
        (q,), query_scale = cast(Quantizer, self.query_quantizer).quantize(q)
        (k,), key_scale = cast(Quantizer, self.key_quantizer).quantize(k)
        table = exact.exp_table(query_scale * key_scale, self.head_dim)
        A = exact.softmax(q @ k.transpose(-2, -1), table)
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
        """Whether this training step's superposed attention runs in one function: ``fused.attention``."""
        attention, value = self.attention_quantizer, self.value_quantizer
        learned = (self.query_quantizer, self.key_quantizer, attention, value)
        return (
            self.training
            and fused.kernels(x) is not None
            and type(attention) is AttentionSuperposition
            and type(value) is ValueSuperposition
            and type(self.query_quantizer) is type(self.key_quantizer) is ElasticSign
            and all(cast(Quantizer, part).is_ready for part in learned)
            and not any(part._forward_hooks or part._forward_pre_hooks for part in (attention, value))
            and max(len(attention.thresholds), len(value.thresholds)) < fused.MOST_GROUPS
            and self.softmax
            and self.attn_drop.p == 0
            and self.head_dim % 16 == 0
            and fused.compute_dtype(x) is not None
            and all(fused.fits_parameter(shift, x) for shift in self._shifts())
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
