"""Small files that ask for much: what each asked for, what it costs now, and the answer.

    python benchmarks/bombs.py [--json] [--only NAME]

Each bomb is made in a temporary folder and given to a new process that loads it, with one thread, or reads it. Memory
is the largest resident set (VmHWM) less what the process had before. Seconds are of the attempt alone, measured once.
"Asks for" is what the file declares: of a packed model what the refusal says, of a trained one its float32 weights and
the N² indices of each block, of a picture three bytes a pixel; of headers of 20 MB what they took without a limit.
Linux only.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HELPERS = Path(__file__).parents[1] / "tests" / "helpers"
sys.path.insert(0, str(HELPERS))

from picture_files import png, tiff, webp_bomb  # noqa: E402
from random_packed import TINY, write_random_packed  # noqa: E402

ATTEMPTS = {
    "picture": "from gsb_vit.data.pictures import open_picture as attempt",
    "native": "import gsb_vit._native\nfrom gsb_vit.runtime.classifier import load\n"
    "attempt = lambda path: load(path, threads=1)",
    "reference": "from gsb_vit.runtime.classifier import load\nattempt = lambda path: load(path, engine='reference')",
    "trained": "from gsb_vit.models.trained import load_model as attempt",
    "recipe": "from gsb_vit.train.recipe_io import load_recipe as attempt",
    "fashion-mnist": "from gsb_vit.data.datasets import read_fashion_mnist\nfrom pathlib import Path\n"
    "attempt = lambda path: read_fashion_mnist(Path(path).parent)",
}
PROBE = """
import json, sys, time
{attempt}
def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return 1024 * int(line.split()[1])
before, start = status("VmRSS:"), time.monotonic()
try:
    attempt(sys.argv[1])
    answer = "read"
except ValueError as error:
    answer = str(error)
seconds = time.monotonic() - start
print(json.dumps({{"peak_mb": max(status("VmHWM:") - before, 0) / 1e6, "seconds": seconds, "answer": answer}}))
"""
MANY_TOKENS = dict(TINY, image_size=256, patch_size=1, embed_dim=1, num_heads=1, mlp_hidden=1, num_classes=2)
SIDE = 8000  # 64 megapixels, the most that are read


def header_of(text):
    """A container that is nothing but its header."""
    return len(text).to_bytes(8, "little") + text


def trained(**arguments):
    """A trained model file without weights whose metadata asks for a network of these arguments."""
    info = {
        "architecture": "gsb_vit_small_patch16_224", "model_args": arguments, "class_names": ["a", "b"],
        "quantization": {}, "stage": "stage2", "provenance": {},
        "preprocessing": {"size": [224, 224], "resize": "squash", "crop_ratio": 1.0, "interpolation": "bicubic",
                          "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    return header_of(json.dumps({"__metadata__": {"gsb_vit": json.dumps(info)}}).encode())


def jpeg(side):
    """A grey JPEG of side × side pixels."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "JPEG")
    return buffer.getvalue()


def packed(path, **changes):
    """A packed model of many tokens."""
    write_random_packed(path, seed=1, **{**MANY_TOKENS, "prefix_tokens": 1, "attention_bias": "none", **changes})


