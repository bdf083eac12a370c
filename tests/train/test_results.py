"""What a run ends with: every line fits 80 columns, and the figures are those of the logits."""

import io

import numpy as np
import pytest
from rich.cells import cell_len

from gsb_vit.decision import Decision, expected_calibration_error
from gsb_vit.metrics import softmax
from gsb_vit.terminal import plain_console
from gsb_vit.train.results import calibration_of, classes_table, show_results

RNG = np.random.default_rng(0)


def overconfident(n, classes=12):
    """Logits three times as large as those that the labels were drawn with."""
    logits = RNG.normal(0, 2, (n, classes))
    labels = np.array([RNG.choice(classes, p=p) for p in softmax(logits)])
    return (3 * logits).astype(np.float32), labels


def shown(names, confusion, decision, measured):
    stream = io.StringIO()
    show_results(plain_console(stream), names, confusion, decision, measured)
    return stream.getvalue()


def test_the_decision_comes_from_validation_and_is_measured_on_test():
    validation, (logits, labels) = overconfident(400), overconfident(2000)
    decision, measured = calibration_of(validation, (logits, labels))
    assert decision.temperature == pytest.approx(3, rel=0.15)
    assert measured["pictures"] == 400
    assert measured["test_error_before"] == expected_calibration_error(softmax(logits), labels)
    assert measured["test_error_after"] < measured["test_error_before"] / 2
    assert measured["test_false_alarm_rate"] == decision.is_unknown(logits).mean()


def test_no_validation_pictures_are_no_reason_to_fail():
    decision, measured = calibration_of((np.zeros((0, 12)), np.zeros(0, int)), overconfident(50))
    assert decision == Decision() and measured["test_false_alarm_rate"] is None
    assert measured["test_error_before"] == measured["test_error_after"]
    said = shown([str(k) for k in range(12)], np.eye(12, dtype=int), decision, measured)
    assert "Probabilities are not calibrated: the run has no validation pictures." in said
    assert "confusions" not in said


def test_every_line_fits_80_columns():
    names = [f"名{k} " + "a very long name of a class " * 4 for k in range(30)]
    confusion = RNG.integers(0, 1_000_000, (30, 30))
    decision, measured = calibration_of(overconfident(100), overconfident(100))
    said = shown(names, confusion, decision, {**measured, "pictures": 10_000_000})
    assert max(cell_len(line) for line in said.splitlines()) <= 80
    assert "20 more classes: recall" in said and len(said.splitlines()) < 35


def test_the_worst_class_and_the_most_frequent_confusion_come_first():
    confusion = np.array([[9, 1, 0], [2, 6, 2], [4, 0, 0]])
    lines = shown(["ant", "bee", "cat"], confusion, Decision(), {}).splitlines()
    assert "Right on 15 of 24 test pictures: 62.5%" in lines
    assert "(95 % interval 42.7% to 78.8%)" in lines
    table = lines[lines.index("Classes, the worst first") :]
    assert [line.split()[:3] for line in table[2:5]] == [
        ["cat", "0.0%", "0.0%"], ["bee", "60.0%", "85.7%"], ["ant", "90.0%", "60.0%"],
    ]  # fmt: skip
    pairs = table[table.index("Most frequent confusions") + 2 :]
    found = [" ".join(line.split()) for line in pairs]
    assert found == ["cat ant 4 of 4", "bee ant 2 of 10", "bee cat 2 of 10", "ant bee 1 of 10"]


def test_a_class_without_test_pictures_is_left_out():
    table = classes_table(["ant", "bee"], np.array([[3, 1], [0, 0]]))
    assert [row[0][0] for row in table.rows] == ["ant"]
