"""What a process costs that loads a packed model and names what is in a picture: memory and time to the first answer.

    python benchmarks/startup.py MODEL [PICTURE] [--runs 15] [--json]

Each run is a new process; the clock starts before it is started, and files are in the system's cache. Memory is the
largest resident set (VmHWM) less that of a process that imports NumPy and nothing else. Without PICTURE a JPEG of
smooth noise is made. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEAK = """
import json, time
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("VmHWM"))
peak = int(status["VmHWM"].split()[0]) * 1024 / 1e6
"""
BARE = "import numpy\n" + PEAK + "print(json.dumps({'peak_mb': peak}))"
PREDICT = (
    """
import sys, time
import gsb_vit
model = gsb_vit.load(sys.argv[1], threads=int(sys.argv[3]))
loaded = time.monotonic()
best = model.predict(sys.argv[2], top=1)[0]
done = time.monotonic()
"""
    + PEAK
    + """
print(json.dumps({"peak_mb": peak, "loaded": loaded, "done": done}))
"""
)


def once(code, *arguments):
    """Run code in a new process; return what it printed and when it was started."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout), start


def measure(model, picture, threads=1, runs=15):
    """Return medians over ``runs`` processes; MB are 10⁶ bytes."""
    bare = statistics.median(once(BARE)[0]["peak_mb"] for _ in range(3))
    rows = [once(PREDICT, model, picture, threads) for _ in range(runs)]
    peak = statistics.median(row["peak_mb"] for row, _ in rows)
    return {
        "threads": threads,
        "bare_mb": bare,
        "peak_mb": peak,
        "above_bare_mb": peak - bare,
        "load_s": statistics.median(row["loaded"] - start for row, start in rows),
        "first_prediction_s": statistics.median(row["done"] - start for row, start in rows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("picture", nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = options.picture
        if picture is None:
            from PIL import Image

            from gsb_vit.data.synthetic import smooth_pictures

            picture = Path(folder) / "picture.jpg"
            Image.fromarray(smooth_pictures(1, (500, 667))[0]).save(picture)
        found = measure(str(Path(options.model).resolve()), picture, options.threads, options.runs)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"memory: {found['peak_mb']:.1f} MB, {found['above_bare_mb']:.1f} MB above Python with NumPy")
    print(f"from the start of the process to the loaded model {found['load_s']:.3f} s,")
    print(f"to the first prediction {found['first_prediction_s']:.3f} s")


if __name__ == "__main__":
    main()
