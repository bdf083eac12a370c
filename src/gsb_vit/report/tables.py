"""What the commands print for people."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from gsb_vit.bench.cost import Cost, Layer, Summary
from gsb_vit.bench.peers.timing import Measurement
from gsb_vit.metrics import METRIC_NAMES
from gsb_vit.terminal import NARROWEST, Table, folded, printable, shortened

if TYPE_CHECKING:
    from gsb_vit.bench.boards import Estimate
    from gsb_vit.bench.profile import Profile
    from gsb_vit.runtime.classifier import Prediction
    from gsb_vit.runtime.shipped import ShippedModel

_GAP = "  "
_PERCENT = "100.0 %"
NONE_OF_THESE = "(none of the classes)"


def metrics_table(metrics: Mapping[str, float], spec: str) -> Table:
    """Show the metrics of an evaluation in percent."""
    given, seen = metrics.get("n_given"), metrics.get("n_seen")
    kind = "held-out " if given is not None and seen is not None and metrics["n"] <= given - seen else ""
    made = Table(f"{metrics['n']:,} {kind}pictures of {spec}", ("metric", "percent"))
    for key, name in METRIC_NAMES.items():
        made.add_row(name if key.startswith("top") else f"{name} (macro)", f"{100 * metrics[key]:.2f}")
    made.add_row("expected calibration error", f"{100 * metrics['calibration_error']:.2f}")
    if "false_alarm_rate" in metrics:
        made.add_row("called unknown", f"{100 * metrics['false_alarm_rate']:.2f}")
    return made


def classes_table(classes: Sequence[Mapping[str, Any]]) -> Table:
    """Show every class of an evaluation that has pictures, the one with the smallest recall first."""
    made = Table("Classes, the worst first", ("class", "recall", "precision", "F1", "pictures"))
    for one in sorted((one for one in classes if one["n"]), key=lambda one: (one["recall"], one["precision"])):
        made.add_row(one["class"], *(f"{one[key]:.1%}" for key in ("recall", "precision", "f1")), f"{one['n']:,}")
    return made


def models_table(models: Sequence["ShippedModel"]) -> Table:
    """Show the models that come with the package: names, what they know, sizes."""
    made = Table("Models that come with gsb-vit", ("name", "classes", "pixels", "kB", "what it is"), ("what it is",))
    for one in models:
        facts = one.to_json()
        height, width = facts["image_size"]
        size = f"{facts['bytes'] / 1000:.0f}"
        made.add_row(one.name, f"{facts['classes']:,}", f"{height} × {width}", size, one.title)
    return made


class AnswerLines:
    """Lines for pictures one by one, before the next one is classified; every line says all there is.

    In a pipe (``width`` None) a line is picture, class and probability with tabs between them. In a terminal it is a
    row of a table with columns as wide as ``pictures`` and ``class_names`` need; long paths lose their middle. Where
    there is no room for that, the picture has a line of its own, and its classes follow it. Classes are never cut.
    A picture without an answer (with ``unknown``) is none of the classes.
    """

    def __init__(
        self, pictures: Sequence[Path], class_names: Sequence[str], width: int | None, unknown: bool = False
    ) -> None:
        self._width = width
        names = [*class_names, *([NONE_OF_THESE] if unknown else [])]
        self._class_width = max((cell_len(printable(name)) for name in names), default=0)
        longest = max((cell_len(printable(str(picture))) for picture in pictures), default=0)
        room = (width or 0) - self._class_width - len(_PERCENT) - 2 * len(_GAP)
        self._path_width = min(longest, room) if room >= min(longest, NARROWEST) else 0

    def heading(self) -> str | None:
        """Return the names of the columns, where there are columns."""
        return self._row("picture", "class", "percent") if self._width and self._path_width else None

    def answers(self, picture: Path, answers: "Sequence[Prediction]") -> Iterator[str]:
        """Give the lines of a picture that was classified."""
        path = printable(str(picture))
        names = [(printable(one.name), f"{100 * one.probability:.1f} %") for one in answers] or [(NONE_OF_THESE, "")]
        if self._width is None:
            yield from (f"{path}\t{name}\t{percent}" for name, percent in names)
        elif self._path_width:
            for rank, (name, percent) in enumerate(names):
                yield self._row("" if rank else path, name, percent)
        else:
            yield from folded(path, self._width)
            for name, percent in names:
                yield from folded(f"{percent:>{len(_PERCENT)}}{_GAP}{name}", self._width)

    def problem(self, picture: Path, message: str) -> Iterator[str]:
        """Give the lines of a picture that could not be read; the message names it."""
        if self._width is None:
            yield f"{printable(str(picture))}\terror\t{printable(message)}"
        else:
            yield from folded(f"error: {printable(message)}", self._width)

    def _row(self, path: str, name: str, percent: str) -> str:
        path, room = shortened(path, self._path_width), self._class_width - cell_len(name)
        path += " " * (self._path_width - cell_len(path))
        return f"{path}{_GAP}{name}{' ' * max(room, 0)}{_GAP}{percent:>{len(_PERCENT)}}"


def bench_table(rows: Sequence[Measurement]) -> Table:
    """Show what the engines took."""
    made = Table(
        "One call, median of many; the engines took turns",
        ("engine", "precision", "threads", "batch", "median ms", "pictures/s", "file MB", "peak MB"),
    )
    for row in rows:
        figures = [row.median_ms, row.images_per_s, row.file_mb, row.peak_mb]
        texts = [
            "–" if value is None else f"{value:,.{digits}f}"
            for value, digits in zip(figures, (3, 1, 3, 0), strict=True)
        ]
        made.add_row(row.engine, row.precision, str(row.threads), str(row.batch), *texts)
    made.caption = "\n".join(f"{row.engine} {row.precision}: {row.problem}" for row in rows if row.problem is not None)
    return made


def board_tables(summary: Summary, rows: Sequence["Estimate"]) -> Iterator[Table]:
    """Show what boards need for a model, and where every time comes from."""
    a, cost = summary.architecture, summary.packed
    height, width = a.image_size
    made = Table(
        f"{a.name}, {width} × {height} pixels, {a.num_classes:,} classes: {_count(cost.ops)} OPs a picture "
        f"({_count(cost.flops)} FLOPs, {_count(cost.bops)} BOPs)",
        ("board", "core", "RAM", "flash", "fits", "Minstr", "≈ ms"),
        left=("core",),
    )
    for row in rows:
        board = row.board
        made.add_row(
            board.name,
            board.processor,
            f"{'≥ ' if board.is_micro else ''}{_binary(row.ram)} of {_binary(board.ram)}",
            f"{_binary(row.flash)} of {'any' if board.flash is None else _binary(board.flash)}",
            "no" if not row.fits else "maybe" if board.is_micro else "yes",
            "–" if row.instructions is None else f"{row.instructions / 1e6:,.1f}",
            "–" if row.ms is None else f"{row.ms:,.1f}",
        )
    names: dict[str, list[str]] = {}
    for row in rows:
        names.setdefault(row.time_is, []).append(row.board.name)
    notes = [f"{', '.join(those)}: {said}." for said, those in names.items()]
    timed = [row.board for row in rows if row.ms is not None]
    if timed:
        clocks = ", ".join(f"{one.name} {one.clock / 1e6:,.0f} MHz × {one.per_cycle:g}" for one in timed)
        notes.append(f"Assumed clock × instructions per cycle: {clocks}.")
    if any(row.board.is_micro for row in rows):
        notes.append(
            "≥: a lower bound. Of microcontrollers: time without resizing; flash of the model and, where the C file "
            "was counted, of its code."
        )
    made.caption = "\n".join(notes)
    yield made


def _binary(size: int) -> str:
    """Bytes in powers of 1,024, short: ``256 K``, ``1.4 M``, ``2 G``."""
    for unit, power in (("K", 10), ("M", 20)):
        if size < 1 << (power + 10):
            return f"{size / (1 << power):,.{0 if unit == 'K' else 1}f} {unit}".replace(".0 ", " ")
    return f"{size / (1 << 30):,.1f} G".replace(".0 ", " ")


def profile_tables(profile: "Profile") -> Iterator[Table]:
    """Show where the native engine's time goes, and how full the groups were."""
    made = Table(
        f"Stages of the {profile.backend} engine, {profile.threads} thread(s), batch {profile.batch}, at "
        f"{profile.ghz:.2f} GHz; times of one core, a picture",
        ("stage", "µs", "cycles", "share", "bit-MACs/cycle", "byte-MACs/cycle", "of ceiling"),
    )
    for stage in profile.stages:
        speeds = [speed / profile.ghz for speed in (stage.bit_macs_per_ns, stage.byte_macs_per_ns)]
        made.add_row(
            stage.name,
            f"{stage.us:,.1f}",
            f"{stage.cycles:,.0f}",
            f"{stage.share:.1%}",
            *(f"{speed:,.1f}" if speed else "" for speed in speeds),
            "" if stage.of_ceiling is None else f"{stage.of_ceiling:.0%}",
        )
    totals = (sum(stage.us for stage in profile.stages), sum(stage.cycles for stage in profile.stages))
    ceilings = (profile.bit_ceiling, profile.byte_ceiling)
    made.add_row("total", f"{totals[0]:,.1f}", f"{totals[1]:,.0f}", "", "", "", "", bold=True)
    made.add_row("ceiling", "", "", "", *("unknown" if one is None else f"{one:,.0f}" for one in ceilings), "")
    yield made
    yield densities_table(profile.densities.to_json())


