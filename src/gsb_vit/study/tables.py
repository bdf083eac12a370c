"""What a study found as CSV, as a Markdown table, and in its place in a document."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError
from gsb_vit.metrics import METRIC_NAMES

from .plan import Study
from .results import Group, Row, Spread, file_bytes, public_spec


def study_command(study_file: Path, data: str) -> str:
    """The command that makes a study's rows, without this machine's folders."""
    file = study_file.name if study_file.is_absolute() else study_file.as_posix()
    parts = ["gsb-vit", "study", file, "--data", public_spec(data), "--out", f"runs/{study_file.stem}"]
    return shlex.join(parts)


def csv_text(study: Study, rows: Sequence[Row]) -> str:
    """All rows as CSV; metrics as fractions."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue()


def markdown(study: Study, groups: Sequence[Group], plot: str | None = None) -> str:
    """The table: percent, mean ± sample standard deviation over seeds; best final top-1 of each grid point in bold."""
    if not groups:
        return f"**{study.title}**: no run is finished yet.\n"
    columns = _columns(study, groups)
    best = {
        point: max(g.metrics[g.final]["top1"].mean for g in groups if g.point == point) for point in _points(groups)
    }
    shared = [len(set(parts)) == 1 for parts in zip(*map(_origin, groups), strict=True)]
    own = dict.fromkeys(_joined(group, [not same for same in shared]) for group in groups)
    letters = {text: f"({_letter(index)})" for index, text in enumerate(own)}
    if len(letters) > 1:
        columns.append(("made by", lambda group: letters[_joined(group, [not same for same in shared])]))
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|" + "---|" * len(columns)]
    for group in groups:
        cells = [text(group) for _, text in columns]
        if group.metrics[group.final]["top1"].mean == best[group.point]:
            place = [name for name, _ in columns].index("top-1")
            cells[place] = f"**{cells[place]}**"
        lines.append("| " + " | ".join(cells) + " |")
    notes = [_note(study, groups), _joined(groups[0], shared)]
    if len(letters) > 1:
        notes.append("; ".join(f"{letter} {text}" for text, letter in letters.items()))
    if plot:
        notes.append(f"![{study.title}]({plot})")
    return "\n".join([f"**{study.title}**", "", *lines, "", "\n\n".join(notes)]) + "\n"


def _columns(study: Study, groups: Sequence[Group]) -> list[tuple[str, Any]]:
    wanted = max((len(g.seeds) for g in groups), default=0)
    columns: list[tuple[str, Any]] = [("variant", lambda g: g.title)]
    for axis in study.axes:
        columns.append((f"`{axis}`", lambda g, axis=axis: str(dict(g.point)[axis])))
    if any(len(g.seeds) != len(study.seeds) for g in groups) or wanted != len(study.seeds):
        columns.append(("seeds", lambda g: f"{len(g.seeds)} of {len(study.seeds)}"))
    for stage, title in (("teacher", "teacher top-1"), ("stage1", "stage 1 top-1")):
        if any(stage in g.metrics and g.final != stage for g in groups):
            columns.append((title, lambda g, stage=stage: _earlier(g, stage)))
    for key, title in METRIC_NAMES.items():
        columns.append((title, lambda g, key=key: percent(g.metrics[g.final][key])))
    if any(g.gap for g in groups):
        columns.append(("minus teacher", lambda g: signed(g.gap)))
    if any(g.lead for g in groups):
        columns.append((f"minus {study.reference}, 95 % interval", lambda g: interval(g.lead)))
    if any(g.size for g in groups):
        columns.append(("kB", lambda g: kilobytes(g)))
    if any("latency_ms" in g.size for g in groups):
        columns.append(
            ("ms a picture", lambda g: f"{g.size['latency_ms']:.3f}" if "latency_ms" in g.size else "not run")
        )
    columns.append(("training", lambda g: f"{g.seconds:.0f} s"))
    return columns


def _earlier(group: Group, stage: str) -> str:
    return percent(group.metrics[stage]["top1"]) if stage in group.metrics and stage != group.final else ""


def percent(value: Spread) -> str:
    """``56.20 ± 0.41``, in percent."""
    return f"{100 * value.mean:.2f}" + (f" ± {100 * value.sd:.2f}" if value.sd is not None else "")


def signed(value: Spread | None) -> str:
    """As ``percent``, with the sign."""
    return ("+" if value.mean > 0 else "") + percent(value) if value else ""


def interval(value: Spread | None) -> str:
    """``-1.60 [-2.31, -0.89]``, in points."""
    if value is None:
        return ""
    text = f"{100 * value.mean:+.2f}"
    if value.half is None:
        return text
    return f"{text} [{100 * (value.mean - value.half):+.2f}, {100 * (value.mean + value.half):+.2f}]"


def kilobytes(group: Group) -> str:
    """Kilobytes (1000 bytes); ``*`` where no packed file can hold the model."""
    size = file_bytes(group)
    return "" if size is None else f"{size / 1000:.0f}" + ("" if group.size.get("packed_bytes") else "*")


def _points(groups: Sequence[Group]) -> list[tuple[tuple[str, Any], ...]]:
    return list(dict.fromkeys(group.point for group in groups))


def _note(study: Study, groups: Sequence[Group]) -> str:
    pictures = groups[0].rows[0]["test_pictures"]
    seeds = [seed for seed in study.seeds if any(seed in group.seeds for group in groups)]
    text = (
        f"Test top-1, top-5, macro precision, recall and F1 of the last stage in percent, {pictures} pictures; mean ± "
        f"sample standard deviation over seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; the best top-1 in "
        "bold. Differences are between runs of the same seed. Training: the time of teacher and stages, shared ones "
        "counted in each row."
    )
    if any(group.size for group in groups):
        text += " Sizes are of the packed file; * where the runtime does not run it: all numbers at their trained bits."
    return text


def _origin(group: Group) -> tuple[str, str, str]:
    """What made a group's rows: command, commits, machine."""
    made = {key: sorted({str(row[key]) for row in group.rows}) for key in ("command", "threads")}
    commits = sorted({part for row in group.rows for part in str(row["commit"]).split(", ")})
    machines = sorted({" + ".join(filter(None, (row["cpu"], row["gpu"]))) or "unknown" for row in group.rows})
    threads = ", ".join(made["threads"])
    return (
        f"`{made['command'][0]}`",
        f"commit {', '.join(commits)}",
        f"{', '.join(machines)}, {threads} thread{'' if threads == '1' else 's'} a run",
    )


def _joined(group: Group, wanted: Sequence[bool]) -> str:
    return "; ".join(compress(_origin(group), wanted))


def _letter(index: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[index % 26] * (1 + index // 26)


def replace_between_markers(document: Path, name: str, text: str) -> str:
    """The document with ``text`` between ``<!-- study NAME -->`` and ``<!-- /study NAME -->``.

    Raises:
        InputError: the document cannot be read or lacks the markers, once each.
    """
    start, end = f"<!-- study {name} -->", f"<!-- /study {name} -->"
    try:
        old = document.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {document} ({error.strerror}); give a Markdown file") from error
    if old.count(start) != 1 or old.count(end) != 1 or old.index(start) > old.index(end):
        raise InputError(
            f"{document} needs the lines {start} and {end}, once each; add them where the table shall stand"
        )
    return re.sub(
        re.escape(start) + ".*?" + re.escape(end), lambda _: f"{start}\n{text.strip()}\n{end}", old, flags=re.DOTALL
    )
