"""Charts of the report as inline SVG: colours and fonts come from the page's CSS, so they follow light and dark."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from PIL import Image


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y), the CSS class that colours it, dashed or not."""

    label: str
    css: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Band:
    """A named stretch of the x axis."""

    label: str
    css: str
    start: float
    end: float


WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 40
CELLS_TOP = 22
NAME_LENGTH = 32  # characters of a class name beside the confusion matrix
BAND_LABEL = 7.5  # units of a band label's character


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers from ``low`` to ``high``: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(lines: Sequence[Line], bands: Sequence[Band], *, title: str, percent: bool = False) -> Markup:
    """Draw curves over a shared x axis of epochs, with the stages as shaded bands.

    The y axis starts where the smallest value asks for it; points that are not finite are left out.
    """
    drawn = [Line(line.label, line.css, [p for p in line.points if math.isfinite(p[1])], line.dashed) for line in lines]
    values = [y for line in drawn for _, y in line.points] or [0.0, 1.0]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    low, high = low - margin, min(high + margin, 1.0) if percent else high + margin
    left = min((band.start for band in bands), default=0.0)
    right = max((band.end for band in bands), default=1.0)

    def x_of(x: float) -> float:
        return LEFT + (x - left) / max(right - left, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for band in bands:
        start, end = x_of(band.start), x_of(band.end)
        parts.append(
            f'<rect class="band {band.css}" x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM}"><title>{escape(band.label)}</title></rect>'
        )
        if end - start >= BAND_LABEL * len(band.label):
            parts.append(
                f'<text class="band-label {band.css}" x="{(start + end) / 2:.1f}" y="{TOP - 9}" '
                f'text-anchor="middle">{escape(band.label)}</text>'
            )
    for tick in ticks(low, high):
        label = f"{100 * tick:g} %" if percent else f"{tick:g}"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for tick in ticks(left, right, 8):
        parts.append(
            f'<text class="tick" x="{x_of(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">epoch</text>'
    )
    for line in drawn:
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        style = "curve dashed" if line.dashed else "curve"
        parts.append(
            f'<polyline class="{style} {line.css}" points="{points}"><title>{escape(line.label)}</title></polyline>'
        )
        if not line.dashed:
            for x, y in line.points[-1:]:
                parts.append(f'<circle class="dot {line.css}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.2"/>')
    return Markup("".join([*parts, "</svg>"]))


def confusion_chart(counts: Sequence[Sequence[int]], class_names: Sequence[str]) -> Markup:
    """Draw a confusion matrix: rows are true classes, columns predictions, shade the share of the row.

    Numbers and names are written while there is room for them (up to 20 classes).
    """
    table = np.asarray(counts, dtype=np.float64)
    size = len(table)
    labelled = size <= 20
    cell = min(46, 480 // size) if labelled else max(3, 520 // size)
    edge = 16 + min(7 * max((len(name) for name in class_names), default=1), NAME_LENGTH * 7) if labelled else 24
    width, height = edge + cell * size + 4, CELLS_TOP + cell * size + (edge if labelled else 4)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    parts = [
        f'<svg class="chart confusion" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        'aria-label="Confusion matrix">'
    ]
    for row, column in zip(*np.nonzero(table), strict=True):
        count, share = int(table[row, column]), shares[row, column]
        x, y = edge + column * cell, CELLS_TOP + row * cell
        kind = "hit" if row == column else "miss"
        names = f"{class_names[row]} → {class_names[column]}: {count}"
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
            f'fill-opacity="{0.15 + 0.85 * share:.3f}"><title>{escape(names)}</title></rect>'
        )
        if labelled:
            strong = " strong" if share > 0.5 else ""
            parts.append(
                f'<text class="count{strong}" x="{x + cell / 2 - 0.5}" y="{y + cell / 2 + 4}" text-anchor="middle">'
                f"{count}</text>"
            )
    if labelled:
        for index, name in enumerate(class_names):
            y, text = CELLS_TOP + index * cell + cell / 2 + 4, escape(_short(name, NAME_LENGTH))
            parts.append(f'<text class="tick" x="{edge - 8}" y="{y}" text-anchor="end">{text}</text>')
            x, below = edge + index * cell + cell / 2 + 4, CELLS_TOP + cell * size + 8
            parts.append(
                f'<text class="tick" x="{x}" y="{below}" text-anchor="end" transform="rotate(-90 {x} {below})">'
                f"{text}</text>"
            )
    parts.append(f'<rect class="frame" x="{edge}" y="{CELLS_TOP}" width="{cell * size}" height="{cell * size}"/>')
    parts.append(f'<text class="tick" x="{edge + cell * size / 2}" y="12" text-anchor="middle">predicted →</text>')
    return Markup("".join([*parts, "</svg>"]))


def bars(rows: Sequence[tuple[str, str, float, str]]) -> Markup:
    """Draw horizontal bars: rows of label, CSS class, value and the text behind the bar; lengths are proportional."""
    largest = max((value for _, _, value, _ in rows), default=1.0) or 1.0
    parts = []
    for label, css, value, text in rows:
        parts.append(
            f'<div class="bar-row"><span class="bar-label">{escape(label)}</span><span class="bar-track">'
            f'<span class="bar {css}" style="width:{max(100 * value / largest, 0.4):.2f}%"></span></span>'
            f'<span class="bar-text">{escape(text)}</span></div>'
        )
    return Markup("".join(parts))


def png_uri(pixels: np.ndarray, at_least: int = 0) -> Markup:
    """Return uint8 pixels (H, W, 3) or (H, W, 4) as a PNG data URI, repeated to at least that many pixels a side."""
    factor = max(1, -(-at_least // max(pixels.shape[:2])))
    large = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(large)).save(buffer, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
