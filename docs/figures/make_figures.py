"""The figures of docs/how-gsb-works.md, drawn from the package's own functions: python docs/figures/make_figures.py"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from gsb_vit.bench.palette import SERIES, TEACHER
from gsb_vit.nn import quantize, superpose

FOLDER = Path(__file__).parent
GREEN, ORANGE, BLUE, GREY = *SERIES[:3], TEACHER
RATIOS = torch.tensor([0.7, 0.9])
STYLE = {"svg.hashsalt": "gsb-vit", "font.size": 11, "axes.titlesize": 11, "axes.spines.top": False}


def save(figure: Figure, name: str) -> None:
    """Write ``name.svg``, the same bytes every time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
    (FOLDER / f"{name}.svg").write_text(text, encoding="utf-8")


def attention() -> torch.Tensor:
    """A long-tailed attention matrix (1, 1, 12, 12): softmax of scores in steps of one bit."""
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(12, 24, generator=generator) for _ in range(2))
    q = q + 1.1 * k.roll(2, 0)
    return torch.softmax(quantize.sign(q) @ quantize.sign(k).T * 0.16, dim=-1)[None, None]


def attention_scales(a: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Scales whose running sums are the mean of each band; the base's is that of what its plane holds."""
    levels = superpose.attention_levels(a, limits, factor=1.0)
    return superpose.increments(levels)


def draw_masks() -> None:
    """A, its three planes, and their superposition."""
    a = attention()
    limits = RATIOS * a.max()
    scales = attention_scales(a, limits)
    planes = superpose.attention_planes(a, scales[0], limits)
    superposed = superpose.attention_superposition(a, scales, limits)
    figure = Figure(figsize=(5.2, 7.4), layout="constrained")
    panels = [("A, the attention matrix", a, "Greens"), ("$s_0 M_0 + s_1 M_1 + s_2 M_2$", superposed, "Greens")]
    panels += [(f"$M_{g}$: {int(plane.sum())} of 144 ones", plane, "Greys") for g, plane in enumerate(planes)]
    grid = figure.subplots(3, 2)
    for axes, (title, values, colours) in zip([*grid[0], *grid[1], grid[2][0]], panels, strict=True):
        top = 1.0 if colours == "Greys" else float(a.max())
        axes.pcolormesh(values[0, 0].numpy(), cmap=colours, vmin=0, vmax=top, edgecolors="#dddddd", linewidth=0.4)
        axes.set(title=title, xticks=[], yticks=[], aspect="equal")
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
    axes, row = grid[2][1], int(a[0, 0].topk(2).values[:, 1].argmax())
    order = a[0, 0, row].argsort(descending=True)
    axes.bar(range(12), a[0, 0, row, order], color=GREY, label="A")
    axes.step(range(12), superposed[0, 0, row, order], where="mid", color=GREEN, linewidth=2, label="sum")
    axes.set(title="one row, sorted", xticks=[])
    axes.spines["right"].set_visible(False)
    axes.legend(frameon=False)
    save(figure, "masks")


def gradient(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of ``function`` and its gradient for an incoming gradient of 1."""
    x = x.clone().requires_grad_()
    y = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), slope


def draw_gradients() -> None:
    """Each quantizer's value, and the gradient that training uses instead of zero."""
    scale = torch.tensor(0.8)
    signed, unsigned = torch.linspace(-2, 2, 1601)[None, None], torch.linspace(-0.4, 1.6, 1601)[None, None]
    weight_limits, value_limits = RATIOS * 1.4, torch.stack([RATIOS * 1.6, -RATIOS * 1.6], 1)
    scales, weights = torch.tensor([0.8, 0.35, 0.35]), torch.tensor(0.8)

    def weight(x: torch.Tensor) -> torch.Tensor:
        plane, own = quantize.binary_weight(x[0], False, weights)
        return (own * plane)[None]

    def value(aligned: bool):
        return lambda x: superpose.value_superposition(x, scales, value_limits, aligned)

    rows = [
        ("weight: s·sign(W)", signed, [(weight, GREEN, "-", "")]),
        ("signed input: s·sign(x)", signed, [(lambda x: scale * quantize.elastic_sign(x, scale), GREEN, "-", "")]),
        ("unsigned input", unsigned, [(lambda x: scale * quantize.elastic_step(x, scale), GREEN, "-", "")]),
        (
            "attention, three groups",
            unsigned,
            [(lambda x: superpose.attention_superposition(x, scales, weight_limits), GREEN, "-", "")],
        ),
        (
            "Value, three groups",
            signed,
            [(value(False), ORANGE, "--", "authors"), (value(True), GREEN, "-", "aligned")],
        ),
    ]
    figure = Figure(figsize=(5.2, 9.4), layout="constrained")
    grid = figure.subplots(len(rows), 2)
    for (left, right), (title, x, functions) in zip(grid, rows, strict=True):
        for function, colour, style, label in functions:
            y, slope = gradient(function, x)
            left.plot(x[0, 0], x[0, 0], color=GREY, linewidth=0.8, linestyle=":")
            left.plot(x[0, 0], y[0, 0], color=colour, linewidth=1.8)
            right.plot(x[0, 0], slope[0, 0], style, color=colour, linewidth=1.8, label=label or None)
        left.set_title(title, loc="left")
        right.set_title("gradient", loc="left")
        right.set_ylim(-0.15, None)
        if len(functions) > 1:
            right.legend(frameon=False, loc="upper center", fontsize=9, handlelength=1.4)
        for axes in (left, right):
            axes.spines["right"].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.6)
    save(figure, "gradients")


def draw_popcount() -> None:
    """A product of two vectors of ±1 as XOR and popcount."""
    generator = torch.Generator().manual_seed(5)
    x, w = ((torch.randn(12, generator=generator) >= 0).int() for _ in range(2))
    figure = Figure(figsize=(5.2, 2.5), layout="constrained")
    axes = figure.subplots()
    different = x ^ w
    for line, (name, bits, colour) in enumerate([("x", x, GREEN), ("w", w, BLUE), ("x ^ w", different, ORANGE)]):
        axes.text(-0.5, line + 0.5, name, ha="right", va="center")
        for place, bit in enumerate(bits.tolist()):
            face = colour if bit else "white"
            axes.add_patch(
                matplotlib.patches.Rectangle((place, line + 0.08), 0.9, 0.84, facecolor=face, edgecolor=GREY)
            )
            axes.text(place + 0.45, line + 0.5, str(bit), ha="center", va="center", color="white" if bit else "black")
    count = int(different.sum())
    assert 12 - 2 * count == int(((2 * x - 1) * (2 * w - 1)).sum())
    axes.text(6, 3.55, f"popcount = {count}: product = 12 − 2·{count} = {12 - 2 * count}", ha="center", va="center")
    axes.set(xlim=(-2.2, 12.2), ylim=(4.1, -0.1))
    axes.axis("off")
    save(figure, "popcount")


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        draw_masks()
        draw_gradients()
        draw_popcount()
