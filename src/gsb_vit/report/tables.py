"""What the commands print for people."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from gsb_vit.bench.cost import Cost, Layer, Summary
from gsb_vit.bench.peers.timing import Measurement
from gsb_vit.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from gsb_vit.bench.profile import Profile
    from gsb_vit.runtime.classifier import Prediction

WIDTH_IN_FILES = 120  # a pipe has no width of its own


def show(*tables: Table) -> None:
    """Print tables to the standard output, each under its title on one line (Rich folds titles to a table's width)."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_IN_FILES)
    for table in tables:
        if table.title:
            console.print(table.title, style="bold")
            table.title = None
        console.print(table)


def table(title: str, *columns: str) -> Table:
    """Return an empty table; every column but the first is aligned to the right."""
    made = Table(title=title, box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index else "left", no_wrap=not index)
    return made


def metrics_table(metrics: Mapping[str, float], spec: str) -> Table:
    """Show the metrics of an evaluation in percent."""
    made = table(f"{metrics['n']:,} held-out pictures of {spec}", "metric", "percent")
    for key, name in METRIC_NAMES.items():
        made.add_row(name if key.startswith("top") else f"{name} (macro)", f"{100 * metrics[key]:.2f}")
    return made


def predictions_table(pictures: Sequence[Path], answers: "Sequence[Sequence[Prediction]]") -> Table:
    """Show each picture with its classes and probabilities."""
    made = table("", "picture", "class", "probability")
    for picture, answer in zip(pictures, answers, strict=True):
        for rank, one in enumerate(answer):
            made.add_row("" if rank else str(picture), one.name, f"{100 * one.probability:.1f} %")
    return made


def bench_table(rows: Sequence[Measurement]) -> Table:
    """Show what the engines took."""
    made = table(
        "One call, median of many; the engines took turns",
        *("engine", "precision", "threads", "batch", "median ms", "pictures/s", "file MB", "peak MB"),
    )
    for row in rows:
        figures = [row.median_ms, row.images_per_s, row.file_mb, row.peak_mb]
        texts = [
            "–" if value is None else f"{value:,.{digits}f}"
            for value, digits in zip(figures, (3, 1, 3, 0), strict=True)
        ]
        made.add_row(row.engine, row.precision, str(row.threads), str(row.batch), *texts)
    made.caption = "\n".join(f"{row.engine} {row.precision}: {row.problem}" for row in rows if row.problem is not None)
    made.caption_justify = "left"
    return made


def profile_tables(profile: "Profile") -> Iterator[Table]:
    """Show where the native engine's time goes, and how full the groups were."""
    made = table(
        f"Stages of the {profile.backend} engine, {profile.threads} thread(s), batch {profile.batch}, at "
        f"{profile.ghz:.2f} GHz; times of one core, a picture",
        *("stage", "µs", "cycles", "share", "bit-MACs/cycle", "byte-MACs/cycle", "of ceiling"),
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
    made.add_row("total", f"{totals[0]:,.1f}", f"{totals[1]:,.0f}", "", "", "", "", style="bold")
    made.add_row("ceiling", "", "", "", *("unknown" if one is None else f"{one:,.0f}" for one in ceilings), "")
    yield made
    yield densities_table(profile.densities.to_json())


def densities_table(densities: Mapping[str, Any]) -> Table:
    """Show the share of entries in each upper group."""
    made = table(
        f"Entries in the upper groups, on {densities['pictures']} of the pictures run",
        *("group", "mean", "fullest block"),
    )
    for kind in ("attention", "value"):
        shares = zip(densities[kind], densities[f"{kind}_largest_block"], strict=True)
        for group, (mean, largest) in enumerate(shares, 1):
            made.add_row(f"{kind} {group}", f"{mean:.3%}", f"{largest:.3%}")
    return made


def summary_tables(summary: Summary) -> Iterator[Table]:
    """Show the cost of every kind of layer, blocks added up, and the bytes by what they hold."""
    made = table(
        f"{summary.architecture.name}, one picture (OPs = FLOPs + BOPs/64)",
        *("layer", "params", "bytes", "FLOPs", "BOPs", "OPs", "fp32 bytes", "FLOPs"),
    )
    depth = summary.architecture.depth
    for name, layer in _folded(summary.layers, depth).items():
        made.add_row(name, *_costs(layer.packed), _count(layer.twin.bytes), _count(layer.twin.flops))
    made.add_section()
    made.add_row("total", *_costs(summary.packed), _count(summary.twin.bytes), _count(summary.twin.flops), style="bold")
    size = summary.file_bytes or summary.packed.bytes
    made.add_row(
        "times smaller",
        *("", f"{summary.twin.bytes / size:.1f} ×", "", "", f"{summary.twin.ops / summary.packed.ops:.1f} ×"),
    )
    yield made
    kinds = table("Bytes by kind of tensor", "kind", "bytes", "share")
    for kind, size in summary.bytes_by_kind.items():
        kinds.add_row(kind.replace("_", " "), f"{size:,}", f"{size / summary.packed.bytes:.1%}")
    if summary.file_bytes is not None:
        kinds.add_row("the whole file, with its header", f"{summary.file_bytes:,}", "")
    yield kinds


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
