"""How far gsb-vit-classify's JPEG decoder is from Pillow's: the largest difference of a pixel and of a logit.

    python benchmarks/jpeg.py PHOTOS [MODEL] [--count 200] [--json]

PHOTOS is a folder of JPEG files, of which so many are drawn by a fixed seed. MODEL is a packed model; without one a
random model of 64 pixels is taken. The decoder is compiled as a shared library and called from here. Needs
a C compiler.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from c_decoders import Decoders
from random_packed import write_random_packed

import gsb_vit
from gsb_vit.data.pictures import open_picture

MODEL = dict(image_size=64, patch_size=8, embed_dim=192, depth=6, num_heads=3, mlp_hidden=768, num_classes=102)


def compare(photos, model):
    """Return the number of photos, how many have equal pixels and logits, and the largest differences."""
    row = {"photos": len(photos), "equal_pixels": 0, "equal_logits": 0, "largest_pixel": 0, "largest_logit": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        decoders = Decoders(folder, "-O2")
        for photo in photos:
            data = photo.read_bytes()
            pixels, orientation = decoders.decode(data)
            if orientation != 1:
                raise SystemExit(f"{photo}: is turned; this script compares pixels as they are stored")
            pixels = pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
            expected = np.asarray(open_picture(data))
            off = int(np.abs(pixels.astype(int) - expected).max())
            logits = model.logits(np.stack([model.prepare(pixels), model.prepare(expected)]))
            row["equal_pixels"] += off == 0
            row["equal_logits"] += np.array_equal(*logits)
            row["largest_pixel"] = max(row["largest_pixel"], off)
            row["largest_logit"] = max(row["largest_logit"], float(np.abs(logits[0] - logits[1]).max()))
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    random.Random(0).shuffle(photos)
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or Path(folder) / "model.safetensors"
        if options.model is None:
            write_random_packed(path, seed=1, **MODEL)
        row = compare(photos[: options.count], gsb_vit.load(path, threads=1))
    if options.json:
        print(json.dumps(row))
    else:
        print("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
