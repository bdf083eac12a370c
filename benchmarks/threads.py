"""Two threads beside one: throughput, latency, processor time when idle, and with a neighbour that takes a core.

    python benchmarks/threads.py MODEL [--seconds 3] [--json]

Every row is a process of its own that is held to its cores. The neighbour is a process that does nothing but count,
held to the last core, of the same priority. Medians of all calls; ``p90`` is the latency that one call in ten exceeds;
the busiest thread's share of the processor time is 1 on one thread and 1/2 on two that share the work. Linux only.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import numpy as np


def run(model, threads, batch, cores, seconds, answers):
    """Call the engine for so long, then rest, a second at most; send times and the processor time of the rest."""
    os.sched_setaffinity(0, cores)
    import gsb_vit
    from gsb_vit.data.synthetic import smooth_pictures

    classifier = gsb_vit.load(model, threads=threads)
    pictures = smooth_pictures(batch, classifier.architecture.image_size)
    for _ in range(3):
        classifier.logits(pictures)
    times, end, began = [], time.perf_counter() + seconds, thread_times()
    while time.perf_counter() < end:
        start = time.perf_counter()
        classifier.logits(pictures)
        times.append(1000 * (time.perf_counter() - start))
    used = [now - began.get(thread, 0) for thread, now in thread_times().items()]
    before = time.process_time()
    time.sleep(min(1, seconds))
    answers.put((times, max(used) / sum(used), time.process_time() - before))


def thread_times():
    """Return the nanoseconds that each thread of this process ran so far."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}


def count(core):
    os.sched_setaffinity(0, {core})
    while True:
        pass


def measure(model, threads, batch, cores, seconds, neighbour=None):
    """Return a row; ``neighbour`` is the core that another process keeps busy meanwhile."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    other = None
    if neighbour is not None:
        other = context.Process(target=count, args=(neighbour,), daemon=True)
        other.start()
    worker = context.Process(target=run, args=(model, threads, batch, cores, seconds, answers))
    worker.start()
    times, busiest, idle = answers.get(timeout=1800 + 2 * seconds)
    worker.join()
    if other is not None:
        other.kill()
    median = statistics.median(times)
    return {
        "threads": threads,
        "batch": batch,
        "cores": len(cores),
        "neighbour": neighbour is not None,
        "median_ms": median,
        "p90_ms": float(np.quantile(times, 0.9)),
        "images_per_s": 1000 * batch * len(times) / sum(times),
        "busiest_thread": busiest,
        "idle_cpu": idle,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[-2:]
    if len(cores) < 2:
        parser.error("this takes two cores")
    last, both = {cores[-1]}, set(cores)
    settings = [
        (1, 1, last, None), (2, 1, both, None), (1, 8, last, None), (2, 8, both, None),
        (1, 1, both, cores[-1]), (2, 1, both, cores[-1]), (2, 8, both, cores[-1]),
    ]  # fmt: skip
    rows = [
        measure(options.model, threads, batch, on, options.seconds, other) for threads, batch, on, other in settings
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| threads | batch | a neighbour on one core | median ms | p90 ms | pictures/s | idle processor time |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['threads']} | {row['batch']} | {'yes' if row['neighbour'] else 'no'} | {row['median_ms']:.2f} | "
            f"{row['p90_ms']:.2f} | {row['images_per_s']:.0f} | {row['idle_cpu']:.2%} |"
        )
    one, two, one8, two8, one_beside, two_beside, _ = rows
    busiest = max(two["busiest_thread"], two8["busiest_thread"])
    print()
    print(f"Of the time of two threads the busier one took {busiest:.0%}.")
    print(f"Throughput of two threads: {two8['images_per_s'] / one8['images_per_s']:.2f} times one's.")
    print(f"Latency of one picture on two threads: {two['median_ms'] / one['median_ms']:.2f} of one thread's;")
    print(f"beside a neighbour {two_beside['median_ms'] / one_beside['median_ms']:.2f} (mean: "
          f"{one_beside['images_per_s'] / two_beside['images_per_s']:.2f}).")  # fmt: skip


if __name__ == "__main__":
    main()
