"""Instructions of the engine on other processors, counted under QEMU and fitted: figures of `gsb-vit bench --board`.

    python benchmarks/board_instructions.py --write src/gsb_vit/bench/counted.json [--only aarch64] [--json]

Needs build/classify-NAME/gsb-vit-classify for each processor (docs/devices.md tells how to build them), qemu-user with
plugins, a C compiler, and scipy. Random models of many shapes name three pictures, and two; the difference is what one
costs. Costs a unit of each kind of work are fitted by least squares of the relative errors, none below zero. The models
of HELD_OUT are not fitted: they tell how far an estimate is off.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from random_packed import random_pictures, write_random_packed  # noqa: E402

from gsb_vit.bench.instructions import work  # noqa: E402

EMULATORS = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm", "riscv64": "qemu-riscv64"}
KERNELS = {"aarch64": "NEON kernels", "armv7": "portable kernels", "riscv64": "portable kernels"}


def shape(side, patch, width, depth, heads, hidden, classes=10, **more):
    """Return the arguments of a random model."""
    return dict(
        image_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, mlp_hidden=hidden,
        num_classes=classes, **more,
    )  # fmt: skip


FITTED = [
    shape(16, 4, 32, 1, 1, 64),
    shape(16, 2, 64, 2, 2, 128),
    shape(16, 4, 48, 4, 3, 192),
    shape(32, 4, 64, 1, 1, 256),
    shape(32, 4, 96, 4, 3, 384, 100),
    shape(32, 8, 192, 2, 3, 768),
    shape(32, 16, 128, 6, 2, 512, 1000),
    shape(48, 6, 96, 2, 2, 384, 20, attention_thresholds=(), value_thresholds=()),
    shape(64, 8, 128, 2, 4, 512, 102),
    shape(64, 8, 192, 4, 3, 768, 102),
    shape(64, 4, 64, 1, 1, 128),
    shape(64, 8, 192, 2, 6, 384, 102, attention_thresholds=(), value_thresholds=()),
    shape(96, 8, 128, 1, 2, 512),
    shape(64, 8, 192, 2, 3, 768, 102, tokenizer_channels=(24, 48), global_pool="avg", prefix_tokens=0),
    shape(32, 4, 96, 2, 3, 384, 10, tokenizer_channels=(32,), global_pool="avg", prefix_tokens=0),
    shape(64, 16, 128, 1, 2, 256, 10, tokenizer_channels=(16, 32, 64), global_pool="avg", prefix_tokens=0),
    shape(128, 16, 192, 2, 3, 768, 1000),
    shape(224, 16, 192, 1, 3, 768, 1000),
    shape(224, 32, 384, 1, 6, 1536, 1000),
]
HELD_OUT = [
    shape(32, 8, 64, 3, 2, 256, 10),
    shape(64, 8, 256, 3, 4, 1024, 102),
    shape(64, 8, 192, 6, 3, 768, 20),
    shape(48, 8, 96, 3, 3, 288, 20, tokenizer_channels=(24, 48), global_pool="avg", prefix_tokens=0),
    shape(96, 16, 160, 4, 2, 640, 500),
    shape(160, 16, 384, 1, 6, 1536, 1000),
]


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
        packed = write_random_packed(model, seed=1, **shape)
        height, width = packed.architecture.image_size
        pixels = random_pictures(packed.architecture, 1, seed=1)[0]
        picture.write_bytes(f"P6 {width} {height} 255\n".encode() + pixels.tobytes())
        return packed.architecture, self._run(model, [picture] * 3) - self._run(model, [picture] * 2)


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
        fitted, held_out = ([counter.count(shape) for shape in shapes] for shapes in (FITTED, HELD_OUT))
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
