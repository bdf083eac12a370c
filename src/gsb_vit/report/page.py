"""The report of a run: one HTML file that opens from disk and needs nothing else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from gsb_vit.bench.cost import Summary, summarize
from gsb_vit.bench.peers.timing import Measurement
from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import Decision, expected_calibration_error
from gsb_vit.errors import InputError
from gsb_vit.files import HTML_MARK, read_json, refuse_other, utf8, write_atomically
from gsb_vit.metrics import METRIC_NAMES, classification_metrics, confusion_matrix
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.evaluate import logits_of
from gsb_vit.runtime.packed_file import PackedModel
from gsb_vit.runtime.packed_file import read as read_packed
from gsb_vit.runtime.shipped import locate_model

from .charts import Band, Line, bars, confusion_chart, line_chart, png_uri
from .masks import mask_rows
from .mislabelled import suspects
from .mistakes import MOST_THUMBNAILS, class_rows, confusion_rows, headline, mistakes, suspect_rows

STAGE_NAMES = {
    "teacher": "teacher (full precision)",
    "twin": "twin (full precision)",
    "stage1": "stage 1 (one-bit weights, in part)",
    "stage2": "stage 2 (one bit)",
}
SAMPLES = 20


@dataclass(frozen=True)
class Judged:
    """A model's answers on the held-out pictures: logits (n, K), and what they are taken for."""

    class_names: Sequence[str]
    preprocessing: Preprocessing
    decision: Decision
    logits: np.ndarray


@dataclass(frozen=True)
class Trained:
    """Training pictures as a run labelled them, and what it said of them, (n, K), averaged over its epochs."""

    pictures: LabelledPictures
    probabilities: np.ndarray


