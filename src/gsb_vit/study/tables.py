"""What a study found as CSV, as a Markdown table, and in its place in a document."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError
from gsb_vit.files import read_text
from gsb_vit.metrics import METRIC_NAMES

from .plan import Study
from .results import Group, Row, Spread, file_bytes, public_spec

MOST_COLUMNS = 6  # wider tables cannot be read on a telephone
Column = tuple[str, Callable[..., str]]


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
    """Tables of at most six columns: percent, mean ± sample standard deviation over seeds.

    The best final top-1 of each grid point is in bold.
    """
    if not groups:
        return f"**{study.title}**: no run is finished yet.\n"
    best = {
        point: max(g.metrics[g.final]["top1"].mean for g in groups if g.point == point) for point in _points(groups)
    }
    shared = [len(set(parts)) == 1 for parts in zip(*map(_origin, groups), strict=True)]
    own = dict.fromkeys(_joined(group, [not same for same in shared]) for group in groups)
    letters = {text: f"({_letter(index)})" for index, text in enumerate(own)}
    made_by: list[Column] = [("made by", lambda group: letters[_joined(group, [not same for same in shared])])]
    result, others, training = _columns(study, groups, best)
    training += made_by if len(letters) > 1 else []
    parts = [f"**{study.title}**", *_tables(study, groups, result), "The other metrics:"]
    parts += [*_tables(study, groups, others), "Teacher, stage 1 and training time:", *_tables(study, groups, training)]
    parts += [_note(study, groups), _joined(groups[0], shared)]
    if len(letters) > 1:
        parts.append("; ".join(f"{letter} {text}" for text, letter in letters.items()))
    if plot:
        parts.append(f"![{study.title}]({plot})")
    return "\n\n".join(parts) + "\n"


def _tables(study: Study, groups: Sequence[Group], columns: Sequence[Column]) -> list[str]:
    """``columns`` behind what names a row, in as many tables as that needs."""
    keys: list[Column] = [("variant", lambda g: g.title)]
    keys += [(f"`{axis}`", lambda g, axis=axis: str(dict(g.point)[axis])) for axis in study.axes]
    room = max(MOST_COLUMNS - len(keys), 1)
    tables = []
    for start in range(0, len(columns), room):
        shown = [*keys, *columns[start : start + room]]
        lines = [[name for name, _ in shown], ["---"] * len(shown)]
        lines += [[text(group) for _, text in shown] for group in groups]
        tables.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    return tables


def _columns(
    study: Study, groups: Sequence[Group], best: Mapping[Any, float]
) -> tuple[list[Column], list[Column], list[Column]]:
    """What the last stage reached and costs; its other metrics; what came before it."""
    wanted = max((len(g.seeds) for g in groups), default=0)
    result: list[Column] = []
    if any(len(g.seeds) != len(study.seeds) for g in groups) or wanted != len(study.seeds):
        result.append(("seeds", lambda g: f"{len(g.seeds)} of {len(study.seeds)}"))
    result.append((METRIC_NAMES["top1"], lambda g: _top1(g, best[g.point])))
    if any(g.int8 for g in groups):
        result.append(("in int8", lambda g: percent(g.int8) if g.int8 else ""))
    if any(g.gap for g in groups) and not any(g.int8 for g in groups):
        result.append(("minus teacher", lambda g: signed(g.gap)))
    if any(g.lead for g in groups):
        result.append((f"minus {study.reference}, 95 % interval", lambda g: interval(g.lead)))
    if any(g.size for g in groups):
        result.append(("kB", lambda g: kilobytes(g)))
    if any("latency_ms" in g.size for g in groups):
        latency = "ms per image", lambda g: f"{g.size['latency_ms']:.3f}" if "latency_ms" in g.size else "not run"
        result.append(latency)
    others: list[Column] = [
        (title, lambda g, key=key: percent(g.metrics[g.final][key]))
        for key, title in METRIC_NAMES.items()
        if key != "top1"
    ]
    training: list[Column] = [
        (title, lambda g, stage=stage: _earlier(g, stage))
        for stage, title in (("teacher", "teacher top-1"), ("stage1", "stage 1 top-1"))
        if any(stage in g.metrics and g.final != stage for g in groups)
    ]
    training.append(("training", lambda g: f"{g.seconds:.0f} s"))
    return result, others, training


def _top1(group: Group, best: float) -> str:
    mean = group.metrics[group.final]["top1"]
    return f"**{percent(mean)}**" if mean.mean == best else percent(mean)


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
    """Kilobytes (1000 bytes); ``*`` where no packed or int8 file holds the model."""
    size = file_bytes(group)
    exists = group.size.get("packed_bytes") or group.size.get("int8_bytes")
    return "" if size is None else f"{size / 1000:.0f}" + ("" if exists else "*")


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
        text += " kB: the packed file; * where the runtime does not run the model: all numbers at their trained bits."
    if any(group.int8 for group in groups):
        text += (
            " In int8: made so by ONNX Runtime (static, calibrated on training pictures), without further training; "
            "bytes, ms and the difference are then those of the int8 file."
        )
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
    old = read_text(document, "a Markdown file")
    if old.count(start) != 1 or old.count(end) != 1 or old.index(start) > old.index(end):
        raise InputError(f"{document} needs the lines {start} and {end}, once each; add them where the table belongs")
    return re.sub(
        re.escape(start) + ".*?" + re.escape(end), lambda _: f"{start}\n{text.strip()}\n{end}", old, flags=re.DOTALL
    )
