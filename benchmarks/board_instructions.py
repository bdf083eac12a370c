"""Instructions of the engine on other processors, counted under QEMU and fitted: figures of `gsb-vit bench --board`.

    python benchmarks/board_instructions.py --write src/gsb_vit/bench/counted.json [--only aarch64] [--json]

Needs build/classify-NAME/gsb-vit-classify for each processor (docs/devices.md tells how to build them; aarch64-dot runs
that of aarch64), qemu-user with plugins, a C compiler, and scipy. Random models of many shapes name three pictures, and
two; the difference is what one costs. 1 % of their numbers are in upper groups. What a unit of each kind of work costs
is fitted by least squares of relative errors, none below zero. Others are not fitted: they tell how far estimates are
off. One part of the models has one-bit convolutions.

c99-NAME are microcontrollers, for which gsb_vit's C file is counted as benchmarks/microcontroller.py does, on small
models that fit 512 kB of flash and 256 kB of RAM. That needs arm-none-eabi-gcc with newlib, and qemu-system-arm. The
ESP32-S3 is counted by benchmarks/xtensa_instructions.py, which says what that needs.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from gsb_vit.bench.instructions import work_of
from gsb_vit.export.c_source import write_c
from gsb_vit.runtime.packed_file import read, write
from gsb_vit.runtime.reference import ReferenceModel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]

import microcontroller  # noqa: E402
import xtensa_instructions  # noqa: E402
from cost import quantiles  # noqa: E402
from random_packed import random_pictures, write_random_packed  # noqa: E402

EMULATORS = {  # AArch64 without dot products, as on a Raspberry Pi 3 or 4, and with them, as on a Raspberry Pi 5
    "aarch64": ("qemu-aarch64", "-cpu", "cortex-a53"),
    "aarch64-dot": ("qemu-aarch64", "-cpu", "cortex-a76"),
    "armv7": ("qemu-arm",),
    "riscv64": ("qemu-riscv64",),
}
MICROS = {f"c99-{board.lower()}": board for board in (*microcontroller.BOARDS, "ESP32-S3")}
KERNELS = {
    "aarch64": "the NEON kernels",
    "aarch64-dot": "the NEON kernels with dot products",
    "armv7": "the portable kernels",
    "riscv64": "the portable kernels",
    **dict.fromkeys(MICROS, "the C file"),
    "c99-esp32-s3": "the C file, compiled for an LX106 and with one instruction for each function on floats",
}


def shapes(count, seed, one_bit=False):
    """Return the arguments of so many random models: heads of all widths, sizes, groups, patches and convolutions.

    ``one_bit``: all with a tokenizer whose levels are bits, or some of them.
    """
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        heads, depth = int(rng.integers(1, 7)), int(rng.integers(1, 5))
        width = heads * int(rng.choice([16, 24, 32, 48, 64, 64, 96]))
        patch = int(rng.choice([4, 8, 8, 16]))
        side = patch * int(rng.integers(3, 15))
        hidden, tokens = int(width * rng.choice([1, 2, 3, 4, 4])), (side // patch) ** 2
        if width > 384 or tokens * width * (4 * width + 2 * hidden + tokens) * depth > MOST_PRODUCTS:
            continue
        given = dict(image_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads)
        given.update(mlp_hidden=hidden, num_classes=int(rng.choice([10, 20, 100, 1000])))
        found.append(completed(rng, given, 0.4, [16, 24, 32, 48, 64], one_bit))
    return found


def small_shapes(count, seed, one_bit=False):
    """The same for microcontrollers: at most 24 kB of tokens, 300 kB of weights, 24 million instructions or so."""
    rng = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        heads, depth = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        width = heads * int(rng.choice([16, 24, 32, 32, 48, 64]))
        patch = int(rng.choice([4, 4, 8, 8, 16]))
        side = patch * int(rng.integers(2, 9))
        hidden, tokens = int(width * rng.choice([1, 2, 3, 4, 4])), (side // patch) ** 2
        weights = depth * width * (4 * width + 2 * hidden) // 8 + 4 * tokens * width + 3 * patch * patch * width
        work = tokens * depth * (width * (4 * width + 2 * hidden + 12 * tokens)) // 3 + 3 * side * side * width
        if 4 * tokens * width > 24_000 or weights > 300_000 or not 1_000_000 < work < 24_000_000:
            continue
        given = dict(image_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads)
        given.update(mlp_hidden=hidden, num_classes=int(rng.choice([5, 10, 20, 100])))
        found.append(completed(rng, given, 0.3, [8, 12, 16, 24] if not one_bit else [8, 16, 24, 32, 48, 64], one_bit))
    return found


def completed(rng, given, share, channels, one_bit):
    """A shape with what does not depend on its size; a ``share`` of them has a tokenizer of these channels."""
    if one_bit or rng.random() < share:
        drawn = rng.choice(channels, int(np.log2(given["patch_size"])) - 1)
        given["tokenizer_channels"] = tuple(sorted(int(one) for one in drawn))
    if one_bit:  # half of the models as `tokenizer_bits = 1` makes them, the others with bits in at least one place
        levels = [1] * len(drawn) if rng.random() < 0.5 else [int(bits) for bits in rng.choice([1, 8], len(drawn))]
        levels[int(rng.integers(len(levels)))] = 1
        given["level_bits"] = tuple(levels)
    if rng.random() < 0.5:
        given.update(global_pool="avg", prefix_tokens=0)
    thresholds = [(), (0.7, 0.9), (0.7, 0.9)][int(rng.integers(3))]
    given.update(attention_thresholds=thresholds, value_thresholds=thresholds)
    return {**given, "attention_bias": str(rng.choice(BIASES))}


BIASES = ("relative", "relative", "full", "none")
MOST_PRODUCTS = 6e8
FITTED, HELD_OUT = (60, 1), (20, 3)  # how many models, and their seed
FITTED_SMALL, HELD_OUT_SMALL = (40, 1), (12, 3)
FITTED_ONE_BIT, HELD_OUT_ONE_BIT = (20, 5), (10, 7)  # of which convolutions read bits, in addition to those above
DENSITY = 0.01  # of what may be in an upper group: numbers of the attention matrix and of the Value


def program_of(name):
    """Return the path of the program that runs on this processor."""
    return ROOT / "build" / f"classify-{name.removesuffix('-dot')}" / "gsb-vit-classify"


class Counter:
    """Counts the instructions of a picture, for one processor."""

    def __init__(self, name, folder):
        self.program = program_of(name)
        self._emulator, self._folder = EMULATORS[name], Path(folder)
        self._plugin = self._folder / "count.so"
        source = ROOT / "tests" / "helpers" / "count_instructions.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", source, "-o", self._plugin], check=True)

    def _run(self, model, pictures):
        command = [*self._emulator, "-plugin", self._plugin, self.program, "--threads", "1", model, *pictures]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        return int(re.search(r"(\d+) instructions", done.stderr)[1])

    def count(self, question):
        """Return the architecture and the instructions of one of its pictures; the question is what pack returned."""
        a, model, picture = question
        return a, self._run(model, [picture] * 3) - self._run(model, [picture] * 2)

    def size(self):
        """Return the program's bytes."""
        return self.program.stat().st_size


