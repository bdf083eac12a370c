"""A study's picture as SVG: curves over an axis of the grid, accuracy against bytes, or a dot a variant."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gsb_vit.bench.palette import SERIES, TEACHER

from .plan import Study
from .results import Group, Spread, deployed_spread, file_bytes


def plot_svg(study: Study, groups: Sequence[Group]) -> str | None:
    """Draw final test top-1 with 95 % confidence intervals (Student's t over seeds); None while there is nothing."""
    if not groups:
        return None
    with matplotlib.rc_context({"svg.hashsalt": "gsb-vit", "font.size": 9}):
        if study.plot_x == "bytes":
            timed = study.int8 is not None and any("latency_ms" in group.size for group in groups)
            figure = _pareto(groups, timed)
        elif study.plot_x is not None and all(isinstance(dict(g.point)[study.plot_x], int | float) for g in groups):
            figure = _curves(study, groups)
        else:
            figure = _dots(groups)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.6)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _percent(value: Spread) -> tuple[float, float]:
    return 100 * value.mean, 100 * (value.half or 0.0)


def _curves(study: Study, groups: Sequence[Group]) -> Figure:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    x_key = str(study.plot_x)

    def others(group: Group) -> tuple[Any, ...]:
        return tuple(value for key, value in group.point if key != x_key)

    lines: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        lines.setdefault((group.variant, *others(group)), []).append(group)
    teachers: dict[tuple[Any, ...], Any] = {}
    for index, (name, line) in enumerate(lines.items()):
        label = ", ".join([line[0].title, *map(str, name[1:])])
        _curve(axes, x_key, [(g, g.metrics[g.final]["top1"]) for g in line], label, SERIES[index % len(SERIES)], "-")
        taught = [(g, g.metrics["teacher"]["top1"]) for g in line if "teacher" in g.metrics and g.final != "teacher"]
        key = tuple((dict(g.point)[x_key], spread.mean) for g, spread in taught)
        if key and key not in teachers:
            teachers[key] = taught
    for taught in teachers.values():
        _curve(axes, x_key, taught, "teacher (full precision)" if len(teachers) == 1 else "its teacher", TEACHER, "--")
    if study.plot_log:
        axes.set_xscale("log")
    ticks = sorted({dict(g.point)[x_key] for g in groups})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set(xlabel=x_key, ylabel="test top-1, %")
    axes.legend(frameon=False)
    return figure


def _curve(axes: Any, x_key: str, points: Sequence[tuple[Group, Spread]], label: str, colour: str, style: str) -> None:
    ordered = sorted(points, key=lambda point: dict(point[0].point)[x_key])
    x = [dict(group.point)[x_key] for group, _ in ordered]
    means, halves = zip(*(_percent(spread) for _, spread in ordered), strict=True)
    low, high = ([m + sign * h for m, h in zip(means, halves, strict=True)] for sign in (-1, 1))
    axes.plot(x, means, style, color=colour, marker="o", markersize=3.5, label=label)
    axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _pareto(groups: Sequence[Group], timed: bool = False) -> Figure:
    """Accuracy against bytes, and beside it against milliseconds where all engines took turns."""
    figure = Figure(figsize=(11.0 if timed else 6.4, 4.4 if timed else 4.0), layout="constrained")
    panels = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    sizes = [(size / 1000, g) for g in groups if (size := file_bytes(g))]
    runs = (
        "the packed file that the runtime runs"
        if not timed
        else "one bit in our runtime; squares: int8 in ONNX Runtime"
    )
    _front(panels[0], sizes, f"bytes, thousands (circles: {runs})", with_ms=not timed)
    panels[0].set_ylabel("test top-1, %")
    if timed:
        times = [(g.size["latency_ms"], g) for g in groups if "latency_ms" in g.size]
        _front(panels[1], times, "ms a picture, one thread, all in turns", with_ms=False)
    return figure


def _front(axes: Any, points: Sequence[tuple[float, Group]], label: str, with_ms: bool) -> None:
    """Dots of (x, top-1 as deployed), and a line along those that nothing smaller beats."""
    found = [(x, *_percent(deployed_spread(group)), group) for x, group in points]
    for x, mean, half, group in found:
        runs = bool(group.size.get("packed_bytes"))
        colour = SERIES[0] if runs else TEACHER
        axes.errorbar(x, mean, half, fmt="o" if runs else "s", color=colour, capsize=3, markersize=6)
        text = group.title
        if with_ms and "latency_ms" in group.size:
            text += f"\n{group.size['latency_ms']:.2f} ms"
        axes.annotate(text, (x, mean), xytext=(7, 4), textcoords="offset points")
    front, best = [], float("-inf")
    for x, mean, _, _ in sorted(found, key=lambda point: (point[0], -point[1])):
        if mean > best:
            best = mean
            front.append((x, mean))
    if front:
        axes.plot(*zip(*front, strict=True), color=TEACHER, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel(label)


def _dots(groups: Sequence[Group]) -> Figure:
    figure = Figure(figsize=(6.8, 0.32 * len(groups) + 1.1), layout="constrained")
    axes = figure.subplots()
    names = [", ".join([g.title, *(f"{key.rpartition('.')[2]} {value}" for key, value in g.point)]) for g in groups]
    for index, group in enumerate(groups):
        mean, half = _percent(group.metrics[group.final]["top1"])
        axes.errorbar(mean, index, xerr=half, fmt="o", color=SERIES[0], capsize=3, markersize=5)
        for row in group.rows:
            if row["final"]:
                axes.plot(100 * row["top1"], index, ".", color=SERIES[0], alpha=0.45, markersize=4)
    teachers = {g.metrics["teacher"]["top1"].mean for g in groups if "teacher" in g.metrics and g.final != "teacher"}
    if len(teachers) == 1:
        axes.axvline(100 * teachers.pop(), color=TEACHER, linestyle="--", linewidth=1, label="teacher (full precision)")
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.0 + 0.5 / (0.32 * len(groups) + 1)))
    axes.set_yticks(range(len(groups)), names)
    axes.invert_yaxis()
    axes.set_xlabel("test top-1, %: mean with 95 % confidence interval, and the seeds", loc="right")
    return figure
