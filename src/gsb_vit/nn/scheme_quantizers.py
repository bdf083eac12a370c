"""Quantizers that only schemes other than GSB use."""

import torch
from torch import Tensor

from .input_quantizers import ElasticStep, Planes, Quantizer
from .quantize import SCALE_MIN, processes, scale_ste, unit_sign, unit_step


class MeanSign(Planes):
    """Sign with the analytic scale of XNOR-Net: y = s·sign(x), s = mean|x| over ``dim``, the one a product sums over.

    sign(0) = +1. grad_x = g·s·1[|x| ≤ 1] (``quantizers.unit_sign``); s is a constant of the gradient. No state.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        scale = x.detach().abs().mean(self.dim, keepdim=True, dtype=torch.float32)
        return [unit_sign(x)], scale.to(x.dtype)


class MeanStep(Planes):
    """The attention matrix with an analytic scale per row: A_b = s·1[A ≥ mean of its row], A (B, h, N, N).

    s = mean of the row's entries that are in, the least-squares scale of that plane as mean|x| is of sign(x). A row
    of equal entries is all in. grad_A = g·s·1[|A| ≤ 1]; s and the mean are constants of the gradient. No state.
    """

    signed = False

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        latent = x.detach()
        # Rounding can put the mean of equal entries above all of them.
        limit = torch.minimum(latent.mean(-1, keepdim=True), latent.amax(-1, keepdim=True))
        plane = unit_step(x, limit)
        members = plane.detach()
        return [plane], (latent * members).sum(-1, keepdim=True) / members.sum(-1, keepdim=True)


class UnitSign(Quantizer):
    """Sign with a learned scale that does not widen the gradient: y = s·sign(x).

    sign(0) = +1. grad_x = g·s·1[|x| ≤ 1], or with the piecewise quadratic's slope: ``quantizers.unit_sign``.
    grad_s = k Σ g·sign(x), k = 1/√n. Initial s = mean|x|.
    """

    def __init__(self, quadratic: bool = False) -> None:
        super().__init__()
        self.quadratic = quadratic

    def initial_scale(self, x: Tensor) -> Tensor:
        return x.abs().mean(dtype=torch.float32)

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        if not self.is_ready:
            self.initialize(x)
        return [unit_sign(x, self.quadratic)], scale_ste(self.scale, (x.numel() * processes()) ** -0.5)


class StepFromMean(ElasticStep):
    """The elastic step for an attention matrix near 1/N everywhere: y = s·1[x > s/2], initial s = 2·mean|x|.

    It begins with a threshold at the mean, under which rows sum to about 1 as those of softmax do; at BiT's 4·mean|x|
    nothing of such a matrix is in, and all behind it is 0. Gradients: ``quantizers.elastic_step``, k = 1/√n.
    """

    def initial_scale(self, x: Tensor) -> Tensor:
        return 2 * x.abs().mean(dtype=torch.float32)


class PlainSign(Planes):
    """Sign without a scale, y = sign(x), sign(0) = +1; grad_x = g·1[|x| ≤ 1]. No state."""

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        return [unit_sign(x)], x.new_ones(())


class BooleanScores(Quantizer):
    """The boolean attention matrix of BiBERT, from scores instead of softmax: A_b = s·1[score ≥ 0].

    Scores (B, h, N, N) with the attention bias added; a score of 0 gives 1. grad_score = g·s·1[|score| ≤ 1];
    grad_s = k Σ g·1[score ≥ 0], k = 1/√n. Initial s = 1/(mean number of ones in a row), so that rows sum to about 1 as
    those of softmax do. https://arxiv.org/abs/2203.06390; the scale is ours.
    """

    signed = False

    def initial_scale(self, x: Tensor) -> Tensor:
        return 1 / (x >= 0).sum(-1, dtype=torch.float32).mean().clamp(min=SCALE_MIN)

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        if not self.is_ready:
            self.initialize(x)
        return [unit_step(x, 0.0)], scale_ste(self.scale, (x.numel() * processes()) ** -0.5)
