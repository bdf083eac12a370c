"""Every quantizer as a function with its own gradient.

Factored form: an elastic quantizer returns an integer plane B and leaves the multiplication by its scale s to the
layer, so that products of planes are exact integers. With y = s·B the gradients below add up to the equations of the
sources: B carries the part that flows through x/s, ``scale_ste`` the LSQ gradient factor k.

The superpositions of several planes are in ``superposition.py``.
"""

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function

SCALE_MIN = 1e-5
WEIGHT_SCALE_MIN = 1e-8


def sign(x: Tensor) -> Tensor:
    """Return +1 where x >= 0 (0 and -0.0 included) and -1 elsewhere, in the dtype of x.

    Two vector passes on a CPU; choosing between constants with torch.where takes ten times as long there.
    """
    if torch.compiler.is_compiling():  # PyTorch 2.11 loses the gradient of a Function that works in place
        return torch.sign(torch.sign(x) + 0.5)
    return torch.sign(x).add_(0.5).sign_()


def as_number(mask: Tensor, like: Tensor) -> Tensor:
    """Return a boolean mask as 0 and 1 in the dtype of ``like`` (bytes convert faster than booleans on a CPU)."""
    # Inductor of PyTorch 2.11 cannot view booleans as bytes. Dynamo of 2.6 cannot see is_cuda in a Function's backward.
    if torch.compiler.is_compiling() or mask.is_cuda:
        return mask.to(like.dtype)
    return mask.view(torch.uint8).to(like.dtype)


