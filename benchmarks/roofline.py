"""The roofline of a packed model's stages: products a cycle against products for a byte of weights.

    python benchmarks/roofline.py MODEL [--data SPEC] [--plot docs/images/roofline.svg] [--json]

One thread, batch 1. A stage reads its weights once a picture, while the activations stay in the core's own caches; so
its intensity is its products over the bytes of its weights, and what memory allows is intensity x the bandwidth from
memory of the size of all weights. `roof` is the lower of that and of the ceiling of the core (docs/performance.md), all
measured in the same run. Where a stage makes its weights itself (keys, masks and Value planes), those count.
"""

import argparse
import json
import os
from pathlib import Path

from gsb_vit.bench.compare import choose_pictures
from gsb_vit.bench.palette import OWN, SERIES, TEACHER
from gsb_vit.bench.profile import profile
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.schema import Architecture

OFFSETS = {"qkv": (6, 3), "fc1": (-24, -6), "fc2": (-24, 4), "projection": (6, -10)}  # points; they lie close together


def weight_bytes(a: Architecture) -> dict[str, float]:
    """Return the bytes of weights that each stage with products reads for one picture."""
    tokens, width, hidden, depth = a.num_tokens, a.embed_dim, a.mlp_hidden, a.depth
    # The relative bias is kept in float32, the full one in float16.
    bias = {"relative": 4 * a.relative_bias_size, "full": 2 * tokens**2}.get(a.attention_bias, 0) * a.num_heads
    return {
        "patch embedding": 3 * width * a.patch_size[0] * a.patch_size[1],
        "qkv": depth * 3 * width * width / 8,
        "scores": depth * (tokens * width / 8 + bias),
        "attention x value": depth * a.value_groups * width * tokens / 8,
        "projection": depth * width * width / 8,
        "fc1": depth * width * hidden / 8,
        "fc2": depth * width * hidden / 8,
        "heads": len(a.heads) * width * a.num_classes,
    }


def measure(model: Path, data: str | None, seconds: float):
    """Return the profile and a row for each stage with products."""
    from gsb_vit import _native

    packed = read(model)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = profile(
        model, threads=1, batch=1, seconds=seconds, pictures=None if data is None else choose_pictures(packed, data)
    )
    sizes = weight_bytes(packed.architecture)
    bandwidth = _native.read_rate(found.backend, int(sum(sizes.values()))) / (found.ghz * 1e9)
    rows = []
    for stage in found:
        products = (stage.bit_macs_per_ns or stage.byte_macs_per_ns) / found.ghz  # a cycle
        if not products:
            continue
        ceiling = found.bit_ceiling if stage.bit_macs_per_ns else found.byte_ceiling
        intensity = products * stage.cycles / sizes[stage.name]
        roofs = [roof for roof in (ceiling, intensity * bandwidth) if roof]
        rows.append(
            {
                "stage": stage.name,
                "of": "bits" if stage.bit_macs_per_ns else "bytes",
                "us": stage.us,
                "weights_mb": sizes[stage.name] / 1e6,
                "products_per_byte": intensity,
                "products_per_cycle": products,
                "roof": min(roofs) if roofs else None,
            }
        )
    return found, bandwidth, rows


def plot(found, bandwidth: float, rows, path: Path) -> None:
    """Draw both ceilings, the slope of memory, and the stages."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    span = [0.5, 2e5]
    for ceiling, label in ((found.bit_ceiling, "one-bit products"), (found.byte_ceiling, "int8 products")):
        if ceiling:
            axes.plot([ceiling / bandwidth, span[1]], [ceiling] * 2, color=TEACHER)
            axes.annotate(f"{label}: {ceiling:.0f} a cycle", (span[1], ceiling), ha="right", va="bottom", fontsize=8)
    top = max(found.bit_ceiling or 1, found.byte_ceiling or 1)
    axes.plot([span[0], top / bandwidth], [span[0] * bandwidth, top], color=TEACHER, ls="--")
    axes.annotate(f"{bandwidth:.0f} bytes a cycle", (1, 1.2 * bandwidth), rotation=35, fontsize=8)
    for row in rows:
        color = OWN if row["of"] == "bits" else SERIES[1]
        axes.plot(row["products_per_byte"], row["products_per_cycle"], "o", color=color)
        axes.annotate(row["stage"], (row["products_per_byte"], row["products_per_cycle"]), fontsize=8,
                      xytext=OFFSETS.get(row["stage"], (4, -10)), textcoords="offset points")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=span, xlabel="products for a byte of weights", ylabel="products a cycle")
    axes.grid(alpha=0.3)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found, bandwidth, rows = measure(options.model, options.data, options.seconds)
    if options.json:
        print(json.dumps({"profile": found.to_json(), "bytes_per_cycle": bandwidth, "stages": rows}, indent=2))
    else:
        print(f"{found.backend} at {found.ghz:.2f} GHz, {bandwidth:.1f} bytes of weights a cycle\n")
        print("| stage | µs | weights MB | products / byte | products / cycle | roof | of roof |")
        print("|---|---|---|---|---|---|---|")
        for row in rows:
            roof, share = ("?", "?") if row["roof"] is None else (
                f"{row['roof']:.0f}", f"{row['products_per_cycle'] / row['roof']:.0%}")  # fmt: skip
            print(f"| {row['stage']} | {row['us']:.0f} | {row['weights_mb']:.2f} | {row['products_per_byte']:,.0f} | "
                  f"{row['products_per_cycle']:.1f} | {roof} | {share} |")  # fmt: skip
    if options.plot:
        plot(found, bandwidth, rows, options.plot)


if __name__ == "__main__":
    main()
