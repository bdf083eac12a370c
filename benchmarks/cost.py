"""How the packed model's time grows with tokens, width, head size, groups and density: is there a cliff?

    python benchmarks/cost.py [--only tokens,width,heads,groups,density] [--plot docs/images/cost.svg] [--json]

Packs untrained models of DeiT-Small's shape, four blocks deep, that differ in one thing; where the densities of the
upper groups are to be something, their thresholds are put at the quantiles of the attention matrix and the Value on the
pictures that are run. Then all of them are timed in turn, on one thread held to the last core. Needs gsb-vit[bench].
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from gsb_vit.bench.densities import measure_densities
from gsb_vit.bench.palette import OWN
from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.runtime.packed_file import read, write
from gsb_vit.runtime.reference import ReferenceModel

DEPTH, PICTURES, ROUNDS, TURN_SECONDS = 4, 2, 7, 0.06
DENSITY = 0.01
UPPER_SHARE = 0.25  # each further group holds this share of the one below


@dataclass(frozen=True)
class Point:
    """A model to time; ``x`` is where it stands on the axis of its ``series``."""

    series: str
    x: float
    image_size: int = 224
    width: int = 384
    heads: int = 6
    attention_groups: int = 3
    value_groups: int = 3
    attention_density: float = DENSITY
    value_density: float = DENSITY

    @property
    def file_name(self) -> str:
        return f"{self.series}_{self.x:g}.safetensors".replace(" ", "_")

    @property
    def tokens(self) -> int:
        return (self.image_size // 16) ** 2 + 2

    @property
    def bit_macs(self) -> float:
        """One-bit products of a picture: four linear layers, scores, and attention × Value of plane 0."""
        return DEPTH * self.tokens * self.width * (12 * self.width + 2 * self.tokens)


def points() -> list[Point]:
    """Return every model to time."""
    sizes = [32, 48, 64, 96, 128, 160, 192, 208, 224, 240, 256, 288, 320, 352, 384]
    # Six heads, so the head size moves, too: 32 to 128, mostly no multiple of 8.
    widths = [192, 216, 240, 264, 288, 306, 336, 360, 378, 384, 390, 402, 420, 450, 480, 510, 576, 672, 768]
    head_sizes = [16, 24, 32, 40, 48, 56, 64, 80, 96, 128]
    densities = [0.001, 0.003, 0.01, 0.02, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3]
    return [
        *(Point("tokens", size, image_size=size) for size in sizes),
        *(Point("width", width, width=width) for width in widths),
        *(Point("heads", size, width=384 if 384 % size == 0 else 6 * size, heads=384 // size) for size in head_sizes
          if 384 % size == 0),
        *(Point("heads", size, width=5 * size if size > 64 else 8 * size, heads=5 if size > 64 else 8)
          for size in head_sizes if 384 % size),
        *(Point("groups", groups, attention_groups=groups, value_groups=groups) for groups in range(1, 7)),
        *(Point("attention density", density, attention_density=density) for density in densities),
        *(Point("Value density", density, value_density=density) for density in densities),
    ]  # fmt: skip


def pack(point: Point, path: Path, pictures) -> None:
    """Write an untrained model of this shape whose upper groups have the wished densities on the pictures."""
    import timm
    import torch

    import gsb_vit.models  # noqa: F401 - registers the architectures
    from gsb_vit.data.preprocess import Preprocessing
    from gsb_vit.export.pack import export_model
    from gsb_vit.models.binarize import initialize_scales
    from gsb_vit.models.pixel_inputs import normalize
    from gsb_vit.quantization import Quantization

    def ratios(groups):
        return tuple(0.5 + 0.05 * group for group in range(groups - 1))

    torch.manual_seed(0)
    model = timm.create_model(
        "gsb_vit_small_patch16_224",
        quantization=Quantization(
            attention_thresholds=ratios(point.attention_groups), value_thresholds=ratios(point.value_groups)
        ),
        img_size=point.image_size,
        embed_dim=point.width,
        num_heads=point.heads,
        depth=DEPTH,
        num_classes=100,
    ).eval()
    preprocessing = Preprocessing(size=(point.image_size, point.image_size))
    initialize_scales(model, normalize(smooth_pictures(8, preprocessing.size), preprocessing))
    export_model(model, path, class_names=[f"class {n}" for n in range(100)], preprocessing=preprocessing)
    for _ in range(2):  # what the groups hold moves the later blocks' numbers
        set_densities(point, path, pictures)
    note_densities(path, pictures)


def note_densities(path: Path, pictures) -> None:
    """Write the densities reached into the file's provenance, so that timing again need not count again."""
    packed = read(path)
    write(path, replace(packed, provenance={"densities": measure_densities(packed, pictures).to_json()}))


def set_densities(point: Point, path: Path, pictures) -> None:
    """Put the thresholds at the quantiles of what the model's blocks hold now."""
    packed = read(path)
    attention, value = [], []
    for picture in pictures:
        trace = ReferenceModel(packed).trace(picture)
        for block in range(DEPTH):
            a, v = (trace[f"blocks.{block}.attn.{name}"] for name in ("attention", "value"))
            attention.append((a / a.max()).ravel())
            value.append(np.maximum(v / v.max(), v / v.min()).ravel())
    architecture = replace(
        packed.architecture,
        attention_thresholds=quantiles(np.concatenate(attention), point.attention_density, point.attention_groups),
        value_thresholds=quantiles(np.concatenate(value), point.value_density, point.value_groups),
    )
    write(path, replace(packed, architecture=architecture))