def write_report(
    run: str | Path | None,
    *,
    packed: str | Path | None,
    test: LabelledPictures,
    judged: Judged | None = None,
    trained: Trained | None = None,
    out: str | Path | None = None,
    bench: Sequence[Measurement] = (),
    parity: Mapping[str, Any] | None = None,
    title: str = "A one-bit vision transformer",
    engine: str = "native",
) -> Path:
    """Write one HTML file, by default ``RUN/report.html``, and return its path.

    Curves come from ``RUN/metrics.jsonl``, test metrics from ``RUN/summary.json``, the recipe and the provenance from
    ``RUN/recipe.toml`` and ``RUN/run.json``; all answers, masks and costs from running the packed model on the test
    pictures. Without ``run`` the page tells of the packed model alone. Without ``packed``, as of a run that cannot be
    packed, it leaves out masks and costs.

    Args:
        packed: the packed model file or a shipped one's name, or None together with ``judged``.
        test: the held-out pictures.
        judged: the trained model's answers on them.
        trained: for the list of training pictures whose label is probably wrong.
        bench: rows of :func:`gsb_vit.bench.compare.benchmark`.
        parity: what the comparison with the trained model found, name → figure.

    Raises:
        InputError: a file of the run is missing or unreadable, or the packed model is.
    """
    run, packed = None if run is None else Path(run), None if packed is None else locate_model(packed)
    folder = run if run is not None else packed.parent if packed is not None else Path()
    path = Path(out) if out is not None else folder / "report.html"
    refuse_other(path, "a page", HTML_MARK)
    model = None if packed is None else read_packed(packed)
    own: PackedModel | Judged
    if packed is not None and model is not None:
        own = model
        pictures = np.stack([own.preprocessing(source) for source in test.sources])
        logits = logits_of(load(packed, engine=engine), pictures)
    elif judged is not None:
        own, logits = judged, judged.logits
        pictures = np.stack([own.preprocessing(source) for source in test.sources])
    else:
        raise InputError("a report needs a packed model, or the answers of a trained one")
    names, decision = own.class_names, own.decision
    confusion = confusion_matrix(logits.argmax(axis=1), test.labels, len(names))
    results = {} if run is None else read_json(run / "summary.json", {"stages": dict}, _WAY)["stages"]
    summary = None if packed is None or model is None else summarize(model.architecture, packed.stat().st_size)
    values = {
        "title": title,
        "subtitle": _subtitle(model, own, len(test)),
        "headline": headline(confusion),
        "calibration": _calibration(decision, logits, test.labels),
        "classes": class_rows(names, confusion),
        "confusions": confusion_rows(names, confusion),
        "mistakes": mistakes(names, test.sources, pictures, test.labels, logits, decision),
        "suspects": _suspects(names, own.preprocessing, trained),
        "has_trained": trained is not None,
        "tiles": _tiles(results, summary, bench),
        **_training(None if run is None else run / "metrics.jsonl", results),
        **_held_out(results, logits, test.labels, parity),
        "confusion": confusion_chart(confusion.tolist(), names),
        "samples": _samples(names, pictures, test.labels, logits, decision),
        **_masks(model, pictures, test.labels, logits),
        **_costs(summary, bench),
        "facts": _facts(
            {} if run is None else read_json(run / "run.json", {"data": str}, _WAY),
            {} if model is None else model.provenance,
        ),
        "recipe": "" if run is None else _read_text(run / "recipe.toml"),
        # Small pictures show their pixels; photographs are smoothed.
        "rendering": "pixelated" if max(own.preprocessing.size) < 64 else "auto",
    }
    environment = Environment(loader=PackageLoader("gsb_vit.report"), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("report.html").render(values)
    write_atomically(path, utf8(page))
    return path


def _calibration(decision: Decision, logits: np.ndarray, labels: np.ndarray) -> str:
    error = expected_calibration_error(decision.probabilities(logits), labels)
    if decision == Decision():
        return f"Probabilities are not calibrated; their expected calibration error is {_percent(error)}."
    before = expected_calibration_error(Decision().probabilities(logits), labels)
    text = (
        f"Probabilities are calibrated with temperature {decision.temperature:.3g}: expected calibration error "
        f"{_percent(before)} before, {_percent(error)} after."
    )
    if decision.unknown is not None:
        text += f" The threshold for unknown pictures rejects {_percent(decision.is_unknown(logits).mean())} of these."
    return text


def _suspects(names: Sequence[str], preprocessing: Preprocessing, trained: Trained | None) -> list[dict[str, Any]]:
    if trained is None:
        return []
    found = suspects(trained.probabilities, trained.pictures.labels)
    shown = [preprocessing(trained.pictures.sources[one.index]) for one in found[:MOST_THUMBNAILS]]
    return suspect_rows(names, trained.pictures.sources, shown, found)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path} ({reason}); give the folder of a finished run") from error


