"""What a study found: one CSV line a run and stage, means over seeds, a Markdown table, and its place in a document."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..errors import InputError
from ..metrics import METRIC_NAMES
from .recipe import STAGES
from .study import Cell, Plan, Study, run_folder

SIZE_FILE = "size.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation and half the width of the 95 % confidence interval of n numbers.

    mean ± t(0.975, n - 1) · sd / √n, Student's t; sd and half width are None for n = 1.
    """

    n: int
    mean: float
    sd: float | None
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError for no values."""
        n = len(values)
        if n == 0:
            raise ValueError("no values to average")
        mean = float(np.mean(values))
        if n == 1:
            return cls(1, mean, None, None)
        sd = float(np.std(values, ddof=1))
        return cls(n, mean, sd, float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n))


@dataclass(frozen=True)
class Group:
    """The seeds of one variant at one point of the grid.

    ``metrics`` maps a stage to its test metrics; ``final`` is the last stage. ``gap`` (final - teacher) and ``lead``
    (final - the study's reference variant's final) are top-1 differences of runs with the same seed.
    """

    variant: str
    title: str
    point: tuple[tuple[str, Any], ...]
    seeds: tuple[int, ...]
    final: str
    metrics: Mapping[str, Mapping[str, Spread]]
    gap: Spread | None
    lead: Spread | None
    seconds: float
    size: Mapping[str, Any]
    rows: tuple[Row, ...]


def collect(study: Study, plan: Plan, out: Path, command: str) -> list[Row]:
    """One row a cell and stage, of the cells whose run is finished; a shared teacher stands in every cell it teaches."""
    rows = []
    for cell in study.cells:
        job, teacher = plan.of_cell[cell.name]
        if (own := _summary(run_folder(out, job))) is None:
            continue
        runs = {stage: (job, result) for stage, result in own["stages"].items()}
        if teacher is not None and (taught := _summary(run_folder(out, teacher))) is not None:
            runs["teacher"] = (teacher, taught["stages"]["teacher"])
        final = own["final_stage"]
        rows += [_row(cell, stage, *runs[stage], stage == final, out, command) for stage in STAGES if stage in runs]
    return rows


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _row(cell: Cell, stage: str, run: str, result: Mapping[str, Any], final: bool, out: Path, command: str) -> Row:
    folder = run_folder(out, run)
    made = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    size_path = folder / SIZE_FILE
    size = json.loads(size_path.read_text(encoding="utf-8")) if final and size_path.is_file() else {}
    return {
        "variant": cell.variant,
        "title": cell.title,
        **dict(cell.point),
        "seed": cell.seed,
        "stage": stage,
        "final": int(final),
        **{key: result["test"][key] for key in METRIC_NAMES},
        "test_pictures": result["test"]["n"],
        "chosen_epoch": result["chosen_epoch"],
        "seconds": round(result["seconds"], 1),
        **{key: size.get(key) for key in ("parameters", "bytes", "packed_bytes", "latency_ms")},
        "data": public_spec(made["data"]),
        "run": run,
        "command": command,
        "commit": made.get("commit"),
        "cpu": made.get("machine", {}).get("cpu"),
        "gpu": made.get("machine", {}).get("gpu"),
        "threads": made["threads"],
    }


def public_spec(spec: str) -> str:
    """A data SPEC without this machine's folders: ``flowers102:ROOT``."""
    name, colon, _ = spec.partition(":")
    return f"{name}:ROOT" if colon else Path(spec).name


def study_command(study_file: Path, data: str) -> str:
    """The command that makes a study's rows, without this machine's folders."""
    file = study_file.name if study_file.is_absolute() else study_file.as_posix()
    parts = ["gsb-vit", "study", file, "--data", public_spec(data), "--out", f"runs/{study_file.stem}"]
    return shlex.join(parts)