def densities_table(densities: Mapping[str, Any]) -> Table:
    """Show the share of entries in each upper group."""
    made = Table(
        f"Entries in the upper groups, on {densities['pictures']} of the pictures run",
        ("group", "mean", "fullest block"),
    )
    for kind in ("attention", "value"):
        shares = zip(densities[kind], densities[f"{kind}_largest_block"], strict=True)
        for group, (mean, largest) in enumerate(shares, 1):
            made.add_row(f"{kind} {group}", f"{mean:.3%}", f"{largest:.3%}")
    return made


def summary_tables(summary: Summary) -> Iterator[Table]:
    """Show the cost of every kind of layer, blocks added up, and the bytes by what they hold."""
    made = Table(
        f"{summary.architecture.name}, one picture (OPs = FLOPs + BOPs/64)",
        ("layer", "params", "bytes", "FLOPs", "BOPs", "OPs", "fp32 bytes", "FLOPs"),
    )
    depth = summary.architecture.depth
    for name, layer in _folded(summary.layers, depth).items():
        made.add_row(name, *_costs(layer.packed), _count(layer.twin.bytes), _count(layer.twin.flops))
    made.add_row("total", *_costs(summary.packed), _count(summary.twin.bytes), _count(summary.twin.flops), bold=True)
    size = summary.file_bytes or summary.packed.bytes
    made.add_row(
        "times smaller",
        *("", f"{summary.twin.bytes / size:.1f} ×", "", "", f"{summary.twin.ops / summary.packed.ops:.1f} ×"),
    )
    if (names := summary.class_names) is not None:
        made.caption = f"{len(names)} classes: {', '.join(names)}"
    yield made
    kinds = Table("Bytes by kind of tensor", ("kind", "bytes", "share"))
    for kind, size in summary.bytes_by_kind.items():
        kinds.add_row(kind.replace("_", " "), f"{size:,}", f"{size / summary.packed.bytes:.1%}")
    if summary.file_bytes is not None:
        kinds.add_row("the whole file, with its header", f"{summary.file_bytes:,}", "")
    yield kinds


