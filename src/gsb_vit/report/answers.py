"""What ``predict`` prints: lines for people, or JSON, JSON Lines or CSV for programs; answers come one by one."""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsb_vit.terminal import as_json, printable, terminal_width

from .tables import AnswerLines

if TYPE_CHECKING:
    from gsb_vit.runtime.classifier import Prediction

FORMATS = ("text", "json", "jsonl", "csv")
CSV_COLUMNS = ("path", "status", "rank", "class", "probability", "error")
# Sent to: a picture with its predictions, or with what is wrong with it.
Answers = Generator[None, tuple[Path, "Sequence[Prediction] | str"], None]


def answer_writer(kind: str, pictures: Sequence[Path], class_names: Sequence[str], unknown: bool = False) -> Answers:
    """Return the generator that prints what it is sent, in one of ``FORMATS``; it begins at ``next``.

    With ``unknown``, a picture without predictions is none of the classes.

    * ``json``: an array of objects, whole JSON also where it is cut short. ``path``; ``predictions``, a list of
      ``class`` and ``probability``; with ``unknown`` also ``unknown``, a boolean; or ``error`` instead of both.
    * ``jsonl``: these objects, one a line.
    * ``csv``: RFC 4180, with a heading: a row for each prediction. ``status`` is ``ok``, ``unknown`` or ``error``.
    """
    if kind == "json":
        return _json_answers(unknown)
    if kind == "jsonl":
        return _json_lines(unknown)
    if kind == "csv":
        return _csv_answers()
    return _text_answers(pictures, class_names, unknown)


def _values(picture: Path, answer: Sequence[Prediction] | str, unknown: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"path": str(picture)}
    if isinstance(answer, str):
        return {**values, "error": answer}
    if unknown:
        values["unknown"] = not answer
    return {**values, "predictions": [{"class": one.name, "probability": one.probability} for one in answer]}


def _json_answers(unknown: bool) -> Answers:
    separator = ""
    try:
        print("[", end="", flush=True)
        while True:
            values = _values(*(yield), unknown)
            text, separator = f"{separator}\n{textwrap.indent(as_json(values), '  ')}", ","
            print(text, end="", flush=True)
    finally:  # an array that is cut short is still JSON
        print("\n]", flush=True)


def _json_lines(unknown: bool) -> Answers:
    while True:
        print(as_json(_values(*(yield), unknown), indent=None), flush=True)


def _csv_answers() -> Answers:
    print(_row(CSV_COLUMNS), flush=True)
    while True:
        picture, answer = yield
        print(*map(_row, _csv_rows(str(picture), answer)), sep="\n", flush=True)


def _csv_rows(picture: str, answer: Sequence[Prediction] | str) -> list[tuple[str, ...]]:
    if isinstance(answer, str):
        return [(picture, "error", "", "", "", answer)]
    if not answer:
        return [(picture, "unknown", "", "", "", "")]
    return [(picture, "ok", str(n), one.name, repr(one.probability), "") for n, one in enumerate(answer, start=1)]


def _row(cells: Sequence[str]) -> str:
    """A line of CSV, as ``csv`` quotes it; a terminal is shown nothing that it would obey."""
    texts = [printable(cell) if sys.stdout.isatty() else cell for cell in cells]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(texts)
    return line.getvalue()


def _text_answers(pictures: Sequence[Path], class_names: Sequence[str], unknown: bool) -> Answers:
    lines = AnswerLines(pictures, class_names, terminal_width(), unknown)
    if (heading := lines.heading()) is not None:
        print(heading)
    while True:
        picture, answer = yield
        said = lines.problem(picture, answer) if isinstance(answer, str) else lines.answers(picture, answer)
        print(*said, sep="\n", flush=True)