def aggregate(study: Study, rows: Sequence[Row]) -> list[Group]:
    """Means over seeds, in the study's order of grid points and variants."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (tuple((axis, row[axis]) for axis in study.axes), row["variant"])
        found.setdefault(key, []).append(row)
    order = {}
    for cell in study.cells:
        order.setdefault((cell.point, cell.variant), len(order))
    finals = {(key, row["seed"]): row["top1"] for key, own in found.items() for row in own if row["final"]}
    return [_group(study, key, found[key], finals) for key in sorted(found, key=lambda key: order[key])]


def _group(study: Study, key: tuple[Any, ...], rows: Sequence[Row], finals: Mapping[Any, float]) -> Group:
    point, variant = key
    last = [row for row in rows if row["final"]]
    teachers = {row["seed"]: row["top1"] for row in rows if row["stage"] == "teacher"}
    reference = {row["seed"]: finals.get(((point, study.reference), row["seed"])) for row in last}
    sizes = [row for row in last if row["bytes"] is not None]
    latencies = [row["latency_ms"] for row in last if row["latency_ms"] is not None]
    size = {name: sizes[0][name] for name in ("parameters", "bytes", "packed_bytes")} if sizes else {}
    return Group(
        variant=variant,
        title=last[0]["title"],
        point=point,
        seeds=tuple(row["seed"] for row in last),
        final=last[0]["stage"],
        metrics={
            stage: {name: Spread.of([row[name] for row in rows if row["stage"] == stage]) for name in METRIC_NAMES}
            for stage in STAGES
            if any(row["stage"] == stage for row in rows)
        },
        gap=_difference([(r["top1"], teachers.get(r["seed"])) for r in last if r["stage"] != "teacher"]),
        lead=None if variant == study.reference else _difference([(r["top1"], reference[r["seed"]]) for r in last]),
        seconds=float(np.mean([sum(r["seconds"] for r in rows if r["seed"] == row["seed"]) for row in last])),
        size={**size, **({"latency_ms": latencies[0]} if latencies else {})},
        rows=tuple(rows),
    )


def _difference(pairs: Sequence[tuple[float, float | None]]) -> Spread | None:
    known = [own - other for own, other in pairs if other is not None]
    return Spread.of(known) if known else None


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
    origins = list(dict.fromkeys(_origin(group) for group in groups))
    if len(origins) > 1:
        columns.append(("made by", lambda group: f"({_letter(origins.index(_origin(group)))})"))
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|" + "---|" * len(columns)]
    for group in groups:
        cells = [text(group) for _, text in columns]
        if group.metrics[group.final]["top1"].mean == best[group.point]:
            place = [name for name, _ in columns].index("top-1")
            cells[place] = f"**{cells[place]}**"
        lines.append("| " + " | ".join(cells) + " |")
    notes = [_note(study, groups)]
    for index, origin in enumerate(origins):
        notes.append((f"({_letter(index)}) " if len(origins) > 1 else "") + origin)
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


def file_bytes(group: Group) -> int | None:
    """The packed file's bytes where the runtime runs the model, else those of its numbers at their bits."""
    return group.size.get("packed_bytes") or group.size.get("bytes")


def kilobytes(group: Group) -> str:
    """Kilobytes (1000 bytes); ``*`` where no packed file can hold the model."""
    size = file_bytes(group)
    return "" if size is None else f"{size / 1000:.0f}" + ("" if group.size.get("packed_bytes") else "*")


def _points(groups: Sequence[Group]) -> list[tuple[tuple[str, Any], ...]]:
    return list(dict.fromkeys(group.point for group in groups))


def _note(study: Study, groups: Sequence[Group]) -> str:
    pictures = groups[0].rows[0]["test_pictures"]
    text = (
        f"Test top-1, top-5, macro precision, recall and F1 of the last stage in percent, {pictures} pictures; mean ± "
        f"sample standard deviation over seeds {', '.join(map(str, study.seeds))}; the best top-1 in bold. Differences "
        "are between runs of the same seed. Training counts teacher and stages, with what variants share counted in each."
    )
    if any(group.size for group in groups):
        text += " Sizes are of the packed file; * where the runtime does not run it: all numbers at their trained bits."
    return text


def _origin(group: Group) -> str:
    made = {key: sorted({str(row[key]) for row in group.rows}) for key in ("command", "commit", "threads")}
    machines = sorted({" + ".join(filter(None, (row["cpu"], row["gpu"]))) or "unknown" for row in group.rows})
    threads = ", ".join(made["threads"])
    return (
        f"`{made['command'][0]}`; commit {', '.join(made['commit'])}; {', '.join(machines)}, {threads} "
        f"thread{'' if threads == '1' else 's'} a run"
    )


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
