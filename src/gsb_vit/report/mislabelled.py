"""Training pictures whose label is probably wrong, by what the model said of them while it trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Suspect:
    """A training picture, its label, the class it rather looks like, and the mean probability of each."""

    index: int
    label: int
    looks_like: int
    label_probability: float
    other_probability: float


def suspects(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> list[Suspect]:
    """Return the pictures whose label is probably wrong, the surest first.

    ``probabilities`` (n, K) are means over the epochs of training: a wrong label is learnt late or never. As in
    confident learning (https://arxiv.org/abs/1911.00068), class k is likely for a picture where its mean probability
    p_k is at least t_k, the mean of p_k over the pictures that are labelled k. A picture is a suspect where the most
    probable of its likely classes is not its label. Suspects are ordered by the margin, p of that class less p of the
    label.
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=own, minlength=classes)
    thresholds = np.divide(sums, counts, out=np.full(classes, np.inf), where=counts > 0)
    likely = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = likely.argmax(axis=1)
    found = [
        Suspect(int(i), int(labels[i]), int(best[i]), float(own[i]), float(probabilities[i, best[i]]))
        for i in np.flatnonzero((likely.max(axis=1) >= 0) & (best != labels))
    ]
    return sorted(found, key=lambda one: (one.label_probability - one.other_probability, one.index))
