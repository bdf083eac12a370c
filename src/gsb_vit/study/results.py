"""What a study found: a row a run and stage, and means, deviations and confidence intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gsb_vit.files import read_json
from gsb_vit.metrics import METRIC_NAMES
from gsb_vit.train.folder import read_run
from gsb_vit.train.recipe import STAGES

from .plan import Cell, Plan, Study, run_folder

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
    (final - the study's reference variant's final) are top-1 differences of runs with the same seed. ``int8``: top-1 of
    the models made int8, which then count in ``lead``.
    """

    variant: str
    title: str
    point: tuple[tuple[str, Any], ...]
    seeds: tuple[int, ...]
    final: str
    metrics: Mapping[str, Mapping[str, Spread]]
    int8: Spread | None
    gap: Spread | None
    lead: Spread | None
    seconds: float
    size: Mapping[str, Any]
    rows: tuple[Row, ...]


def collect(
    study: Study, plan: Plan, out: Path, command: str, recorded: Mapping[str, Sequence[Row]]
) -> dict[str, Sequence[Row]]:
    """Rows by cell, one a stage, of the cells whose run is finished; a shared teacher is in every cell it teaches.

    ``recorded`` has the rows of cells whose runs are not here; those of a run that is here go before them.
    """
    found: dict[str, Sequence[Row]] = {}
    for cell in study.cells:
        job, teacher = plan.of_cell[cell.name]
        if (own := _summary(run_folder(out, job))) is None:
            if cell.name in recorded:
                found[cell.name] = recorded[cell.name]
            continue
        runs = {stage: (job, result) for stage, result in own["stages"].items()}
        if teacher is not None and (taught := _summary(run_folder(out, teacher))) is not None:
            runs["teacher"] = (teacher, taught["stages"]["teacher"])
        final = own["final_stage"]
        stages = [stage for stage in STAGES if stage in runs]
        found[cell.name] = [_row(study, cell, stage, *runs[stage], stage == final, out, command) for stage in stages]
    return found


def _summary(folder: Path) -> dict[str, Any] | None:
    path = folder / "summary.json"
    kinds = {"test": dict, "stages": dict, "final_stage": str}
    return read_json(path, kinds, f"remove it, and the study tests {folder.name} again") if path.is_file() else None


def _row(
    study: Study, cell: Cell, stage: str, run: str, result: Mapping[str, Any], final: bool, out: Path, command: str
) -> Row:
    folder = run_folder(out, run)
    made = read_run(folder)
    size_path = folder / SIZE_FILE
    size = (
        read_json(size_path, {}, "remove it, and the study measures it again") if final and size_path.is_file() else {}
    )
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
        **(_int8_of(size) if study.int8 else {}),
        "data": public_spec(made["data"]),
        "run": run,
        "command": command,
        "commit": made.get("commit"),
        "cpu": made.get("machine", {}).get("cpu"),
        "gpu": made.get("machine", {}).get("gpu"),
        "threads": made["threads"],
    }


def _int8_of(size: Mapping[str, Any]) -> dict[str, Any]:
    """The int8 model that counts, of those in a size file: the fastest, before any is timed the most accurate one."""
    forms = size.get("int8") or []
    if not forms:
        return dict.fromkeys(("int8_form", "int8_bytes", "int8_top1"))
    timed = [one for one in forms if one.get("latency_ms") is not None]
    best = min(timed, key=lambda one: one["latency_ms"]) if timed else max(forms, key=lambda one: one["top1"])
    found = {f"int8_{key}": best[key] for key in ("form", "bytes", "top1")}
    return {**found, "latency_ms": best.get("latency_ms")}


def deployed(row: Row) -> float:
    """Top-1 of what a row's model runs as: its int8 form, where it has one."""
    int8 = row.get("int8_top1")
    return float(row["top1"] if int8 is None else int8)


def public_spec(spec: str) -> str:
    """A data SPEC without this machine's folders: ``flowers102:ROOT``."""
    name, colon, _ = spec.partition(":")
    return f"{name}:ROOT" if colon else Path(spec).name


def aggregate(study: Study, rows: Sequence[Row]) -> list[Group]:
    """Means over seeds, in the study's order of grid points and variants."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (tuple((axis, row[axis]) for axis in study.axes), row["variant"])
        found.setdefault(key, []).append(row)
    order: dict[tuple[Any, ...], int] = {}
    for cell in study.cells:
        order.setdefault((cell.point, cell.variant), len(order))
    finals = {(key, row["seed"]): deployed(row) for key, own in found.items() for row in own if row["final"]}
    return [_group(study, key, found[key], finals) for key in sorted(found, key=lambda key: order[key])]


def _group(study: Study, key: tuple[Any, ...], rows: Sequence[Row], finals: Mapping[Any, float]) -> Group:
    point, variant = key
    last = [row for row in rows if row["final"]]
    teachers = {row["seed"]: row["top1"] for row in rows if row["stage"] == "teacher"}
    reference = {row["seed"]: finals.get(((point, study.reference), row["seed"])) for row in last}
    sizes = [row for row in last if row["bytes"] is not None]
    latencies = [row["latency_ms"] for row in last if row["latency_ms"] is not None]
    size = {name: sizes[0].get(name) for name in ("parameters", "bytes", "packed_bytes", "int8_bytes")} if sizes else {}
    int8 = [row["int8_top1"] for row in last if row.get("int8_top1") is not None]
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
        int8=Spread.of(int8) if int8 else None,
        gap=_difference([(r["top1"], teachers.get(r["seed"])) for r in last if r["stage"] != "teacher"]),
        lead=None if variant == study.reference else _difference([(deployed(r), reference[r["seed"]]) for r in last]),
        seconds=float(np.mean([sum(r["seconds"] for r in rows if r["seed"] == row["seed"]) for row in last])),
        size={**size, **({"latency_ms": latencies[0]} if latencies else {})},
        rows=tuple(rows),
    )


def _difference(pairs: Sequence[tuple[float, float | None]]) -> Spread | None:
    known = [own - other for own, other in pairs if other is not None]
    return Spread.of(known) if known else None


def file_bytes(group: Group) -> int | None:
    """Bytes of the packed file where the runtime runs the model, or of its int8 file; else numbers at their bits."""
    return group.size.get("packed_bytes") or group.size.get("int8_bytes") or group.size.get("bytes")


def deployed_spread(group: Group) -> Spread:
    """Top-1 of what the group's models run as."""
    return group.metrics[group.final]["top1"] if group.int8 is None else group.int8
