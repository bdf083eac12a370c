"""What a run ends with: how good the model is and how sure that is, class by class, and what it confuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from gsb_vit.decision import Decision, calibrate, expected_calibration_error
from gsb_vit.metrics import class_figures, frequent_confusions, wilson_interval, worst_classes
from gsb_vit.terminal import Table, printable, shortened, show

CLASSES_SHOWN = 10
CONFUSIONS_SHOWN = 5
_NAME_CELLS = 24  # two names and the rest of a line fit 80 columns


def calibration_of(
    validation: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> tuple[Decision, dict[str, Any]]:
    """Fit the decision on validation pictures, and measure on test pictures what it changes.

    Both are logits (n, K) and labels (n,). The figures hold the expected calibration error before and after, and the
    share of test pictures that would be called unknown, None where nothing was fitted.
    """
    decision = calibrate(*validation)
    logits, labels = test
    alarms = float(decision.is_unknown(logits).mean()) if decision.unknown is not None else None
    return decision, {
        "pictures": len(validation[1]),
        "test_error_before": expected_calibration_error(Decision().probabilities(logits), labels),
        "test_error_after": expected_calibration_error(decision.probabilities(logits), labels),
        "test_false_alarm_rate": alarms,
    }


def show_results(
    console: Console, class_names: Sequence[str], confusion: np.ndarray, decision: Decision, measured: dict[str, Any]
) -> None:
    """Print the answer a person wants; no line is wider than 80 cells."""
    hits, n = int(np.trace(confusion)), int(confusion.sum())
    low, high = wilson_interval(hits, n)
    console.print(f"\nRight on {hits:,} of {n:,} test pictures: {hits / n:.1%}")
    console.print(f"(95 % interval {low:.1%} to {high:.1%})")
    if decision.unknown is None:
        console.print("Probabilities are not calibrated: the run has no validation pictures.")
    else:
        console.print(
            f"Temperature {decision.temperature:,.2f}, fitted on {measured['pictures']:,} validation pictures\n"
            f"  expected calibration error on test: {measured['test_error_before']:.1%} before, "
            f"{measured['test_error_after']:.1%} after\n"
            f"Threshold for unknown pictures, set to reject {decision.unknown.false_alarm_rate:.1%} of known ones\n"
            f"  rejected on test: {measured['test_false_alarm_rate']:.1%}"
        )
    console.print()
    show(classes_table(class_names, confusion), console=console)
    if (pairs := frequent_confusions(confusion, CONFUSIONS_SHOWN)) != []:
        console.print()
        show(confusions_table(class_names, confusion, pairs), console=console)


def classes_table(class_names: Sequence[str], confusion: np.ndarray, most: int = CLASSES_SHOWN) -> Table:
    """The classes with the smallest recall."""
    figures = class_figures(confusion)
    order = worst_classes(figures)
    made = Table("Classes, the worst first", ("class", "recall", "precision", "pictures"))
    for k in order[:most]:
        one = figures[k]
        name = shortened(printable(class_names[k]), _NAME_CELLS)
        made.add_row(name, f"{one.recall:.1%}", f"{one.precision:.1%}", f"{one.n:,}")
    if len(order) > most:
        rest = len(order) - most
        made.caption = f"{rest} more class{'es' * (rest > 1)}: recall {figures[order[most]].recall:.1%} or better"
    return made


def confusions_table(class_names: Sequence[str], confusion: np.ndarray, pairs: Sequence[tuple[int, int, int]]) -> Table:
    """Pairs of classes that were taken for each other, by name."""
    made = Table("Most frequent confusions", ("true class", "answer", "pictures"), left=("answer",))
    for truth, answer, count in pairs:
        names = (shortened(printable(class_names[k]), _NAME_CELLS) for k in (truth, answer))
        made.add_row(*names, f"{count:,} of {int(confusion[truth].sum()):,}")
    return made
