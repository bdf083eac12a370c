"""The NumPy metrics against hand-counted tables and scikit-learn."""

import numpy as np
import pytest

from gsb_vit.errors import InputError
from gsb_vit.metrics import (
    class_figures,
    classification_metrics,
    confusion_matrix,
    top_k_accuracy,
    wilson_interval,
)


def test_hand_counted_table():
    logits = np.eye(3)[[0, 0, 1, 2]]
    labels = np.array([0, 1, 1, 1])
    assert confusion_matrix(logits.argmax(1), labels, 3).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    found = classification_metrics(logits, labels)
    assert found["n"] == 4
    assert found["top1"] == 0.5
    assert found["top5"] == 1.0
    assert found["macro_precision"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["macro_recall"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)


@pytest.mark.parametrize(("num_classes", "seed"), [(2, 0), (7, 1), (40, 2)])
def test_against_scikit_learn(num_classes, seed):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(60, num_classes)).astype(np.float32)
    labels = rng.integers(num_classes, size=60)
    predicted = logits.argmax(1)
    found = classification_metrics(logits, labels)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, average="macro", zero_division=0
    )
    assert found["top1"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert (found["macro_precision"], found["macro_recall"], found["macro_f1"]) == pytest.approx(
        (precision, recall, f1)
    )
    if num_classes > 5:
        top5 = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(num_classes))
        assert found["top5"] == pytest.approx(top5)


def test_equal_logits_rank_the_lower_class_first():
    logits = np.zeros((2, 4), np.float32)
    assert top_k_accuracy(logits, np.array([0, 3]), 1) == 0.5
    assert top_k_accuracy(logits, np.array([0, 3]), 4) == 1.0


def test_foreign_labels_and_no_pictures_are_errors():
    with pytest.raises(InputError, match="label 3 is not a class of a model with 2 classes"):
        classification_metrics(np.zeros((1, 2)), np.array([3]))
    with pytest.raises(InputError, match="label -1 "):
        classification_metrics(np.zeros((1, 2)), np.array([-1]))
    with pytest.raises(InputError, match="no pictures"):
        classification_metrics(np.zeros((0, 2)), np.array([], int))


def test_figures_of_classes_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    labels, answers = rng.integers(0, 5, 60), rng.integers(0, 4, 60)
    found = class_figures(confusion_matrix(answers, labels, 6))
    precision, recall, f1, n = metrics.precision_recall_fscore_support(
        labels, answers, labels=range(6), zero_division=0
    )
    assert [one.n for one in found] == n.tolist()
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert [getattr(one, name) for one in found] == pytest.approx(expected.tolist())


def test_wilson_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for hits, n in ((0, 10), (10, 10), (3, 7), (1579, 2661)):
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)
