"""Instructions that a model's C file takes on an Xtensa core with the instructions of an ESP32-S3, counted under QEMU.

    python benchmarks/xtensa_instructions.py MODEL.safetensors ... [--json]

Distributions have a compiler for the older LX106 alone, which knows neither floats nor division: it calls functions for
them. Here these functions are the processor's own instructions (benchmarks/xtensa), run on QEMU's core de233_fpu. Those
and what the compiler's library does for floats are counted apart. An ESP32-S3 has one instruction for each, so that the
call stands for it; only a division of floats takes more. What moves their arguments stays in the count, and a loop is
not one of the LX7's, so that the number is on the high side.

Needs xtensa-lx106-elf-gcc with picolibc, and qemu-system-xtensa with plugins.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.export.c_source import write_c
from gsb_vit.runtime.classifier import load

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "benchmarks" / "xtensa"
BOARD_H = ROOT / "native" / "examples" / "cortex-m"
TOOLS = ("xtensa-lx106-elf-gcc", "xtensa-lx106-elf-nm", "xtensa-lx106-elf-size", "qemu-system-xtensa", "cc")
LIBRARIES = Path("/usr/lib/xtensa-lx106-elf/lib")  # Debian's picolibc
MORE = {"__divsf3": 20, "__muldi3": 4}  # instructions of an LX7 beyond the one that the call stands for


def lacks() -> list[str]:
    """Return what is needed and not there."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return missing if LIBRARIES.is_dir() else [*missing, "picolibc for the LX106"]


def count(folder: Path) -> dict:
    """Build and run the C file of a folder, which has a pictures.h: instructions, calls, code, logits."""
    code = build(folder)
    functions = functions_of(folder)
    (folder / "functions").write_text("".join(f"{begin:x} {end:x}\n" for begin, end in functions.values()))
    plugin = folder / "count_functions.so"
    if not plugin.exists():
        run("cc", "-shared", "-fPIC", "-O2", SOURCES / "count_functions.c", "-o", plugin)
    machine = ["-M", "sim", "-cpu", "de233_fpu", "-m", "128M", "-nographic", "-monitor", "none", "-serial", "none"]
    counting = ["-semihosting", "-plugin", f"{plugin},functions={folder / 'functions'}"]
    done = run("qemu-system-xtensa", *machine, *counting, "-kernel", folder / "model.elf")
    before, after = (
        [[int(one) for one in part.split(":")] for part in line.split()]
        for line in re.findall("^counted (.*)$", done.stderr, re.M)
    )
    others = after[0][0] - before[0][0]
    calls = {
        name: new[1] - old[1]
        for name, old, new in zip(functions, before[1:], after[1:], strict=True)
        if new[1] > old[1] and name != "ticks"
    }
    return {
        "code": code,
        "classified": others + sum(MORE.get(name, 0) * number for name, number in calls.items()),
        "calls": calls,
        "in_functions": sum(new[0] - old[0] for old, new in zip(before[1:], after[1:], strict=True)),
        "logits": [int(word, 16) for word in re.findall(r"^logits((?: [0-9a-f]{8})+)$", done.stdout, re.M)[0].split()],
        "is_exact": "logits equal those of gsb-vit" in done.stdout,
    }


def build(folder: Path) -> int:
    """Make model.elf; return the bytes of the engine's code."""
    flags = ["-std=c99", "-O3", "-ffp-contract=off", "-ffunction-sections", "-mtext-section-literals"]
    objects = []
    for source in (folder / "model.c", SOURCES / "main.c", SOURCES / "startup.c"):
        objects.append(folder / f"xtensa-{source.stem}.o")
        run("xtensa-lx106-elf-gcc", *flags, f"-I{folder}", f"-I{BOARD_H}", "-c", source, "-o", objects[-1])
    link = ["-nostdlib", "-T", SOURCES / "device.ld", "-Wl,--gc-sections", "-Wl,--no-warn-rwx-segments"]
    libraries = [f"-L{LIBRARIES}", "-lm", "-lc", "-lgcc"]
    run("xtensa-lx106-elf-gcc", *link, *objects, *libraries, "-o", folder / "model.elf")
    sections = run("xtensa-lx106-elf-size", "-A", objects[0]).stdout
    return sum(int(size) for size in re.findall(r"^\.text\S*\s+(\d+)", sections, re.M))


def functions_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return begin and end of ``ticks`` and of all that the compiler calls for floats, divisions and long products."""
    lines = [line.split() for line in run("xtensa-lx106-elf-nm", "-n", folder / "model.elf").stdout.splitlines()]
    starts = [(int(line[0], 16), line[2]) for line in lines if len(line) == 3 and line[1] in "tT"]
    ends = {name: (begin, starts[index + 1][0]) for index, (begin, name) in enumerate(starts[:-1])}
    called = sorted(name for name in ends if name.startswith("__") and not name.startswith("__mem"))
    return {name: ends[name] for name in ("ticks", *called)}


def run(*command) -> subprocess.CompletedProcess:
    """Run a command, which has to succeed."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(parts)}\n{done.stdout}{done.stderr}")
    return done


def measure(model: Path, folder: Path) -> dict:
    """Return what is counted of a model for a smooth picture of its size, and whether its logits are equal."""
    from microcontroller import write_picture

    write_c(model, folder)
    classifier = load(model, threads=1)
    (picture,) = smooth_pictures(1, classifier.architecture.image_size)
    write_picture(picture, folder)
    expected = classifier.logits(picture[None])[0].view(np.uint32).tolist()
    counts = count(folder)
    return {**counts, "equal": counts["is_exact"] and counts.pop("logits") == expected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"model": str(path), **measure(path, Path(folder))} for path in options.models]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        calls = ", ".join(f"{number:,} {name}" for name, number in row["calls"].items())
        print(f"{row['model']}: {row['classified']:,} instructions, logits {'equal' if row['equal'] else 'DIFFER'}")
        print(f"  {row['in_functions']:,} more in functions that are not counted: {calls}")


if __name__ == "__main__":
    main()