def quantiles(ratios, density: float, groups: int) -> tuple[float, ...]:
    """Return increasing thresholds between 0 and 1, the first exceeded by ``density`` of the ratios."""
    wished = [float(np.quantile(ratios, 1 - density * UPPER_SHARE**group)) for group in range(groups - 1)]
    found: list[float] = []
    for one in wished:
        found.append(min(max(one, 1e-4, found[-1] * 1.0001 if found else 0.0), 0.99 + 0.001 * len(found)))
    return tuple(found)


def time_in_turn(models, pictures) -> list[float]:
    """Return the median milliseconds of a picture of each model."""
    times: list[list[float]] = [[] for _ in models]
    for model, own in zip(models, pictures, strict=True):
        for one in own:
            model.logits(one[None])
    for number in range(ROUNDS):
        for index in np.roll(np.arange(len(models)), number):
            end = time.perf_counter() + TURN_SECONDS
            models[index].logits(pictures[index][:1])  # brings the caches back; not timed
            calls = 0
            while calls < PICTURES or time.perf_counter() < end:
                picture = pictures[index][calls % PICTURES][None]
                start = time.perf_counter()
                models[index].logits(picture)
                times[index].append(1000 * (time.perf_counter() - start))
                calls += 1
    return [statistics.median(one) for one in times]


def measure(chosen, folder: Path, pack_only: bool = False):
    """Return a row for each point: its fields, the densities reached, milliseconds, products a nanosecond."""
    import gsb_vit

    pictures = [smooth_pictures(PICTURES, (point.image_size, point.image_size)) for point in chosen]
    paths = [folder / point.file_name for point in chosen]
    for point, path, own in zip(chosen, paths, pictures, strict=True):
        if not path.exists():
            pack(point, path, own)
    if pack_only:
        return []
    rows = []
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    models = [gsb_vit.load(path, threads=1) for path in paths]
    for point, path, ms in zip(chosen, paths, time_in_turn(models, pictures), strict=True):
        found = read(path).provenance["densities"]
        rows.append(
            {
                **asdict(point),
                "tokens": point.tokens,
                "ms": ms,
                "bit_macs_per_ns": point.bit_macs / ms / 1e6,
                "attention_found": found["attention"],
                "value_found": found["value"],
            }
        )
    return rows


def plot(rows, path: Path) -> None:
    """Draw milliseconds, and products a nanosecond, against each axis."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"] = "none"
    series = list(dict.fromkeys(row["series"] for row in rows))
    labels = {
        "tokens": "tokens", "width": "width (channels)", "heads": "channels a head", "groups": "groups of either",
        "attention density": "attention, share of entries in group 1", "Value density": "Value, likewise",
    }  # fmt: skip
    figure = Figure(figsize=(3.1 * len(series), 4.8), layout="constrained")
    axes = figure.subplots(2, len(series), squeeze=False, sharex="col")
    for column, name in enumerate(series):
        own = sorted((row for row in rows if row["series"] == name), key=axis)
        for line, key, label in ((0, "ms", "ms a picture"), (1, "bit_macs_per_ns", "one-bit products / ns")):
            one = axes[line][column]
            one.plot([axis(row) for row in own], [row[key] for row in own], "o-", color=OWN, ms=4)
            one.set_ylim(0)
            one.set_ylabel(label)
            one.grid(alpha=0.3)
            if "density" in name:
                one.set_xscale("log")
        axes[1][column].set_xlabel(labels[name])
    figure.savefig(path)


def axis(row) -> float:
    """Return where a row stands: tokens, a density that was really reached, or the value wished."""
    found = {"tokens": row["tokens"], "attention density": row["attention_found"], "Value density": row["value_found"]}
    at = found.get(row["series"], row["x"])
    return at[0] if isinstance(at, list) else at


def table(rows) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| series | at | tokens | width | heads | groups | attention, Value in group 1 | ms | products/ns |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reached = ", ".join(f"{100 * (row[f'{kind}_found'] or [0])[0]:.2g} %" for kind in ("attention", "value"))
        lines.append(
            f"| {row['series']} | {row['x']:g} | {row['tokens']} | {row['width']} | {row['heads']} | "
            f"{row['attention_groups']} | {reached} | {row['ms']:.2f} | {row['bit_macs_per_ns']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="series, separated by commas (default: all)")
    parser.add_argument("--plot", type=Path, help="SVG, PNG or PDF")
    parser.add_argument("--models", type=Path, help="keep the packed models in this folder, and use those there")
    parser.add_argument("--pack-only", action="store_true", help="stop before anything is timed")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [point for point in points() if any(name in point.series for name in options.only.split(","))]
    with tempfile.TemporaryDirectory() as folder:
        kept = options.models or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        rows = measure(chosen, kept, options.pack_only)
    if options.pack_only:
        return
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
