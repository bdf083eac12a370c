"""Group superposition: the attention matrix and the Value as sums of one-bit planes, one a magnitude group.

Each superposition exists in two forms whose gradients agree: ``*_planes`` (the integer planes, each with its own
gradient, for exact products) and ``*_superposition`` (the dequantized sum in fewer passes over memory, for training).
Source: GSB, https://arxiv.org/abs/2305.07931.

Notation: G groups; x (B, h, ..., ...); scales s (G,), used as max(s, 1e-5); ``limits`` hold the G - 1 thresholds
ratio·extreme, already multiplied, each broadcastable against x. Membership is strict: an entry equal to its limit is
outside the group. An empty group adds nothing and gets gradient 0.

No forward pass works in place: compiled by PyTorch 2.11, such a Function has the gradient 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .quantize import SCALE_MIN, as_number, between, sign, whole_batch_counts


def _member_sum(mask: Tensor, values: Tensor) -> Tensor:
    return (values * as_number(mask, values)).sum(dtype=torch.float32)


def _whole(x: Tensor) -> Tensor:
    """The members () of the base plane: all of x."""
    return torch.full((), x.numel(), device=x.device)


def scale_factors(members: Tensor) -> Tensor:
    """Return the LSQ gradient factors 1/√(members of the whole batch) of groups with this process's members (G,).

    An empty group's gradient is an empty sum, so any factor will do.
    """
    return whole_batch_counts(members).clamp(min=1).to(torch.float32).rsqrt()


def group_factors(groups: list[Tensor], x: Tensor) -> Tensor:
    """Return the LSQ gradient factors k (G,): 1/√n(x) for the base plane, 1/√(members) for each further group."""
    if not torch.is_grad_enabled():
        # Nobody will use the factors, and processes that evaluate do not all run the same number of batches.
        return torch.ones(len(groups) + 1, device=x.device)
    return scale_factors(torch.stack([_whole(x), *(group.sum() for group in groups)]))


def attention_groups(x: Tensor, limits: Tensor) -> list[Tensor]:
    """Return the boolean memberships 1[x > limit_g], g = 1 .. G - 1; limits (G - 1, ...)."""
    return [x > limit for limit in limits.unbind(0)]


def value_groups(x: Tensor, limits: Tensor) -> list[Tensor]:
    """Return the boolean memberships T_g = 1[x > upper_g or x < lower_g]; limits (G - 1, 2, ...) as upper, lower."""
    return [(x > upper) | (x < lower) for upper, lower in (pair.unbind(0) for pair in limits.unbind(0))]


class _AttentionPlanes(Function):
    @staticmethod
    def forward(x: Tensor, base_scale: Tensor, limits: Tensor) -> tuple[Tensor, ...]:
        base = as_number(x > 0.5 * base_scale, x)
        return base, *(as_number(group, x) for group in attention_groups(x, limits))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, base_grad: Tensor, *grads: Tensor) -> tuple:
        x, scale, limits = ctx.saved_tensors
        grad_x = (base_grad / scale).mul_(between(x, scale))
        grad_scale = -(grad_x * x).sum() / scale
        for grad, group in zip(grads, attention_groups(x, limits), strict=True):
            grad_x = grad_x + grad * as_number(group, grad)
        return grad_x, grad_scale, None


def attention_planes(x: Tensor, base_scale: Tensor, limits: Tensor) -> list[Tensor]:
    """Return the {0, 1} planes of the attention matrix: M_0 = 1[A > s_1/2], M_g = 1[A > limit_g].

    x (B, h, N, N), base_scale () = s_1 in use. With A_b = Σ s_g·M_g the planes' gradients give those of
    ``attention_superposition``: grad_A = g_0·1[0 ≤ A ≤ s_1]/s_1 + Σ g_g·M_g.
    """
    return list(_AttentionPlanes.apply(x, base_scale, limits))


def superposed_attention(x: Tensor, scales: Tensor, limits: Tensor) -> Tensor:
    """Return A_b of ``attention_superposition``, without a gradient."""
    used = scales.clamp(min=SCALE_MIN).to(x.dtype).unbind(0)
    out = as_number(x > 0.5 * used[0], x) * used[0]
    for scale, group in zip(used[1:], attention_groups(x, limits), strict=True):
        out = out + as_number(group, x) * scale
    return out


def attention_gradients(x: Tensor, scales: Tensor, limits: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of A_b: that of x, the scales' (G,) before their factors, and the groups' members (G,)."""
    used = scales.clamp(min=SCALE_MIN).to(x.dtype).unbind(0)
    grad_x = between(x, used[0]).mul_(grad)
    sums = [_member_sum(x > 0.5 * used[0], grad) - (grad_x * x).sum(dtype=torch.float32) / used[0]]
    members = [_whole(x)]
    for scale, group in zip(used[1:], attention_groups(x, limits), strict=True):
        member_grad = as_number(group, grad).mul_(grad)
        sums.append(member_grad.sum(dtype=torch.float32))
        members.append(group.sum())
        grad_x = torch.addcmul(grad_x, member_grad, scale)
    return grad_x, torch.stack(sums), torch.stack(members)


