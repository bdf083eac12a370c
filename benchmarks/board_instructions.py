"""Instructions of the engine on other processors, counted under QEMU and fitted: figures of `gsb-vit bench --board`.

    python benchmarks/board_instructions.py --write src/gsb_vit/bench/counted.json [--only aarch64] [--json]

Needs build/classify-NAME/gsb-vit-classify for each processor (docs/devices.md tells how to build them), qemu-user with
plugins, a C compiler, and gsb-vit[train]. Untrained models of many shapes, their scales set on smooth random pictures,
name three pictures, and two; the difference is what one costs. What a unit of each kind of work costs is fitted by
least squares of the relative errors, none below zero. Others are not fitted: they tell how far estimates are off.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from gsb_vit.bench.instructions import work
from gsb_vit.data.synthetic import smooth_pictures

ROOT = Path(__file__).parents[1]

EMULATORS = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm", "riscv64": "qemu-riscv64"}
KERNELS = {"aarch64": "NEON kernels", "armv7": "portable kernels", "riscv64": "portable kernels"}


def shapes(count, seed):
    """Return (arguments of the architecture, classes, thresholds, bias) of so many models, drawn by a seed."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        heads, depth = int(rng.integers(1, 7)), int(rng.integers(1, 5))
        width = heads * int(rng.choice([16, 24, 32, 48, 64, 64, 96]))
        patch = int(rng.choice([4, 8, 8, 16]))
        side = patch * int(rng.integers(3, 15))
        ratio, tokens = int(rng.choice([1, 2, 3, 4, 4])), (side // patch) ** 2
        if width > 384 or tokens * width * (4 * width + 2 * ratio * width + tokens) * depth > MOST_PRODUCTS:
            continue
        given = dict(img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=ratio)
        if rng.random() < 0.4:
            channels = rng.choice([16, 24, 32, 48, 64], int(np.log2(patch)) - 1)
            given["tokenizer_channels"] = sorted(int(one) for one in channels)
        if rng.random() < 0.5:
            given["global_pool"] = "avg"
        classes, groups = int(rng.choice([10, 20, 100, 1000])), int(rng.integers(3))
        found.append((given, classes, [(), (0.7, 0.9), (0.7, 0.9)][groups], str(rng.choice(BIASES))))
    return found


BIASES = ("relative", "relative", "full", "none")
MOST_PRODUCTS = 1e9
FITTED, HELD_OUT = (50, 1), (15, 2)  # how many models, and their seed


class Counter:
    """Counts the instructions of a picture, for one processor."""

    def __init__(self, name, folder):
        self.program = ROOT / "build" / f"classify-{name}" / "gsb-vit-classify"
        self._emulator, self._folder = EMULATORS[name], Path(folder)
        self._plugin = self._folder / "count.so"
        source = ROOT / "tests" / "helpers" / "count_instructions.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", source, "-o", self._plugin], check=True)

    def _run(self, model, pictures):
        command = [self._emulator, "-plugin", self._plugin, self.program, "--threads", "1", model, *pictures]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        return int(re.search(r"(\d+) instructions", done.stderr)[1])

    def count(self, shape):
        """Return the architecture and the instructions of one of its pictures."""
        model, picture = self._folder / "model.safetensors", self._folder / "picture.ppm"
        a = pack(model, *shape)
        (pixels,) = smooth_pictures(1, a.image_size)
        picture.write_bytes(f"P6 {a.image_size[1]} {a.image_size[0]} 255\n".encode() + pixels.tobytes())
        return a, self._run(model, [picture] * 3) - self._run(model, [picture] * 2)


def pack(path, given, classes, thresholds, bias):
    """Write an untrained model whose scales were set on smooth random pictures; return its architecture."""
    import torch

    from gsb_vit.data.preprocess import Preprocessing
    from gsb_vit.export.pack import export_model
    from gsb_vit.models.binarize import initialize_scales
    from gsb_vit.models.build import build_model
    from gsb_vit.models.pixel_inputs import normalize
    from gsb_vit.quantization import Quantization

    torch.manual_seed(0)
    quantization = Quantization(attention_thresholds=thresholds, value_thresholds=thresholds, attention_bias=bias)
    model = build_model("gsb_vit_tiny_patch16_224", given, classes, quantization).eval()
    preprocessing = Preprocessing(size=(given["img_size"],) * 2)
    initialize_scales(model, normalize(smooth_pictures(4, preprocessing.size), preprocessing))
    names = [f"class {index}" for index in range(classes)]
    return export_model(model, path, class_names=names, preprocessing=preprocessing).architecture


def fit(rows):
    """Return instructions a unit of each kind of work from (architecture, instructions)."""
    from scipy.optimize import nnls

    units = np.array([list(work(a).values()) for a, _ in rows], dtype=float)
    counts = np.array([count for _, count in rows], dtype=float)
    scale = np.maximum(units.max(axis=0), 1)
    costs, _ = nnls(units / scale / counts[:, None], np.ones(len(counts)), maxiter=10000)
    return {kind: float(f"{cost:.4g}") for kind, cost in zip(work(rows[0][0]), costs / scale, strict=True)}


def errors(rows, costs):
    """Return the relative error of each estimate."""
    return [sum(costs[k] * n for k, n in work(a).items()) / count - 1 for a, count in rows]


def measure(name):
    """Return what counted.json holds of one processor, and all errors."""
    with tempfile.TemporaryDirectory() as folder:
        counter = Counter(name, folder)
        fitted, held_out = ([counter.count(shape) for shape in shapes(*those)] for those in (FITTED, HELD_OUT))
        costs = fit(fitted)
        off = errors(held_out, costs)
        row = {
            "how": f"instructions counted under QEMU of the {KERNELS[name]}, fitted to {len(fitted)} models; "
            f"{len(held_out)} others are off by at most {100 * max(map(abs, off)):.0f} %",
            "per_unit": costs,
            "largest_error": round(max(map(abs, off)), 4),
            "models": len(fitted),
            "program": counter.program.stat().st_size,
        }
        return row, {"fitted": errors(fitted, costs), "held_out": off, "counts": [c for _, c in fitted + held_out]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=EMULATORS, action="append")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace these processors' rows of the file")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = {}
    for name in options.only or EMULATORS:
        rows[name], off = measure(name)
        if not options.json:
            print(rows[name]["how"])
            for kind, found in off.items():
                print(f"  {kind}:", " ".join(f"{one:+.1%}" if kind != "counts" else f"{one:,}" for one in found))
    if options.json:
        print(json.dumps(rows, indent=1))
    if options.write:
        old = json.loads(options.write.read_text()) if options.write.exists() else {}
        options.write.write_text(json.dumps({**old, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
