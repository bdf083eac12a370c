"""Binary schemes: what each one puts into the same network, one row a scheme.

A scheme makes the quantizers of a linear layer's inputs, of queries and keys, of the attention matrix and of the
Value, and may replace the activation function. Weights are those of ``weight_quantizers`` (BWN by default) in every
scheme, edges, attention bias and training too, so that a comparison shows the scheme and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gsb_vit.quantization import Quantization

from .binary_linear import RPReLU
from .input_quantizers import ElasticInteger, ElasticSign, ElasticStep, Planes, Quantizer
from .quantize import SCALE_MIN, processes, scale_ste, unit_sign, unit_step
from .superposition_quantizers import AttentionSuperposition, ValueSuperposition


@dataclass(frozen=True)
class Scheme:
    """What a scheme puts where; every field but the last three makes one quantizer.

    ``hidden`` quantizes the inputs of fc2, ``linear`` those of the other layers. ``activation`` makes, from a number
    of channels, the function in place of GELU and behind proj and fc2. ``shift``: learned shifts before the
    quantizers of linear layers, queries, keys and Values. ``softmax``: else the attention quantizer gets the scores.
    """

    linear: Callable[[], Planes]
    hidden: Callable[[], Planes]
    query_key: Callable[[], Planes]
    attention: Callable[[], Planes]
    value: Callable[[], Planes]
    activation: Callable[[int], nn.Module] | None = None
    shift: bool = True
    softmax: bool = True


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


def _gsb(q: Quantization) -> Scheme:
    """GSB, https://arxiv.org/abs/2305.07931: elastic one-bit inputs, superposed attention matrix and Value.

    ``bit`` is the same row with one group each (``Quantization`` sees to that): the elastic quantizers of BiT,
    https://arxiv.org/abs/2205.13016. Departures from BiT: the learned threshold of a layer is our shift per channel
    (the attention matrix has none), and there is no chain of teachers of falling precision.
    """
    shared = (q.threshold_scope, q.initial_scales)
    return Scheme(
        linear=ElasticSign,
        hidden=ElasticStep,
        query_key=ElasticSign,
        attention=lambda: AttentionSuperposition(q.attention_thresholds, *shared),
        value=lambda: ValueSuperposition(q.value_thresholds, *shared, q.value_gradient),
    )


def _xnor(q: Quantization) -> Scheme:
    """XNOR-Net / BWN, https://arxiv.org/abs/1603.05279: plain sign, analytic scales, gradient 1[|x| ≤ 1].

    A scale is mean|x| over the numbers that one output sums over, so it leaves the product: a token's channels in
    linear layers, queries and keys, a channel's tokens in the Value. Departures: sign would make a softmax all ones,
    so the attention matrix has {0, 1} at the mean of each row (``MeanStep``); LayerNorm stands for BatchNorm.
    """
    return Scheme(
        linear=MeanSign,
        hidden=MeanSign,
        query_key=MeanSign,
        attention=MeanStep,
        value=partial(MeanSign, dim=-2),
        shift=False,
    )


def _reactnet(q: Quantization) -> Scheme:
    """ReActNet, https://arxiv.org/abs/2003.03488: RSign (learned shift, sign), RPReLU, piecewise quadratic gradient.

    RPReLU takes the place of GELU and follows proj and fc2; behind qkv, where signs come next, the learned shifts do
    its work. Departures: no BatchNorm, so signs have a learned scale per layer, which leaves the gradient's width at
    1; the attention matrix, which ReActNet does not have, gets BiT's elastic step (https://arxiv.org/abs/2205.13016)
    from half its initial scale, because these narrow queries and keys leave the matrix flat (``StepFromMean``).
    """
    rsign = partial(UnitSign, quadratic=True)
    return Scheme(
        linear=rsign,
        hidden=rsign,
        query_key=rsign,
        attention=StepFromMean,
        value=rsign,
        activation=RPReLU,
    )


def _bibert(q: Quantization) -> Scheme:
    """BiBERT, https://arxiv.org/abs/2203.06390: bi-attention, boolean scores instead of softmax, plain signs.

    Departures: no direction-matching distillation (the loss is every scheme's); inputs of linear layers, Value and
    attention matrix have one learned scale each, because no LayerNorm follows them in a pre-norm transformer; the
    attention bias is added to the scores.
    """
    return Scheme(
        linear=UnitSign,
        hidden=UnitSign,
        query_key=PlainSign,
        attention=BooleanScores,
        value=UnitSign,
        shift=False,
        softmax=False,
    )


def _integer(q: Quantization) -> Scheme:
    """Eight-bit activations for the ladder of precisions: LSQ (https://arxiv.org/abs/1902.08153), a scale per layer.

    Signed everywhere but in the attention matrix, which is unsigned and, as with one bit, 0 where it is negative. (The
    released code shifts unsigned inputs by the smallest number of the batch; an answer would depend on its neighbours.)
    """
    signed = partial(ElasticInteger, 8)
    return Scheme(
        linear=signed,
        hidden=signed,
        query_key=signed,
        attention=partial(ElasticInteger, 8, signed=False, offset=False),
        value=signed,
    )


_ROWS = {"gsb": _gsb, "bit": _gsb, "xnor": _xnor, "reactnet": _reactnet, "bibert": _bibert}


def scheme_of(quantization: Quantization) -> Scheme:
    """Return the scheme that the switches ask for."""
    return _integer(quantization) if quantization.activation_bits == 8 else _ROWS[quantization.scheme](quantization)
