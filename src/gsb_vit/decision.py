"""What logits are taken for: calibrated probabilities, and whether a picture is none of the classes. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .metrics import class_figures, classification_metrics, confusion_matrix, softmax

SCORES = ("max_logit", "energy")
DEFAULT_SCORE = "max_logit"
FALSE_ALARM_RATE = 0.05
BINS = 15
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-2, 1e3
_HALVINGS = 60


@dataclass(frozen=True)
class Unknown:
    """When a picture is called unknown: its score is below the threshold.

    ``max_logit`` is the largest logit m. ``energy`` is ``m + T·log(Σ exp((logit − m)/T))``
    (https://arxiv.org/abs/2010.03759, sign turned), T the temperature. Both are high for known pictures.
    ``false_alarm_rate`` is the share of known pictures that the threshold was set to call unknown.
    """

    score: str
    threshold: float
    false_alarm_rate: float


@dataclass(frozen=True)
class Decision:
    """How logits become an answer. The default leaves them alone: temperature 1, nothing is unknown."""

    temperature: float = 1.0
    unknown: Unknown | None = None

    def probabilities(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return softmax(logits / temperature), in float64: (n, K) → (n, K), rows that sum to 1."""
        return softmax(np.asarray(logits, dtype=np.float64) / self.temperature)

    def is_unknown(self, logits: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return whether each row of logits (n, K) is none of the classes: (n,). A score at the threshold is known.

        Raises:
            InputError: there is no threshold.
        """
        unknown = self.require_unknown()
        return unknown_scores(logits, unknown.score, self.temperature) < unknown.threshold

    def require_unknown(self) -> Unknown:
        """Return when a picture is unknown. Raises InputError where there is no threshold."""
        if self.unknown is None:
            raise InputError(
                "the model has no threshold for unknown pictures; export its run again, trained with some validation "
                "pictures (data.validation_fraction)"
            )
        return self.unknown

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; no ``unknown`` where there is no threshold."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Decision:
        """Read what :meth:`to_json` wrote."""
        unknown = values.get("unknown")
        return cls(values["temperature"], None if unknown is None else Unknown(**unknown))


def unknown_scores(logits: NDArray[np.floating], score: str, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the score of each row of logits (n, K), high for known pictures: float64 (n,)."""
    wide = np.asarray(logits, dtype=np.float64)
    largest = wide.max(axis=1)
    if score == "max_logit":
        return largest
    return largest + temperature * np.log(np.exp((wide - largest[:, None]) / temperature).sum(axis=1))


def calibrate(
    logits: NDArray[np.floating],
    labels: NDArray[np.integer],
    *,
    score: str = DEFAULT_SCORE,
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> Decision:
    """Fit temperature and threshold on pictures that were not trained on: logits (n, K), labels (n,).

    Without pictures nothing is fitted. With n of them, the threshold is the k-th smallest score, k = ⌊r·(n + 1)⌋ and
    at least 1. A new picture of the same kind is below it with a probability of at most k/(n + 1). So where n is below
    1/r − 1, the rate that is stated is 1/(n + 1) instead of r.

    Raises:
        InputError: a ``false_alarm_rate`` that is not between 0 and 1, both exclusive, or an unknown ``score``.
    """
    if score not in SCORES:
        raise InputError(f"score {score!r} is unknown; use one of {', '.join(SCORES)}")
    if not 0 < false_alarm_rate < 1:
        raise InputError(f"false_alarm_rate {false_alarm_rate!r} must be between 0 and 1, as in 0.05")
    n = len(labels)
    if n == 0:
        return Decision()
    temperature = fit_temperature(logits, labels)
    rank = max(int(false_alarm_rate * (n + 1) + 1e-9), 1)
    threshold = float(np.sort(unknown_scores(logits, score, temperature))[rank - 1])
    return Decision(temperature, Unknown(score, threshold, max(false_alarm_rate, 1 / (n + 1))))


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the temperature T with the smallest mean cross-entropy of softmax(logits/T): logits (n, K), labels (n,).

    T comes from 0.01 … 1000 (https://arxiv.org/abs/1706.04599). The targets are smoothed by 1/(n + 2), shared by
    the other classes, as Platt did (Probabilistic outputs for support vector machines, 1999): where all n pictures are
    right, T would otherwise fall to 0. The cross-entropy is convex in 1/T, and its derivative in 1/T, the mean of
    Σ_k (p_k − t_k)·logit_k, is halved to its zero on a logarithmic scale.
    """
    wide = np.asarray(logits, dtype=np.float64)
    n, classes = wide.shape
    if classes < 2:
        return 1.0
    smoothing = 1 / (n + 2)
    targets = np.full(wide.shape, smoothing / (classes - 1))
    targets[np.arange(n), labels] = 1 - smoothing
    wanted = float((targets * wide).sum() / n)
    low, high = np.log(LEAST_TEMPERATURE), np.log(MOST_TEMPERATURE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        reached = float((softmax(wide / np.exp(middle)) * wide).sum() / n)
        low, high = (middle, high) if reached > wanted else (low, middle)
    return float(np.exp((low + high) / 2))


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], bins: int = BINS
) -> float:
    """Return how far confidence is from accuracy: Σ_b (n_b/n)·|accuracy_b − confidence_b|, from 0 to 1.

    Pictures are binned by the largest of their probabilities (n, K), in ``bins`` bins of equal width; a bin includes
    its upper edge (https://arxiv.org/abs/1706.04599).
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def evaluation(
    logits: NDArray[np.floating], labels: NDArray[np.integer], class_names: Sequence[str], decision: Decision
) -> dict[str, Any]:
    """Return all that ``evaluate`` tells of logits (n, K) with labels (n,).

    These are :func:`gsb_vit.metrics.classification_metrics`; ``calibration_error``, that of the decision's
    probabilities; ``false_alarm_rate``, the share called unknown, where there is a threshold; and ``classes``, in
    order: ``class``, ``n``, ``recall``, ``precision``, ``f1``.

    Raises:
        InputError: as ``classification_metrics``.
    """
    found: dict[str, Any] = {**classification_metrics(logits, labels)}
    found["calibration_error"] = expected_calibration_error(decision.probabilities(logits), labels)
    if decision.unknown is not None:
        found["false_alarm_rate"] = float(decision.is_unknown(logits).mean())
    figures = class_figures(confusion_matrix(np.argmax(logits, axis=1), labels, len(class_names)))
    rows = zip(class_names, figures, strict=True)
    return {**found, "classes": [{"class": name, **asdict(one)} for name, one in rows]}


def area_under_roc(known: Sequence[float], strangers: Sequence[float]) -> float:
    """Return the probability that a known picture scores above a stranger, ties counted half (AUROC)."""
    ordered = np.sort(np.asarray(known, dtype=np.float64))
    others = np.asarray(strangers, dtype=np.float64)
    above = len(ordered) - np.searchsorted(ordered, others, side="right")
    equal = np.searchsorted(ordered, others, side="right") - np.searchsorted(ordered, others, side="left")
    return float((above + equal / 2).mean() / len(ordered))
