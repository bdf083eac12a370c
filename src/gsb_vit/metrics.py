"""Classification metrics from logits, in NumPy, so that a device without PyTorch can evaluate a packed model."""

from dataclasses import dataclass

import numpy as np

from gsb_vit.errors import InputError

# What tables call the keys of classification_metrics.
METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "macro_f1": "F1",
}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (n, K), computed in float64: float64 (n, K), rows that sum to 1."""
    wide = np.asarray(logits, dtype=np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pictures by true class (row) and predicted class (column): (K, K) int64."""
    cells = labels.astype(np.int64) * num_classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassFigures:
    """How a class fares: its pictures, and the shares found (recall) and rightly answered (precision), and F1."""

    n: int
    recall: float
    precision: float
    f1: float


def class_figures(confusion: np.ndarray) -> list[ClassFigures]:
    """Return the figures of every class of a confusion matrix (K, K), rows true. A quotient without a denominator is 0.

    ``recall_k = M_kk / Σ_j M_kj``, ``precision_k = M_kk / Σ_j M_jk``, ``F1_k = 2·M_kk / (Σ_j M_jk + Σ_j M_kj)``.
    """
    counts = np.asarray(confusion)
    actual, predicted = counts.sum(axis=1), counts.sum(axis=0)

    def quotient(hits: int, of: int) -> float:
        return float(hits / of) if of else 0.0

    return [
        ClassFigures(int(n), quotient(hit, n), quotient(hit, given), quotient(2 * hit, n + given))
        for hit, n, given in zip(np.diag(counts), actual, predicted, strict=True)
    ]


def worst_classes(figures: list[ClassFigures]) -> list[int]:
    """Return the classes that have pictures, the smallest recall first; then by precision, then in their order."""
    present = [k for k, one in enumerate(figures) if one.n]
    return sorted(present, key=lambda k: (figures[k].recall, figures[k].precision, k))


def frequent_confusions(confusion: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Return up to ``most`` pairs (true class, answer, pictures) that were confused, the most frequent first.

    Of equally frequent ones, that with the larger share of its true class comes first.
    """
    counts = np.asarray(confusion)
    actual = counts.sum(axis=1)
    pairs = [(int(i), int(j), int(counts[i, j])) for i, j in zip(*np.nonzero(counts), strict=True) if i != j]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[2] / actual[pair[0]], pair[0], pair[1]))[:most]


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of a share: ``hits`` of ``n``; by default the one of 95 %.

    ``(p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)`` with p = hits/n (E. B. Wilson, 1927); 0 … 1 for n = 0.
    It holds for pictures drawn one by one from what the model will meet.
    """
    if n == 0:
        return 0.0, 1.0
    share, square = hits / n, z * z / n
    middle = (share + square / 2) / (1 + square)
    reach = z * np.sqrt(share * (1 - share) / n + square / (4 * n)) / (1 + square)
    return float(max(middle - reach, 0.0)), float(min(middle + reach, 1.0))


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the share of pictures whose label is among the k largest logits.

    Among equal logits the lower class comes first, as it does for ``argmax``, so that top-1 is ``argmax == label``.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    classes = np.arange(logits.shape[1])
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return float((ahead.sum(axis=1) < k).mean())


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1, top-5 and the macro averages of precision, recall and F1, all as shares from 0 to 1.

    ``precision_k = M_kk / Σ_j M_jk``, ``recall_k = M_kk / Σ_j M_kj``, ``F1_k = 2·M_kk / (Σ_j M_jk + Σ_j M_kj)`` with M
    the confusion matrix. A quotient without a denominator is 0. The mean runs over the classes that occur among the
    labels or the predictions (scikit-learn's and torchmetrics' convention).

    Args:
        logits: float (n, K).
        labels: integer (n,), each from 0 to K − 1.

    Raises:
        InputError: no pictures, or a label that is no class of the logits.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    num_classes = logits.shape[1]
    if len(labels) == 0:
        raise InputError("no pictures to evaluate: give a folder that holds at least one picture")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"label {labels.max() if labels.min() >= 0 else labels.min()} is not a class of a model with {num_classes} "
            "classes: evaluate on data with the classes that the model was trained on"
        )
    counts = confusion_matrix(logits.argmax(axis=1), labels, num_classes)
    hits = np.diag(counts).astype(np.float64)
    predicted, actual = counts.sum(axis=0), counts.sum(axis=1)
    occurs = (predicted + actual) > 0

    def macro(denominator: np.ndarray, factor: float = 1.0) -> float:
        quotient = np.divide(factor * hits, denominator, out=np.zeros(num_classes), where=denominator > 0)
        return float(quotient[occurs].mean())

    return {
        "n": len(labels),
        "top1": top_k_accuracy(logits, labels, 1),
        "top5": top_k_accuracy(logits, labels, 5),
        "macro_precision": macro(predicted),
        "macro_recall": macro(actual),
        "macro_f1": macro(predicted + actual, factor=2.0),
    }
