"""The inside of a worker process: one engine, its pictures, its clock, and a pipe to answer questions on."""

import itertools
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gsb_vit.errors import InputError

WARM_UP_CALLS = 3


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in 10⁶ bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count the parent's memory too: it keeps the maximum across fork and exec.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def batches(pictures: Any, size: int) -> list[Any]:
    """Cut pictures (n, H, W, 3) into batches of ``size``; the last one is filled up with the first pictures again."""
    numbers = range(-(-len(pictures) // size) * size)
    indices = [number % len(pictures) for number in numbers]
    return [pictures[indices[start : start + size]] for start in range(0, len(indices), size)]


class _Session:
    """The worker's side: an engine, its pictures and its clock."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, job["cores"])  # before any library is imported: its threads inherit it
        import numpy as np

        from .engines import load

        self.bare_mb = peak_memory_mb()
        self.batch: int = job["batch"]
        self.pictures = np.load(job["pictures"])
        self.forward, self.precision = load(job["engine"], job["precision"], job["path"], job["threads"], self.batch)
        self.turns = itertools.cycle(batches(self.pictures, self.batch))
        for _ in range(WARM_UP_CALLS):
            self.forward(next(self.turns))
        _refuse_stray_threads(job["cores"])
        self.left_off = time.perf_counter(), time.process_time()

    def run(self, seconds: float) -> dict[str, Any]:
        clock = time.perf_counter
        idle = {
            "idle_s": clock() - self.left_off[0],
            "idle_cpu_s": time.process_time() - self.left_off[1],
        }
        self.forward(next(self.turns))  # brings caches and clock speed back after the others' turns; not timed
        times: list[float] = []
        end = clock() + seconds
        while not times or clock() < end:
            pixels = next(self.turns)
            start = clock()
            self.forward(pixels)
            times.append(1000 * (clock() - start))
        self.left_off = clock(), time.process_time()
        return {"ms": times, **idle}

    def write_logits(self, path: str) -> None:
        import numpy as np

        count = len(self.pictures)
        parts = [np.array(self.forward(one)) for one in batches(self.pictures, self.batch)]
        np.save(path, np.concatenate(parts)[:count])


def _refuse_stray_threads(cores: list[int]) -> None:
    """A library may pin its threads as it likes; then the engines would not run on the same cores."""
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        return
    for task in tasks.iterdir():
        with suppress(ProcessLookupError):  # the thread has just ended
            allowed = os.sched_getaffinity(int(task.name))
            if not allowed <= set(cores):
                raise InputError(f"a thread runs on cores {sorted(allowed)}, outside {cores}")


def _work(questions: IO[str], answers: IO[str]) -> None:
    """Answer the parent's questions: first a job, then runs, logits and the peak of memory."""

    def answer(values: Mapping[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        session = _Session(json.loads(questions.readline()))
    except (InputError, ImportError, OSError, RuntimeError) as error:
        answer({"error": " ".join(str(error).split())})
        return
    answer({"precision": session.precision, "bare_mb": session.bare_mb})
    for line in questions:
        question = json.loads(line)
        if "run" in question:
            answer(session.run(question["run"]))
        elif "logits" in question:
            session.write_logits(question["logits"])
            answer({})
        else:
            answer({"peak_mb": peak_memory_mb()})


if __name__ == "__main__":
    # Libraries may print: what they write to the standard output goes to the error output, not between the answers.
    with os.fdopen(os.dup(1), "w") as own_output:
        os.dup2(2, 1)
        _work(sys.stdin, own_output)
