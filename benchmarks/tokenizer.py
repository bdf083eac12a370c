"""What the convolutional tokenizer costs: patches, convolutions in eight bits and in one, timed in turns.

    python benchmarks/tokenizer.py [--size 64] [--backend avx512] [--json]

Random packed models of the shape of recipes/flowers20_64_lite0.toml, which differ in the tokenizer alone; 1 % of their
numbers are in upper groups. One thread, held to the last core. Needs gsb-vit[bench].
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(ROOT / "benchmarks")]

from cost import PICTURES, Point, set_densities, time_in_turn  # noqa: E402
from random_packed import write_random_packed  # noqa: E402

import gsb_vit  # noqa: E402
from gsb_vit.data.synthetic import smooth_pictures  # noqa: E402

SHAPE = dict(patch_size=8, embed_dim=128, depth=4, num_heads=2, mlp_hidden=512, num_classes=102, prefix_tokens=0)
CONVOLUTIONS = dict(tokenizer_channels=(32, 64))
TOKENIZERS = {
    "patches": {},
    "8-bit convolutions": dict(CONVOLUTIONS, level_bits=(8, 8)),
    "one-bit convolutions": dict(CONVOLUTIONS, level_bits=(1, 1)),
}


def measure(size: int, backend: str | None):
    """Return a row a tokenizer: its name, bytes of the file, milliseconds of a picture, and their ratio to patches."""
    pictures = smooth_pictures(PICTURES, (size, size))
    models, sizes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in TOKENIZERS.items():
            path = Path(folder) / "model.safetensors"
            write_random_packed(path, seed=0, image_size=size, global_pool="avg", **SHAPE, **options)
            for _ in range(2):  # what the groups hold moves the later blocks' numbers
                set_densities(Point(name, size), path, pictures)
            sizes.append(path.stat().st_size)
            models.append(gsb_vit.load(path, threads=1, backend=backend))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    times = time_in_turn(models, [pictures] * len(models))
    return [
        {"tokenizer": name, "backend": models[0].backend, "bytes": bytes_, "ms": ms, "ratio": ms / times[0]}
        for name, bytes_, ms in zip(TOKENIZERS, sizes, times, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--backend", help="of the native engine (default: the fastest)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.size, options.backend)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"| tokenizer, {options.size} px, {rows[0]['backend']} | bytes | ms | patches = 1 |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['tokenizer']} | {row['bytes']:,} | {row['ms']:.4f} | {row['ratio']:.2f} |")


if __name__ == "__main__":
    main()
