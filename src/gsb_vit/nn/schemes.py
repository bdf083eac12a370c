"""Binary schemes: what each one puts into the same network, one row a scheme.

A scheme makes the quantizers of a linear layer's inputs, of queries and keys, of the attention matrix and of the
Value, and may replace the activation function. Weights are those of ``weight_quantizers`` (BWN by default) in every
scheme, edges, attention bias and training too, so that a comparison shows the scheme and nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from gsb_vit.quantization import Quantization

from .input_quantizers import ElasticInteger, ElasticSign, ElasticStep, Planes
from .rprelu import RPReLU
from .scheme_quantizers import BooleanScores, MeanSign, MeanStep, PlainSign, StepFromMean, UnitSign
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
    """Activations of 2, 4 or 8 bits for the ladder of precisions: LSQ (https://arxiv.org/abs/1902.08153).

    A layer has one scale. Signed everywhere but in the attention matrix, which is unsigned and, as with one bit, 0
    where it is negative. (The released code shifts unsigned inputs by the smallest number of the batch; an answer would
    depend on its neighbours.)
    """
    bits = q.activation_bits
    signed = partial(ElasticInteger, bits)
    return Scheme(
        linear=signed,
        hidden=signed,
        query_key=signed,
        attention=partial(ElasticInteger, bits, signed=False, offset=False),
        value=signed,
    )


_ROWS = {"gsb": _gsb, "bit": _gsb, "xnor": _xnor, "reactnet": _reactnet, "bibert": _bibert}


def scheme_of(quantization: Quantization) -> Scheme:
    """Return the scheme that the switches ask for."""
    return _integer(quantization) if quantization.activation_bits > 1 else _ROWS[quantization.scheme](quantization)