class MicroCounter:
    """The same for a microcontroller."""

    def __init__(self, name, folder):
        self._board, self._folder, self._largest = MICROS[name], Path(folder), 0

    def count(self, question):
        """Return the architecture and the instructions of one of its pictures."""
        a, model, picture = question
        write_c(model, self._folder)
        pixels = np.frombuffer(picture.read_bytes(), np.uint8)[-3 * a.image_size[0] * a.image_size[1] :]
        microcontroller.write_picture(pixels.reshape(*a.image_size, 3), self._folder)
        if self._board in microcontroller.BOARDS:
            counts = microcontroller.count(self._folder, self._board, "-O3")
        else:
            counts = xtensa_instructions.count(self._folder)
        if not counts["is_exact"]:
            raise SystemExit(f"{self._board}: other logits than gsb-vit for {a}")
        self._largest = max(self._largest, counts["code"])
        return a, counts["classified"]

    def size(self):
        """Return the most bytes that the code of a model took."""
        return self._largest


def pack(folder, shape):
    """Write a random model whose upper groups have the density above on a picture; return its shape and both files."""
    model, ppm = folder / "model.safetensors", folder / "picture.ppm"
    if ppm.exists():
        return read(model).architecture, model, ppm
    folder.mkdir(parents=True, exist_ok=True)
    packed = write_random_packed(model, seed=1, **shape)
    picture = random_pictures(packed.architecture, 1, seed=1)[0]
    for _ in range(2 if packed.architecture.attention_groups > 1 else 0):  # a group moves the later blocks' numbers
        trace = ReferenceModel(packed).trace(picture)
        ratios = {"attention": [], "value": []}
        for block in range(packed.architecture.depth):
            a, v = (trace[f"blocks.{block}.attn.{name}"] for name in ratios)
            ratios["attention"].append((a / a.max()).ravel())
            ratios["value"].append(np.maximum(v / v.max(), v / v.min()).ravel())
        limits = {f"{name}_thresholds": quantiles(np.concatenate(all_), DENSITY, 3) for name, all_ in ratios.items()}
        packed = replace(packed, architecture=replace(packed.architecture, **limits))
        write(model, packed)
    height, width = packed.architecture.image_size
    ppm.write_bytes(f"P6 {width} {height} 255\n".encode() + picture.tobytes())
    return packed.architecture, model, ppm