# name: (who reads it, what it asks for, the file's name, its bytes or what writes it)
BOMBS = {
    "65,537 tokens": ("native", "2.7 GB", "a.safetensors", packed),
    "65,537 tokens, NumPy": ("reference", "185 GB", "a.safetensors", packed),
    "15 + 15 groups": (
        "native", "2.9 GB", "a.safetensors",
        lambda path: packed(path, attention_thresholds=[i / 16 for i in range(1, 16)],
                            value_thresholds=[i / 16 for i in range(1, 16)]),
    ),
    "header of 20 MB": ("native", "1.7 GB", "a.safetensors", lambda path: path.write_bytes(
        header_of(b'{"a":[' + b"0," * 10_000_000 + b"0]}"))),
    "header of 20 MB, NumPy": ("reference", "1.7 GB", "a.safetensors", lambda path: path.write_bytes(
        header_of(b'{"a":[' + b"0," * 10_000_000 + b"0]}"))),
    "header of 8 MB": ("native", "4 million numbers", "a.safetensors", lambda path: path.write_bytes(
        header_of(b'{"a":[' + b"0," * 4_190_000 + b"0]}"))),
    "header of 8 MB, NumPy": ("reference", "4 million numbers", "a.safetensors", lambda path: path.write_bytes(
        header_of(b'{"a":[' + b"0," * 4_190_000 + b"0]}"))),
    "file of 1 TB, sparse": ("native", "1 TB", "a.safetensors", lambda path: os.truncate(touched(path), 10**12)),
    "trained, width 16384, depth 256": ("trained", "3 TB", "a.safetensors", lambda path: path.write_bytes(
        trained(embed_dim=16384, depth=256, num_heads=1))),
    "trained, 8192² pixels, patches of 1": ("trained", "36 PB", "a.safetensors", lambda path: path.write_bytes(
        trained(img_size=8192, patch_size=1))),
    "trained, 6 GB without weights": ("trained", "6 GB", "a.safetensors", lambda path: path.write_bytes(
        trained(embed_dim=4096, depth=8, num_heads=64))),
    "WebP canvas": ("picture", "0.81 GB", "a.webp", lambda path: path.write_bytes(webp_bomb())),
    "16-bit PNG": ("picture", "0.43 GB", "a.png", lambda path: path.write_bytes(
        png(12000, 12000, 16, 0, bytes(12000 * 24001)))),
    "PNG of 1 bit a pixel": ("picture", "11 GB", "a.png", lambda path: path.write_bytes(png(60000, 60000, 1, 0, b""))),
    "TIFF, tiles of 40,000²": ("picture", "4.8 GB", "a.tif", lambda path: path.write_bytes(
        tiff(8, b"", 4, extra=[(322, 4, 1, 40000), (323, 4, 1, 40000)]))),
    "PPM that says 99,999²": ("picture", "30 GB", "a.ppm", lambda path: path.write_bytes(b"P5\n99999 99999\n255\n")),
    "64 megapixels, 16-bit PNG": ("picture", "0.19 GB", "a.png", lambda path: path.write_bytes(
        png(SIDE, SIDE, 16, 0, bytes(SIDE * (2 * SIDE + 1))))),
    "64 megapixels, JPEG": ("picture", "0.19 GB", "a.jpg", lambda path: path.write_bytes(jpeg(SIDE))),
    "recipe of 100 MB": ("recipe", "0.1 GB", "a.toml", lambda path: path.write_bytes(b"#" * 100_000_000)),
    "recipe, 100,000 brackets": ("recipe", "a deep stack", "a.toml", lambda path: path.write_bytes(
        b"x = " + b"[" * 100_000)),
    "idx.gz of 4 GB": ("fashion-mnist", "4 GB", "train-images-idx3-ubyte.gz", lambda path: path.write_bytes(
        zeros_gzipped(struct.pack(">4i", 0x803, 2_000_000, 40, 50), 4))),
}  # fmt: skip


def touched(path):
    """Make an empty file and return its path."""
    path.touch()
    return path


def zeros_gzipped(start, gigabytes):
    """A gzip file of ``start`` and gigabytes of zeros."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(start)
        for _ in range(gigabytes * 100):
            file.write(bytes(10_000_000))
    return buffer.getvalue()


def measure(name):
    """Make a bomb and return its row."""
    reader, asked, file, make = BOMBS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file
        make(path)
        command = [sys.executable, "-c", PROBE.format(attempt=ATTEMPTS[reader]), str(path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        row = {"bomb": name, "reader": reader, "file_bytes": path.stat().st_size, "asked": asked}
        with contextlib.suppress(IndexError, ValueError):
            found = json.loads(done.stdout.splitlines()[-1])
            return {**row, **found, "answer": found["answer"].replace(f"{folder}/", "")}
        return {**row, "peak_mb": None, "seconds": None, "answer": f"failed: {done.stderr.strip()[-200:]}"}


def size(count):
    """Bytes for people."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} B"


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", action="append", metavar="NAME")
    arguments = parser.parse_args()
    rows = [measure(name) for name in arguments.only or BOMBS]
    if arguments.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    print("| bomb | read by | file | asks for | peak memory | seconds | answer |\n|---|---|---|---|---|---|---|")
    for row in rows:
        cost = ("—", "—") if row["peak_mb"] is None else (f"{row['peak_mb']:.0f} MB", f"{row['seconds']:.2f}")
        cells = (row["bomb"], row["reader"], size(row["file_bytes"]), row["asked"], *cost, row["answer"][:110])
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