_ONLY_W1A1 = (
    "Only one-bit weights and activations have a runtime today. This informs training:\n"
    "weight_bits, activation_bits, edge_bits, the groups of attention and Value; and\n"
    "the choice of a network, its width and depth."
)


def sensitivity_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Show what the quantization of each part, and of each kind of parts, costs: ``Sensitivity.to_json``."""
    now = f"{found['n']:,} pictures; loss {found['loss']:.4f}, top-1 {found['top1']:.1%}"
    made = Table(
        f"Cost of each part's quantization ({now})",
        ("part", "loss", "±", "top-1", "±", "KL", "bytes"),
    )
    for one in found["parts"]:
        made.add_row(one["part"], *_changes(one), bold=one["significant"])
    made.caption = (
        f"loss, top-1 (points): lost by it; ±: standard error; *: beyond {found['z']:.1f} of these\n"
        "(negative: what surrounds it was trained for the bits there are)\n"
        "KL: how far the answers move (nats), which orders the rows; bytes: of more bits"
    )
    yield made
    kinds = Table("All parts of a kind at once", ("kind", "loss", "±", "top-1", "±", "KL", "bytes"))
    for one in found["kinds"]:
        kinds.add_row(one["kind"], *_changes(one))
    if "budget" in found:
        yield kinds
    last = kinds if "budget" not in found else _budget_table(found["budget"])
    last.caption = "\n".join(filter(None, (last.caption, _ONLY_W1A1)))
    yield last


def _changes(one: Mapping[str, Any]) -> list[str]:
    mark = "*" if one.get("significant") else " "
    points = (f"{100 * one[key]:+.1f}" if key == "top1" else f"{100 * one[key]:.1f}" for key in ("top1", "top1_error"))
    size = f"{one['bytes']:,}" if one["bytes"] else "–"
    return [f"{one['loss']:+.4f}{mark}", f"{one['loss_error']:.4f}", *points, f"{one['kl']:.4f}", size]


def _budget_table(budget: Mapping[str, Any]) -> Table:
    made = Table(f"For {budget['budget']:,} more bytes, train again with more bits in", ("part", "bytes"))
    for name, size in budget["parts"].items():
        made.add_row(name, f"{size:,}")
    if budget["parts"]:
        made.caption = (
            f"together {budget['bytes']:,} bytes; without training again the loss changes by\n"
            f"{-budget['loss']:+.4f} ± {budget['loss_error']:.4f}, top-1 by {100 * budget['top1']:+.1f} ± "
            f"{100 * budget['top1_error']:.1f} points"
        )
    else:
        made.add_row("none", "")
        made.caption = "no part that takes bytes fits and moves the answers by more than noise"
    return made


def _folded(layers: Sequence[Layer], depth: int) -> dict[str, Layer]:
    """Add up the same layer of all blocks."""
    folded: dict[str, Layer] = {}
    for layer in layers:
        parts = layer.name.split(".", 2)
        name = f"{depth} × {parts[2]}" if parts[0] == "blocks" else layer.name
        old = folded.get(name, Layer(name, Cost(), Cost()))
        folded[name] = Layer(name, old.packed + layer.packed, old.twin + layer.twin)
    return folded


def _costs(cost: Cost) -> list[str]:
    return [_count(number) for number in (cost.parameters, cost.bytes, cost.flops, cost.bops, cost.ops)]


def _count(number: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return f"{number:.0f}"