def pack_all(folder, make, numbers, one_bit):
    """Pack so many models and so many with one-bit levels, each in a folder of its own; what is there is kept."""
    drawn = [(*numbers, False), (*one_bit, True)]
    return [
        pack(folder / f"{make.__name__}-{seed}-{index}", shape)
        for count, seed, bits in drawn
        for index, shape in enumerate(make(count, seed, bits))
    ]


def fit(rows, build):
    """Return instructions a unit of each kind of work from (architecture, instructions)."""
    from scipy.optimize import nnls

    units = np.array([list(work_of(build, a).values()) for a, _ in rows], dtype=float)
    counts = np.array([count for _, count in rows], dtype=float)
    scale = np.maximum(units.max(axis=0), 1)
    costs, _ = nnls(units / scale / counts[:, None], np.ones(len(counts)), maxiter=10000)
    return {kind: float(f"{cost:.4g}") for kind, cost in zip(work_of(build, rows[0][0]), costs / scale, strict=True)}


def errors(rows, costs, build):
    """Return the relative error of each estimate."""
    return [sum(costs[k] * n for k, n in work_of(build, a).items()) / count - 1 for a, count in rows]


def measure(name, folder):
    """Return what counted.json holds of one processor, and all errors. The models are kept in the folder."""
    with tempfile.TemporaryDirectory() as temporary:
        if name in MICROS:
            counter, make, sets = MicroCounter(name, temporary), small_shapes, (FITTED_SMALL, HELD_OUT_SMALL)
        else:
            counter, make, sets = Counter(name, temporary), shapes, (FITTED, HELD_OUT)
        fitted, held_out = (
            [counter.count(one) for one in pack_all(folder, make, *those)]
            for those in zip(sets, (FITTED_ONE_BIT, HELD_OUT_ONE_BIT), strict=True)
        )
        costs = fit(fitted, name)
        off = errors(held_out, costs, name)
        worst = max(map(abs, off))
        row = {
            "how": f"instructions counted under QEMU of {KERNELS[name]}, fitted to {len(fitted)} models with "
            f"{100 * DENSITY:g} % in upper groups; {len(held_out)} others are off by at most {100 * worst:.0f} %",
            "per_unit": costs,
            "largest_error": round(worst, 4),
            "models": len(fitted),
            "program": counter.size(),
        }
        one_bit = HELD_OUT_ONE_BIT[0]
        return row, {
            "fitted": errors(fitted, costs, name),
            "held_out": off[:-one_bit],
            "held_out, one-bit convolutions": off[-one_bit:],
            "counts": [c for _, c in fitted + held_out],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=(*EMULATORS, *MICROS), action="append")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace these processors' rows of the file")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="where the models are kept for another run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.only or (*EMULATORS, *MICROS):
            rows[name], off = measure(name, options.models or Path(temporary))
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
