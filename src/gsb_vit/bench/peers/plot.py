"""The rows of a benchmark as a picture."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gsb_vit.bench.palette import OWN, TEACHER
from gsb_vit.errors import InputError

from .timing import Measurement

ENDINGS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raise InputError where a plot cannot be written to ``path``; ask before measuring for minutes."""
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--plot {path}: the ending must be one of {', '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: there is no folder {path.parent}; create it first")
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib: pip install 'gsb-vit[bench]'")


def plot(rows: Sequence[Measurement], path: Path) -> None:
    """Draw the median time of a call of each engine as bars, rows without a figure left out, and write it to path.

    Raises:
        InputError: no row has a figure.
    """
    from matplotlib.figure import Figure

    measured = [(row, row.median_ms) for row in rows if row.median_ms is not None]
    if not measured:
        raise InputError("no engine has a figure to plot; measure again on an idle machine")
    first = measured[0][0]
    figure = Figure(figsize=(7, 0.45 * len(measured) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = [f"{row.engine} {row.precision}" for row, _ in measured]
    bars = axes.barh(names, [ms for _, ms in measured])
    for bar, (row, _) in zip(bars, measured, strict=True):
        bar.set_color(OWN if row.engine == "gsb-vit" else TEACHER)
    axes.bar_label(bars, fmt="{:.2f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(f"ms a call: {first.threads} thread(s), batch {first.batch}, median")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
