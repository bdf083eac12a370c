"""What a model takes as one C file on a microcontroller: flash, RAM, stack, instructions; are its logits equal?

    python benchmarks/microcontroller.py [MODEL.safetensors ...] [--level -O3] [--json]

Exports each packed model, builds native/examples/cortex-m for a Cortex-M4F, a Cortex-M7 and a Cortex-M55, and runs it
in QEMU. There every instruction takes a nanosecond (-icount shift=0), so the board's timer counts them, to within 40.
Cycles of real processors are more. Without models, untrained ones are packed: one of width 128 at 16 pixels, and two
for photos of 32 pixels; that needs gsb-vit[train]. Needs arm-none-eabi-gcc with newlib, and qemu-system-arm.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.export.c_source import write_c
from gsb_vit.runtime.classifier import load

EXAMPLE = Path(__file__).resolve().parents[1] / "native" / "examples" / "cortex-m"
BOARDS = {  # QEMU's machine, nanoseconds a tick of its timer, the compiler's options
    "Cortex-M4F": ("mps2-an386", 40, ["-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard"]),
    "Cortex-M7": ("mps2-an500", 40, ["-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard"]),
    "Cortex-M55": ("mps3-an547", 31.25, ["-mcpu=cortex-m55", "-mfloat-abi=hard"]),
}
UNTRAINED = {
    "digits, 16 px": dict(img_size=16, patch_size=4, depth=2, num_classes=10),
    "photos, 32 px, patch 4": dict(img_size=32, patch_size=4, depth=4, num_classes=20),
    "photos, 32 px, patch 8": dict(img_size=32, patch_size=8, depth=4, num_classes=20),
}
PICTURE = (120, 160)  # of a small camera; height, width


def pack_untrained(path: Path, num_classes: int, **shape) -> None:
    """Write an untrained model of width 128 with two heads, its scales set on smooth pictures."""
    import timm
    import torch

    import gsb_vit.models  # noqa: F401 - registers the architectures
    from gsb_vit.data.preprocess import Preprocessing
    from gsb_vit.export.pack import export_model
    from gsb_vit.models.binarize import initialize_scales
    from gsb_vit.models.pixel_inputs import normalize

    torch.manual_seed(0)
    name = "gsb_vit_tiny_patch16_224"
    model = timm.create_model(name, embed_dim=128, num_heads=2, num_classes=num_classes, **shape).eval()
    preprocessing = Preprocessing(size=(shape["img_size"],) * 2)
    initialize_scales(model, normalize(smooth_pictures(8, preprocessing.size), preprocessing))
    names = [f"class {number}" for number in range(num_classes)]
    export_model(model, path, class_names=names, preprocessing=preprocessing)


def measure(model: Path, folder: Path, level: str) -> list[dict]:
    """Return a row for each board."""
    made = write_c(model, folder)
    classifier = load(model, threads=1)
    (picture,) = smooth_pictures(1, PICTURE)
    write_picture(picture, folder)
    expected = classifier.logits(classifier.prepare(picture)[None])[0].view("u4").tolist()
    rows = []
    for board in BOARDS:
        counts = count(folder, board, level)
        rows.append(
            {
                "board": board,
                "constants": made.flash_bytes,
                "code": counts["code"],
                "run_bytes": made.run_bytes,
                "resize_bytes": made.resize_bytes,
                "stack": counts["stack"],
                "prepare_instructions": counts["prepared"],
                "instructions": counts["classified"],
                "equal": counts["logits"] == expected and counts["is_exact"],
            }
        )
    return rows


def write_picture(picture: NDArray[np.uint8], folder: Path) -> None:
    """Write the header that the example program classifies."""
    height, width = picture.shape[:2]
    pixels = ",".join(map(str, picture.reshape(-1)))
    (folder / "pictures.h").write_text(
        f"enum {{ PICTURE_COUNT = 1, PICTURE_HEIGHT = {height}, PICTURE_WIDTH = {width} }};\n"
        f"static const uint8_t pictures[1][{picture.size}] = {{{{{pixels}}}}};\n"
    )


def count(folder: Path, board: str, level: str) -> dict:
    """Build and run the C file of a folder on a board: instructions to prepare and to classify, code, stack, logits."""
    machine, tick, cpu = BOARDS[board]
    said, code = build_and_run(folder, machine, cpu, level)
    number = {name: int(value, 16) for name, value in re.findall(r"^(\w+) ([0-9a-f]{8})$", said, re.M)}
    return {
        "code": code,
        "stack": number["stack"],
        "prepared": round(number["prepared"] * tick),
        "classified": round(number["classified"] * tick),
        "logits": [int(word, 16) for word in re.findall(r"^logits((?: [0-9a-f]{8})+)$", said, re.M)[0].split()],
        "is_exact": "logits equal those of gsb-vit" in said,
    }


def build_and_run(folder: Path, machine: str, cpu: list[str], level: str) -> tuple[str, int]:
    """Return what the program prints, and the bytes of the engine's code."""
    flags = ["-std=c99", level, "-ffp-contract=off", "-ffunction-sections", f"-I{folder}", *cpu]
    objects = []
    for source in (folder / "model.c", EXAMPLE / "main.c", EXAMPLE / "startup.c"):
        objects.append(str(folder / f"{source.stem}.o"))
        command = ["arm-none-eabi-gcc", *flags, '-DPICTURES="pictures.h"', "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    sections = subprocess.run(
        ["arm-none-eabi-size", "-A", objects[0]], check=True, capture_output=True, text=True
    ).stdout
    code = sum(int(size) for size in re.findall(r"^\.text\S*\s+(\d+)", sections, re.M))
    program = str(folder / "model.elf")
    libraries = [
        "-nostartfiles",
        "-specs=nano.specs",
        "-specs=nosys.specs",
        "-Wl,--gc-sections",
        "-T",
        str(EXAMPLE / "device.ld"),
    ]
    subprocess.run(["arm-none-eabi-gcc", *cpu, *libraries, *objects, "-lm", "-o", program], check=True)
    emulator = ["qemu-system-arm", "-M", machine, "-icount", "shift=0", "-display", "none", "-monitor", "none"]
    to_here = [
        "-serial",
        "none",
        "-chardev",
        "stdio,id=here",
        "-semihosting-config",
        "enable=on,target=native,chardev=here",
    ]
    command = [*emulator, *to_here, "-kernel", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout, code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--level", default="-O3", help="of optimization; write it as --level=-Os")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        models = {str(path): path for path in options.models}
        if not models:
            for number, (name, shape) in enumerate(UNTRAINED.items()):
                models[name] = Path(folder) / f"{number}.safetensors"
                pack_untrained(models[name], **shape)
        for name, path in models.items():
            rows += [{"model": name, **row} for row in measure(path, Path(folder), options.level)]
    if options.json:
        print(json.dumps(rows))
        return
    print("| model | processor | flash: constants + code | RAM: classify / resize / stack ", end="")
    print("| resize 160 × 120 | classify |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['board']} | {row['constants'] / 1e3:.1f} + {row['code'] / 1e3:.1f} kB "
            f"| {row['run_bytes'] / 1e3:.1f} / {row['resize_bytes'] / 1e3:.1f} / {row['stack'] / 1e3:.1f} kB "
            f"| {row['prepare_instructions'] / 1e6:.2f} M "
            f"| {row['instructions'] / 1e6:.1f} M{'' if row['equal'] else ', logits DIFFER'} |"
        )
    print("logits equal in every row" if all(row["equal"] for row in rows) else "logits DIFFER")


if __name__ == "__main__":
    main()