class _AttentionSuperposition(Function):
    @staticmethod
    def forward(x: Tensor, scales: Tensor, limits: Tensor) -> Tensor:
        return superposed_attention(x, scales, limits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scales, limits = ctx.saved_tensors
        grad_x, sums, members = attention_gradients(x, scales, limits, grad)
        return grad_x, (sums * scale_factors(members)).to(scales.dtype), None


def attention_superposition(x: Tensor, scales: Tensor, limits: Tensor) -> Tensor:
    """Return A_b = s_1·clamp(round(A/s_1), 0, 1) + Σ s_g·M_g of the attention matrix x (B, h, N, N).

    grad_A = g·(1[0 ≤ A/s_1 ≤ 1] + Σ s_g·M_g); grad_s_1 = (1/√n)·Σ g·(0 below, 1 above, M_0 - A/s_1 inside);
    grad_s_g = Σ M_g·g / √ΣM_g. M_0 = 1[A > s_1/2]: a tie gives 0.
    """
    return _AttentionSuperposition.apply(x, scales, limits)


def _value_inside(x: Tensor, scale: Tensor, group: Tensor | None, aligned: bool) -> Tensor:
    """Where a Value group lets the gradient through, in {0, 1}; see ``value_superposition``."""
    inside = x.abs().le_(scale)
    if group is None:
        return inside
    members = as_number(group, x)
    return inside.mul_(members) if aligned else torch.maximum(inside, 1 - members)


class _ValuePlanes(Function):
    @staticmethod
    def forward(x: Tensor, scales: Tensor, limits: Tensor, aligned: bool) -> tuple[Tensor, ...]:
        base = sign(x)
        return base, *(as_number(group, x) * base for group in value_groups(x, limits))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, ctx.aligned = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        x, scales, limits = ctx.saved_tensors
        grad_x, grad_scales = torch.zeros_like(x), []
        groups = [None, *value_groups(x, limits)]
        for grad, scale, group in zip(grads, scales.unbind(0), groups, strict=True):
            part = _value_inside(x, scale, group, ctx.aligned).mul_(grad / scale)
            member_part = part if group is None else part * as_number(group, part)
            grad_scales.append(-(member_part * x).sum() / scale)
            grad_x = grad_x + part
        return grad_x, torch.stack(grad_scales).to(scales.dtype), None, None


def value_planes(x: Tensor, scales: Tensor, limits: Tensor, aligned: bool = True) -> list[Tensor]:
    """Return the planes of the Value: sign(V) in ±1, then T_g·sign(V) in {-1, 0, 1}.

    x (B, h, N, d); scales (G,) in use. With V_b = Σ s_g·plane_g the gradients give those of ``value_superposition``.
    """
    return list(_ValuePlanes.apply(x, scales, limits, aligned))


def superposed_value(x: Tensor, scales: Tensor, limits: Tensor) -> Tensor:
    """Return V_b of ``value_superposition``, without a gradient."""
    used = scales.clamp(min=SCALE_MIN).to(x.dtype).unbind(0)
    size = used[0]
    for scale, group in zip(used[1:], value_groups(x, limits), strict=True):
        size = size + as_number(group, x) * scale
    return sign(x) * size


def value_gradients(
    x: Tensor, scales: Tensor, limits: Tensor, grad: Tensor, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient of V_b: that of x, the scales' (G,) before their factors, and the groups' members (G,)."""
    signed_grad = sign(x).mul_(grad)
    size = x.abs()
    slope, sums, members = torch.zeros_like(x), [], []
    used = scales.clamp(min=SCALE_MIN).to(x.dtype).unbind(0)
    for scale, group in zip(used, [None, *value_groups(x, limits)], strict=True):
        part = signed_grad * (1 - (size / scale).mul_(size.clone().le_(scale)))
        sums.append(part.sum(dtype=torch.float32) if group is None else _member_sum(group, part))
        members.append(_whole(x) if group is None else group.sum())
        slope = slope + _value_inside(x, scale, group, aligned)
    return grad * slope, torch.stack(sums), torch.stack(members)


class _ValueSuperposition(Function):
    @staticmethod
    def forward(x: Tensor, scales: Tensor, limits: Tensor, aligned: bool) -> Tensor:
        return superposed_value(x, scales, limits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.aligned = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scales, limits = ctx.saved_tensors
        grad_x, sums, members = value_gradients(x, scales, limits, grad, ctx.aligned)
        return grad_x, (sums * scale_factors(members)).to(scales.dtype), None, None


def value_superposition(x: Tensor, scales: Tensor, limits: Tensor, aligned: bool = True) -> Tensor:
    """Return V_b = s_1·sign(V) + Σ s_g·T_g·sign(V) of the Value x (B, h, N, d).

    grad_s_g = k_g Σ g·T_g·(sign(V) - 1[|V| ≤ s_g]·V/s_g), k_1 = 1/√n, k_g = 1/√ΣT_g (T_1 = 1 everywhere).

    grad_V, ``aligned``: the straight-through surrogate of s·sign(V) is s·clamp(V/s, -1, 1), whose slope is 1[|V| ≤ s].
    A group's term is T_g·s_g·sign(V); T_g is piecewise constant in V, so the chain rule gives T_g·1[|V| ≤ s_g] and
    grad_V = g·(1[|V| ≤ s_1] + Σ T_g·1[|V| ≤ s_g]).
    grad_V, not aligned (the released code): g·(1[|V| ≤ s_1] + Σ 1[|V·T_g| ≤ s_g]), whose indicators are 1 outside T_g
    too, because there |V·T_g| = 0: small values get up to G times the gradient.

    sign(0) = +1 as on the device; the released code has 0 there (a set of measure zero).
    """
    return _ValueSuperposition.apply(x, scales, limits, aligned)


def attention_levels(x: Tensor, limits: Tensor, factor: float = 4.0) -> Tensor:
    """Return the initial levels (G,) of the attention groups: 4·mean|A| of everything, then factor·mean of each band.

    Band g is group g without group g + 1; an empty band takes the level before it. With factor 1 a band's level is its
    least-squares value; the released code has 4, as for the base, whose plane leaves out what is below twice the mean.
    """
    groups = attention_groups(x, limits)
    base = 4 * x.abs().mean(dtype=torch.float32)
    return torch.stack([base, *_band_levels(x, groups, factor, base)])


def value_levels(x: Tensor, limits: Tensor) -> Tensor:
    """Return the initial levels (G,) of the Value groups: 2·mean|V| outside all T_g, then of each band.

    Band g is T_g without T_(g+1); an empty band takes the level before it, the first one 2·mean|V|.
    """
    size = x.abs()
    everything = torch.ones_like(x, dtype=torch.bool)
    groups = [everything, *value_groups(x, limits)]
    return torch.stack(_band_levels(size, groups, 2.0, 2 * size.mean(dtype=torch.float32)))


def _band_levels(size: Tensor, groups: list[Tensor], factor: float, level: Tensor) -> list[Tensor]:
    levels = []
    for index, group in enumerate(groups):
        band = group & ~groups[index + 1] if index + 1 < len(groups) else group
        count = band.sum()
        level = torch.where(count > 0, factor * _member_sum(band, size) / count.clamp(min=1), level)
        levels.append(level)
    return levels


def increments(levels: Tensor) -> Tensor:
    """Return the scales (G,) whose running sums are the levels (G,): s_1 = l_1, s_g = l_g - l_(g-1)."""
    return torch.cat([levels[:1], levels.diff()])