_WAY = "go on with the run (--resume), which writes it again"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The epochs in metrics.jsonl."""
    try:
        lines = [json.loads(line) for line in _read_text(path).splitlines() if line]
        if not all(isinstance(line, dict) and isinstance(line.get("stage"), str) for line in lines):
            raise ValueError("a line names no stage")
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); bring it back from a copy, or train the run again") from error
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _subtitle(model: PackedModel | None, own: PackedModel | Judged, pictures: int) -> str:
    if model is None:
        height, width = own.preprocessing.size
        return f"{width} × {height} pixels, {len(own.class_names)} classes; {pictures:,} held-out pictures"
    a = model.architecture
    height, width = a.image_size
    return (
        f"{a.name}: {width} × {height} pixels, {a.num_tokens} tokens, width {a.embed_dim}, depth {a.depth}, "
        f"{a.num_heads} heads, {a.num_classes} classes; {pictures:,} held-out pictures"
    )


def _tiles(results: Mapping[str, Any], summary: Summary | None, bench: Sequence[Measurement]) -> list[dict[str, str]]:
    notes = {
        "teacher": "full precision",
        "twin": "full precision",
        "stage1": "one-bit weights",
        "stage2": "one-bit weights and activations",
    }
    names = {"teacher": "Teacher", "twin": "Twin", "stage1": "Stage 1", "stage2": "One-bit student"}
    tiles = [
        {"css": stage, "label": names[stage], "value": _percent(results[stage]["test"]["top1"]), "note": notes[stage]}
        for stage in STAGE_NAMES
        if stage in results
    ]
    if summary is not None:
        size = summary.file_bytes or summary.packed.bytes
        note = f"{summary.twin.bytes / size:.1f} × smaller than float32"
        tiles.append({"css": "", "label": "Model file", "value": _bytes(size), "note": note})
    own = next((row for row in bench if row.engine == "gsb-vit"), None)
    if own is not None and own.median_ms is not None:
        note = f"a picture, {own.threads} thread{'s' if own.threads > 1 else ''}, this machine"
        tiles.append({"css": "", "label": "Latency", "value": _milliseconds(own.median_ms / own.batch), "note": note})
    return tiles


def _training(path: Path | None, results: Mapping[str, Any]) -> dict[str, Any]:
    """Put the stages one behind the other on one axis of epochs."""
    if path is None:
        return {"training_note": None}
    lines = _read_lines(path)
    charts: dict[str, list[Line]] = {"top1": [], "loss": []}
    bands: list[Band] = []
    start = 0
    for stage, name in STAGE_NAMES.items():
        own = [line for line in lines if line["stage"] == stage]
        if not own:
            continue
        bands.append(Band(name.partition(" (")[0], stage, start, start + own[-1]["epoch"]))
        for metric, drawn in charts.items():
            for split, dashed in (("train", True), ("validation", False)):
                key = f"{split}_{metric}"
                points = [(start + line["epoch"], line[key]) for line in own if key in line]
                if points:
                    drawn.append(Line(f"{name}, {split}", stage, points, dashed))
        start += own[-1]["epoch"]
    seconds = sum(results[stage].get("seconds", 0.0) for stage in STAGE_NAMES if stage in results)
    note = (
        f"{start} epochs in {seconds:.0f} s. Training pictures are varied at random and students also learn from the "
        "teacher, so training curves of different stages are not on the same footing; validation curves are."
    )
    return {
        "training_note": note,
        "accuracy_chart": line_chart(charts["top1"], bands, title="Accuracy by epoch", percent=True),
        "loss_chart": line_chart(charts["loss"], bands, title="Loss by epoch"),
    }


def _held_out(
    results: Mapping[str, Any], logits: np.ndarray, labels: np.ndarray, parity: Mapping[str, Any] | None
) -> dict[str, Any]:
    note = f"{len(labels):,} pictures."
    if results:
        note = f"{len(labels):,} pictures that took no part in training or selection."
    if parity:
        found = ", ".join(f"{name} {value}" for name, value in parity.items())
        note += f" Packed model against the trained one: {found}."
    rows: list[dict[str, Any]] = [
        {"label": label, "values": [_percent(results[stage]["test"][key]) for key in METRIC_NAMES]}
        for stage, label in STAGE_NAMES.items()
        if stage in results
    ]
    if not rows:
        metrics = classification_metrics(logits, labels)
        own: dict[str, Any] = {"label": "this model", "values": [_percent(metrics[key]) for key in METRIC_NAMES]}
        rows = [own]
    return {"held_out_note": note, "metric_names": list(METRIC_NAMES.values()), "metric_rows": rows}


def _samples(
    class_names: Sequence[str], pictures: np.ndarray, labels: np.ndarray, logits: np.ndarray, decision: Decision
) -> list[dict[str, Any]]:
    """Show up to a quarter mistakes, the most confident first, then right answers spread over the classes."""
    answers, probabilities = logits.argmax(axis=1), decision.probabilities(logits).max(axis=1)
    wrong = np.flatnonzero(answers != labels)
    wrong = wrong[np.argsort(-probabilities[wrong], kind="stable")][: SAMPLES // 4]
    right = np.flatnonzero(answers == labels)
    # Round after round one picture of every class: sort by how many of its class came before.
    before = np.zeros(len(right), dtype=np.int64)
    for label in np.unique(labels[right]):
        members = labels[right] == label
        before[members] = np.arange(members.sum())
    right = right[np.lexsort((labels[right], before))][: SAMPLES - len(wrong)]
    return [
        {
            "image": png_uri(pictures[index], 96),
            "answer": class_names[answers[index]],
            "truth": class_names[labels[index]],
            "probability": f"{100 * probabilities[index]:.0f} %",
            "right": bool(answers[index] == labels[index]),
        }
        for index in [*wrong, *right]
    ]


def _masks(model: PackedModel | None, pictures: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    if model is None:
        return {"masks_note": "", "mask_rows": [], "mask_columns": 1}
    answers = logits.argmax(axis=1)
    hits = np.flatnonzero(answers == labels)
    index = int(hits[0]) if len(hits) else 0
    ratios = ", ".join(f"{ratio:g}" for ratio in model.architecture.attention_thresholds)
    note = (
        f"A picture of class {model.class_names[labels[index]]}. Each head's attention becomes a sum of binary masks "
        f"with learned scales: the first holds entries above half its scale, the others those above {ratios} of the "
        "picture's maximum. The percentage is the share of patches in the mask; the last panel is the whole "
        "superposed matrix, token by token."
    )
    rows = mask_rows(model, pictures[index])
    return {"masks_note": note, "mask_rows": rows, "mask_columns": max((len(row.panels) for row in rows), default=1)}


def _costs(summary: Summary | None, bench: Sequence[Measurement]) -> dict[str, Any]:
    if summary is None:
        return {"size_bars": None, "bench_rows": []}
    kinds = {
        "binary_weights": "one-bit weights",
        "int8_weights": "8-bit edges",
        "thresholds": "thresholds",
        "attention_bias": "attention bias",
        "float32": "float32: norms, scales, positions",
    }
    sizes = [("full precision", "teacher", summary.twin.bytes, _bytes(summary.twin.bytes))]
    size = summary.file_bytes or summary.packed.bytes
    sizes.append(("packed file", "stage2", size, _bytes(size)))
    sizes += [(f"· {kinds[kind]}", "", value, _bytes(value)) for kind, value in summary.bytes_by_kind.items()]
    ops = [
        ("full precision", "teacher", summary.twin.ops, _count(summary.twin.ops)),
        ("packed", "stage2", summary.packed.ops, _count(summary.packed.ops)),
        ("· FLOPs", "", summary.packed.flops, _count(summary.packed.flops)),
        ("· BOPs / 64", "", summary.packed.bops / 64, _count(summary.packed.bops / 64)),
    ]
    speeds = [
        (f"{row.engine} {row.precision}", _css(row), row.median_ms, _milliseconds(row.median_ms))
        for row in bench
        if row.median_ms is not None
    ]
    return {
        "size_bars": bars(sizes),
        "ops_bars": bars(ops),
        "speed_bars": bars(speeds),
        "bench_rows": list(bench),
        "bench_note": "Time of one call on this machine, the median of many; the engines took turns.",
    }


def _css(row: Measurement) -> str:
    return "stage2" if row.engine == "gsb-vit" else "teacher"


def _facts(run: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    provenance = {name: value for name, value in provenance.items() if name != "seen"}  # digests
    facts = {**dict(_flat(provenance)), **dict(_flat(run))}
    return [(name.replace("_", " "), _text(value)) for name, value in facts.items() if name != "status"]


def _flat(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield names and values of nested mappings, without what is empty."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        elif value not in (None, "", [], ()):
            yield name, value


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _bytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _count(number: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return f"{number:.0f}"


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if value >= 0.1 else f"{1000 * value:.0f} µs"