def processes() -> int:
    """Return how many processes share a batch: those of torch.distributed's default group, or 1."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def whole_batch_counts(counts: Tensor) -> Tensor:
    """Return counts (G,) over this process's part of the batch, summed over all processes.

    DDP averages gradients, which is right for sums over pictures but not for factors 1/√count: with the counts of the
    whole batch, processes together give the very gradients of one process. Every process must call this alike.
    """
    if processes() > 1:
        distributed.all_reduce(counts)
    return counts


class _ScaleSTE(Function):
    @staticmethod
    def forward(scale: Tensor, factor: Tensor | float) -> Tensor:
        return scale.clamp(min=SCALE_MIN)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        factor = inputs[1]
        ctx.factor = None if isinstance(factor, Tensor) else factor
        ctx.save_for_backward(*([factor] if isinstance(factor, Tensor) else []))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        factor = ctx.saved_tensors[0] if ctx.factor is None else ctx.factor
        return grad * factor, None


def scale_ste(scale: Tensor, factor: Tensor | float) -> Tensor:
    """Return the scale in use, max(s, 1e-5), with a scaled straight-through gradient.

    grad_s = factor · g, also below 1e-5, so that a scale that got too small can grow again. The factor is k of LSQ
    (https://arxiv.org/abs/1902.08153): 1/√(n·Qp).
    """
    return _ScaleSTE.apply(scale, factor)


def _inside_gradient(grad: Tensor, x: Tensor, scale: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of clamp(x/s): g·1[inside]/s towards x and -Σ g·1[inside]·x/s² towards s; inside in {0, 1}."""
    grad_x = (grad / scale).mul_(inside)
    grad_scale = -((grad_x * x).sum_to_size(scale.shape) / scale)
    return grad_x, grad_scale.to(scale.dtype)


class _ElasticSign(Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scale = ctx.saved_tensors
        return _inside_gradient(grad, x, scale, x.abs().le_(scale))


def elastic_sign(x: Tensor, scale: Tensor) -> Tensor:
    """Return the signed one-bit plane B = sign(x) of x (any shape) in ±1, with y = s·B.

    sign(0) = +1 (the released code has 0). Gradients: grad_x = g_B·1[|x| ≤ s]/s; grad_s = -Σ g_B·1[|x| ≤ s]·x/s²;
    hence for y: grad_x = g·1[|x| ≤ s], grad_s = Σ g·(sign(x) - 1[|x| ≤ s]·x/s).
    Elastic binarization of BiT, https://arxiv.org/abs/2205.13016.
    """
    return _ElasticSign.apply(x, scale)


def between(x: Tensor, scale: Tensor | float) -> Tensor:
    """Return 1[0 ≤ x ≤ s] as numbers of x's dtype."""
    return x.clone().ge_(0).mul_(x.clone().le_(scale))


class _ElasticStep(Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return as_number(x > 0.5 * scale, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scale = ctx.saved_tensors
        return _inside_gradient(grad, x, scale, between(x, scale))


def elastic_step(x: Tensor, scale: Tensor) -> Tensor:
    """Return the unsigned one-bit plane B = 1[x > s/2] of x (any shape) in {0, 1}, with y = s·B.

    A tie, x = s/2, gives 0 (round half to even). Gradients: grad_x = g_B·1[0 ≤ x ≤ s]/s;
    grad_s = -Σ g_B·1[0 ≤ x ≤ s]·x/s²; for y: grad_s = Σ g·(0 below, 1 above, B - x/s inside).
    BiT, https://arxiv.org/abs/2205.13016.
    """
    return _ElasticStep.apply(x, scale)


class _ElasticInteger(Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        return torch.round(x / scale).clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, scale, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scale = ctx.saved_tensors
        ratio = x / scale
        inside = (ratio >= ctx.low) & (ratio <= ctx.high)
        return *_inside_gradient(grad, x, scale, as_number(inside, grad)), None, None


def elastic_integer(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Return the integer plane B = clamp(round(x/s), low, high), with y = s·B; s broadcasts against x.

    Round half to even. Gradients: grad_x = g_B·1[low ≤ x/s ≤ high]/s; grad_s = -Σ g_B·1[inside]·x/s²; for y:
    grad_s = Σ g·(low below, high above, B - x/s inside). LSQ, https://arxiv.org/abs/1902.08153.
    """
    return _ElasticInteger.apply(x, scale, low, high)


class _LSQ(Function):
    @staticmethod
    def forward(x: Tensor, scale: Tensor, low: int, high: int, factor: float) -> Tensor:
        used = scale.clamp(min=SCALE_MIN)
        return torch.round(x / used).clamp(low, high) * used

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, scale, ctx.low, ctx.high, ctx.factor = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, scale = ctx.saved_tensors
        ratio = x / scale.clamp(min=SCALE_MIN)
        clamped = ratio.clamp(ctx.low, ctx.high)
        inside = ratio == clamped
        slope = torch.where(inside, ratio.round() - ratio, clamped)
        grad_scale = (slope * grad * ctx.factor).sum_to_size(scale.shape)
        return torch.where(inside, grad, 0.0), grad_scale.to(scale.dtype), None, None, None


def lsq(x: Tensor, scale: Tensor, low: int, high: int, factor: float) -> Tensor:
    """Return the dequantized y = s·clamp(round(x/s), low, high), s = max(scale, 1e-5) broadcast against x.

    The same as ``elastic_integer`` times ``scale_ste`` with k = factor, in one function: grad_s is summed from
    round(x/s) - x/s itself rather than from the difference of two large sums, which matters for the 8-bit edges.
    grad_x = g·1[low ≤ x/s ≤ high]; grad_s = k Σ g·(low below, high above, round(x/s) - x/s inside).
    LSQ, https://arxiv.org/abs/1902.08153.
    """
    return _LSQ.apply(x, scale, low, high, factor)


def integer_range(bits: int, signed: bool = True) -> tuple[int, int]:
    """Return (Qn, Qp): (-2^(b-1), 2^(b-1) - 1) signed, (0, 2^b - 1) unsigned."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


class _UnitSign(Function):
    @staticmethod
    def forward(x: Tensor, quadratic: bool) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ctx.quadratic = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        size = ctx.saved_tensors[0].abs()
        slope = grad * (2 - 2 * size) if ctx.quadratic else grad
        return torch.where(size <= 1, slope, 0.0), None


def unit_sign(x: Tensor, quadratic: bool = False) -> Tensor:
    """Return B = sign(x) of x (any shape) in ±1 with a gradient of unit width, whatever the scale.

    sign(0) = +1. grad_x = g_B·1[|x| ≤ 1], the clipped straight-through estimator of XNOR-Net
    (https://arxiv.org/abs/1603.05279); ``quadratic``: g_B·(2 - 2|x|)·1[|x| ≤ 1], the slope of the piecewise quadratic
    of Bi-Real Net (https://arxiv.org/abs/1808.00278) and ReActNet.
    """
    return _UnitSign.apply(x, quadratic)


class _UnitStep(Function):
    @staticmethod
    def forward(x: Tensor, limit: Tensor | float) -> Tensor:
        return (x >= limit).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return torch.where(ctx.saved_tensors[0].abs() <= 1, grad, 0.0), None


def unit_step(x: Tensor, limit: Tensor | float) -> Tensor:
    """Return B = 1[x ≥ limit] of x (any shape) in {0, 1}; a tie gives 1, limit broadcasts and is a constant.

    grad_x = g_B·1[|x| ≤ 1]. With limit 0 the bool function of BiBERT, https://arxiv.org/abs/2203.06390.
    """
    return _UnitStep.apply(x, limit)


class _WeightPlane(Function):
    """A plane of weights as it is, with the straight-through gradient g_B/s towards the latent weights."""

    @staticmethod
    def forward(weight: Tensor, plane: Tensor, scale: Tensor) -> Tensor:
        return plane.view_as(plane)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad / ctx.saved_tensors[0], None, None


class _WeightSign(Function):
    @staticmethod
    def forward(weight: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        return sign(weight - mean)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad / ctx.saved_tensors[0], None, None


def _mean(x: Tensor, per_row: bool) -> Tensor:
    """The mean of x (out, in) over each row, (out, 1), or over all, (1, 1)."""
    return x.mean((1,) if per_row else (0, 1), keepdim=True)


def binary_scale(weight: Tensor, per_row: bool) -> Tensor:
    """Return mean|W| of a weight matrix (out, in), over each row, (out, 1), or all, (1, 1); at least 1e-8."""
    return _mean(weight.abs(), per_row).clamp(min=WEIGHT_SCALE_MIN)


def binary_weight(weight: Tensor, per_row: bool, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the signs (out, in) in ±1 of a weight matrix and its scale, (out, 1) or (1, 1).

    B = sign(W - mean W) with the mean of the whole matrix in both cases; s = mean|W| over each row or the whole
    matrix; sign(0) = +1. W_b = s·B has the straight-through gradient grad_W = g (s and the mean are constants), so
    grad_W = g_B/s. The scale is kept at least 1e-8, so a row of zeros stays finite. BWN / XNOR-Net, https://arxiv.org/abs/1603.05279.
    A learned ``scale`` takes the place of mean|W|; its own gradient is Σ g·B, as in XNOR-Net++
    (https://arxiv.org/abs/1909.13863).
    """
    latent = weight.detach()
    if scale is None:
        scale = binary_scale(latent, per_row)
    return _WeightSign.apply(weight, latent.mean(), scale), scale


def ternary_weight(weight: Tensor, per_row: bool, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the plane (out, in) in {-1, 0, 1} of a weight matrix and its scale, (out, 1) or (1, 1).

    B = sign(W)·1[|W| > Δ], Δ = 0.7·mean|W|, s = mean of |W| where |W| > Δ, both over each row or the whole matrix.
    A tie, |W| = Δ, gives 0. Straight through: grad_W = g, so grad_W = g_B/s. The scale is kept at least 1e-8; a row of
    zeros gives zeros. A learned ``scale`` takes the place of s, with the gradient Σ g·B.
    Ternary Weight Networks, https://arxiv.org/abs/1605.04711; a scale per row is ours.
    """
    latent = weight.detach()
    size = latent.abs()
    members = size > 0.7 * _mean(size, per_row)
    if scale is None:
        share = _mean(members.to(size.dtype), per_row).clamp(min=1 / size.numel())
        scale = (_mean(torch.where(members, size, 0.0), per_row) / share).clamp(min=WEIGHT_SCALE_MIN)
    return _WeightPlane.apply(weight, torch.where(members, sign(latent), 0.0), scale), scale
