"""What resizing a picture costs in C++, as a ratio to Pillow's time in the same run.

    python benchmarks/resize.py [--rounds 15] [--filter bicubic] [--json]

Pillow and every backend of this machine take turns; each round begins with the next. Both get decoded pixels in memory:
Pillow an image of its own, the extension an array. A figure is the median of the rounds' ratios: Pillow's time over the
backend's in the same round. One thread. Pictures of noise: content does not change the work.
"""

import argparse
import json
import statistics
import time

import numpy as np
from PIL import Image

from gsb_vit import _native

SIZES = [(375, 500), (480, 640), (1080, 1920), (3024, 4032)]  # height, width
TO = [224, 64]
TURN = 0.02  # seconds


def per_call(call):
    """Seconds a call takes, of as many calls as fill a turn; the first is not timed."""
    call()
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < TURN or calls == 0:
        call()
        calls += 1
    return elapsed / calls


def measure(height, width, side, name, rounds):
    """Return Pillow's median milliseconds and each backend's ratio: above 1 it is faster than Pillow."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image, filter_ = Image.fromarray(pixels), Image.Resampling[name.upper()]
    box = (0.0, 0.0, float(width), float(height))
    calls = {"pillow": lambda: image.resize((side, side), filter_, box=box)}
    for backend in _native.backends():
        calls[backend] = lambda backend=backend: _native.resize(pixels, (side, side), name, box, backend)
    names, times = list(calls), {one: [] for one in calls}
    for number in range(rounds):
        first = number % len(names)
        for one in [*names[first:], *names[:first]]:
            times[one].append(per_call(calls[one]))
    ratios = {
        one: statistics.median(p / own for p, own in zip(times["pillow"], times[one], strict=True)) for one in names[1:]
    }
    return {"from": f"{width} x {height}", "to": side, "pillow_ms": 1e3 * statistics.median(times["pillow"]), **ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--filter", choices=("bilinear", "bicubic", "box", "lanczos"), default="bicubic")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(*size, side, options.filter, options.rounds) for size in SIZES for side in TO]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    backends = _native.backends()
    print(f"| from | to | Pillow ms | {' | '.join(backends)} |\n|{'---|' * (3 + len(backends))}")
    for row in rows:
        ratios = " | ".join(f"{row[backend]:.1f}" for backend in backends)
        print(f"| {row['from']} | {row['to']} | {row['pillow_ms']:.2f} | {ratios} |")


if __name__ == "__main__":
    main()
