"""Scores that tell known pictures from strangers, more than a packed file can hold: for comparison, NumPy alone.

A score is high for known pictures. Its statistics are those of pictures that the model was trained or chosen on, so no
stranger and no test picture is needed. x are features before the head (n, D), m_k their mean over class k, S their
covariance within the classes, S0 that of all. S and S0 are shrunk by a half toward the mean of their diagonal.

* logits: ``max_logit``; ``energy`` (https://arxiv.org/abs/2010.03759); ``max_probability``
  (https://arxiv.org/abs/1610.02136); ``generalized_entropy`` (https://arxiv.org/abs/2307.01206);
  ``standardized_max_logit``, by mean and deviation of the class answered (https://arxiv.org/abs/2107.11264)
* distance to the nearest m_k: ``euclidean``; ``diagonal``, in deviations of each feature; ``mahalanobis``, by S
  (https://arxiv.org/abs/1807.03888); ``relative_mahalanobis``, less the distance to the mean of all by S0
  (https://arxiv.org/abs/2106.09022); ``cosine``, the largest; of logits instead of features:
  ``relative_mahalanobis_of_logits``
* ``neighbours``: the tenth largest cosine to one of the pictures (https://arxiv.org/abs/2204.06507)
* ``residual_and_energy``: energy less the length outside the 64 principal directions, scaled alike
  (https://arxiv.org/abs/2203.10807)
* ``euclidean_and_max_logit``: both, standardized, added
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gsb_vit.decision import unknown_scores
from gsb_vit.metrics import softmax

Array = NDArray[np.float64]
Score = Callable[[Array, Array], Array]
SHRINKAGE, NEIGHBOUR, PRINCIPAL, GAMMA, LEAST = 0.5, 10, 64, 0.1, 1e-12


def fitted(features: Array, logits: Array, labels: NDArray[np.integer], temperature: float) -> dict[str, Score]:
    """Return the scores, functions of features (n, D) and logits (n, K), from the statistics of such pictures."""
    x, z = np.asarray(features, dtype=np.float64), np.asarray(logits, dtype=np.float64)
    known = np.unique(labels)
    means = np.stack([x[labels == k].mean(axis=0) for k in known])
    within = x - means[np.searchsorted(known, labels)]
    centre, principal = x.mean(axis=0), np.linalg.eigh(np.cov(x.T, bias=True))[1][:, :-PRINCIPAL]
    inside, everywhere = whitening(within), whitening(x - centre)
    deviations = np.sqrt(np.mean(within**2, axis=0)) + LEAST
    answers, largest = z.argmax(axis=1), z.max(axis=1)
    by_class = _of_answers(answers, largest, z.shape[1])
    bank, rank = unit(x), min(NEIGHBOUR, len(x))
    outside = float(np.mean(np.linalg.norm((x - centre) @ principal, axis=1)))

    def energy(_: Array, z: Array) -> Array:
        return unknown_scores(z, "energy", temperature)

    weight = abs(float(np.mean(energy(x, z)))) / max(outside, LEAST)
    logit_means = np.stack([z[labels == k].mean(axis=0) for k in known])
    z_within, z_centre = whitening(z - logit_means[np.searchsorted(known, labels)]), z.mean(axis=0)
    z_everywhere = whitening(z - z_centre)

    def entropy(_: Array, z: Array) -> Array:
        p = softmax(z / temperature)
        return -((p * (1 - p)) ** GAMMA).sum(axis=1)

    scores: dict[str, Score] = {
        "max_logit": lambda _, z: z.max(axis=1),
        "energy": energy,
        "max_probability": lambda _, z: softmax(z / temperature).max(axis=1),
        "generalized_entropy": entropy,
        "standardized_max_logit": lambda _, z: (
            (z.max(axis=1) - by_class[0][z.argmax(axis=1)]) / by_class[1][z.argmax(axis=1)]
        ),
        "euclidean": lambda x, _: -nearest(x, means),
        "diagonal": lambda x, _: -nearest(x / deviations, means / deviations),
        "mahalanobis": lambda x, _: -nearest(x @ inside, means @ inside),
        "relative_mahalanobis": lambda x, _: (
            nearest(x @ everywhere, centre[None] @ everywhere) - nearest(x @ inside, means @ inside)
        ),
        "relative_mahalanobis_of_logits": lambda _, z: (
            nearest(z @ z_everywhere, z_centre[None] @ z_everywhere) - nearest(z @ z_within, logit_means @ z_within)
        ),
        "cosine": lambda x, _: (unit(x) @ unit(means).T).max(axis=1),
        "neighbours": lambda x, _: np.sort(unit(x) @ bank.T, axis=1)[:, -rank],
        "residual_and_energy": lambda x, z: energy(x, z) - weight * np.linalg.norm((x - centre) @ principal, axis=1),
    }
    both = [(scores[name], scores[name](x, z)) for name in ("euclidean", "max_logit")]
    scores["euclidean_and_max_logit"] = lambda x, z: np.sum(
        [(score(x, z) - own.mean()) / (own.std() + LEAST) for score, own in both], axis=0
    )
    return scores


def _of_answers(answers: NDArray[np.integer], largest: Array, classes: int) -> tuple[Array, Array]:
    """Mean and deviation of the largest logit of each answer; those of all where fewer than three have it."""
    groups = [largest[answers == k] if np.sum(answers == k) > 2 else largest for k in range(classes)]
    return np.array([one.mean() for one in groups]), np.array([one.std() for one in groups]) + LEAST


def unit(x: Array) -> Array:
    """Rows of length 1."""
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + LEAST)


def whitening(centred: Array) -> Array:
    """A matrix W with W·Wᵀ the inverse of the shrunk covariance of rows whose mean is 0."""
    covariance = centred.T @ centred / len(centred)
    sides = np.eye(len(covariance))
    shrunk = (1 - SHRINKAGE) * covariance + (SHRINKAGE * np.trace(covariance) / len(sides) + LEAST) * sides
    return np.linalg.cholesky(np.linalg.inv(shrunk))


def nearest(x: Array, means: Array) -> Array:
    """The smallest squared distance of each row to one of the means."""
    return np.min([((x - mean) ** 2).sum(axis=1) for mean in means], axis=0)
