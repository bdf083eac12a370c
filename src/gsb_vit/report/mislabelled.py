"""Training pictures whose label is probably wrong, by what the model said of them while it trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TIMES = 4.0


@dataclass(frozen=True)
class Suspect:
    """A training picture, its label, the class it rather looks like, and the mean probability of each."""

    index: int
    label: int
    looks_like: int
    label_probability: float
    other_probability: float


def suspects(probabilities: NDArray[np.floating], labels: NDArray[np.integer], times: float = TIMES) -> list[Suspect]:
    """Return the pictures whose label is probably wrong, the surest first.

    ``probabilities`` p (n, K) are means over the epochs of training. A wrong label is learnt late or never, so over
    time the true class is the more probable one; the area under the margin has the same idea
    (https://arxiv.org/abs/2001.10528). A picture with label y is a suspect where max_k p_k > times · p_y. Suspects are
    ordered by p_y / max_k p_k.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels].astype(np.float64)
    others = probabilities.astype(np.float64)
    others[rows, labels] = -1.0
    best = others.argmax(axis=1)
    other = others[rows, best]
    chosen = np.flatnonzero(other > times * own)
    order = chosen[np.argsort(own[chosen] / other[chosen], kind="stable")]
    return [Suspect(i, int(labels[i]), int(best[i]), float(own[i]), float(other[i])) for i in map(int, order)]
