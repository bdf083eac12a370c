"""Temperature, threshold and their measures against slow, independent formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsb_vit.decision import (
    Decision,
    Unknown,
    area_under_roc,
    calibrate,
    expected_calibration_error,
    fit_temperature,
    unknown_scores,
)
from gsb_vit.errors import InputError


def drawn(temperature, n=4000, classes=5, seed=0):
    """Logits, and labels drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, classes)).astype(np.float32)
    powers = np.exp(logits.astype(np.float64) / temperature)
    edges = (powers / powers.sum(axis=1, keepdims=True)).cumsum(axis=1)
    return logits, (rng.random((n, 1)) > edges).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 6.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    logits, labels = drawn(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)
    assert fit_temperature(4 * logits, labels) == pytest.approx(4 * fit_temperature(logits, labels), rel=1e-9)


def test_no_other_temperature_has_a_smaller_cross_entropy():
    logits, labels = drawn(2.0, n=50)
    n, classes = logits.shape
    targets = np.full((n, classes), 1 / (n + 2) / (classes - 1))
    targets[np.arange(n), labels] = 1 - 1 / (n + 2)

    def loss(temperature):
        scaled = logits.astype(np.float64) / temperature
        return float((np.log(np.exp(scaled).sum(axis=1)) - (targets * scaled).sum(axis=1)).mean())

    found = fit_temperature(logits, labels)
    assert all(loss(found) < loss(found * factor) for factor in (0.5, 0.99, 1.01, 2))


def test_all_right_does_not_end_in_certainty():
    logits = 3 * np.eye(4, dtype=np.float32)
    decision = calibrate(logits, np.arange(4))
    assert 0.1 < decision.temperature < 2
    assert decision.probabilities(logits).max() < 0.9  # (n + 1)/(n + 2) = 5/6 is the target


@pytest.mark.parametrize(("n", "rank", "rate"), [(1, 1, 0.5), (10, 1, 1 / 11), (18, 1, 1 / 19), (19, 1, 0.05),
                                                 (39, 2, 0.05), (100, 5, 0.05), (999, 50, 0.05)])  # fmt: skip
def test_the_threshold_is_the_score_of_that_rank(n, rank, rate):
    logits, labels = drawn(1.0, n=n)
    for score in ("max_logit", "energy"):
        decision = calibrate(logits, labels, score=score)
        assert decision.unknown.score == score and decision.unknown.false_alarm_rate == pytest.approx(rate)
        assert decision.is_unknown(logits).sum() == rank - 1
        assert decision.unknown.threshold == np.sort(unknown_scores(logits, score, decision.temperature))[rank - 1]


def test_new_pictures_are_called_unknown_as_seldom_as_stated():
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(300):
        logits = rng.normal(size=(1039, 3))
        decision = calibrate(logits[:39], rng.integers(0, 3, 39))
        rates.append(decision.is_unknown(logits[39:]).mean())
    assert np.mean(rates) == pytest.approx(2 / 40, abs=0.01)


def test_without_pictures_nothing_is_fitted():
    decision = calibrate(np.zeros((0, 3)), np.zeros(0, int))
    assert decision == Decision() and decision.to_json() == {"temperature": 1.0}
    with pytest.raises(InputError, match="no threshold"):
        decision.is_unknown(np.zeros((1, 3)))


def test_options_are_checked():
    with pytest.raises(InputError, match="entropy"):
        calibrate(np.eye(3), np.arange(3), score="entropy")
    for rate in (0, 1.0, float("nan")):
        with pytest.raises(InputError, match="false_alarm_rate"):
            calibrate(np.eye(3), np.arange(3), false_alarm_rate=rate)


def test_json_returns():
    for decision in (Decision(), Decision(2.0), Decision(2.0, Unknown("energy", -1.5, 0.05))):
        assert Decision.from_json(decision.to_json()) == decision


def test_scores():
    logits = np.array([[1.0, 2.0, 3.0], [1e4, 0.0, 0.0]], np.float32)
    assert unknown_scores(logits, "max_logit").tolist() == [3, 1e4]
    expected = [2 * np.log(np.exp(np.array([1, 2, 3]) / 2).sum()), 1e4]
    np.testing.assert_allclose(unknown_scores(logits, "energy", 2.0), expected)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_calibration_error_is_that_of_bins_one_by_one(pictures):
    confidences = np.array([0.5 + p / 2 for p, _ in pictures])
    labels = np.array([0 if right else 1 for _, right in pictures])
    probabilities = np.stack([confidences, 1 - confidences], axis=1)
    expected = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidences) if b / 15 < c <= (b + 1) / 15 or (b == 0 and c == 0)]
        if inside:
            accuracy = np.mean([labels[i] == probabilities[i].argmax() for i in inside])
            expected += len(inside) / len(labels) * abs(accuracy - np.mean(confidences[inside]))
    found = expected_calibration_error(probabilities, labels)
    near_edge = np.abs(confidences * 15 - np.round(confidences * 15)) < 1e-9
    assert near_edge.any() or found == pytest.approx(expected, abs=1e-12)


def test_area_under_roc_counts_pairs():
    rng = np.random.default_rng(0)
    known, strangers = rng.integers(0, 6, 40), rng.integers(0, 5, 30)
    pairs = [(k > s) + 0.5 * (k == s) for k in known for s in strangers]
    assert area_under_roc(known, strangers) == pytest.approx(np.mean(pairs))
