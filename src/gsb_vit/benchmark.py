"""``gsb-vit bench``: how fast a packed model runs, beside the same architecture in full precision.

Every engine lives in a process of its own (its threads, its memory), and the processes take turns: a few calls of
one, a few of the next, round after round. So a machine that slows down for a while slows every engine, and ``peak_mb``
is one engine's alone. Idle processes wait on a pipe and use no core.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.packed import Architecture, read

WARM_UP_CALLS = 3
ROUNDS = 15
ROUND_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """What a worker process is to run; ``model`` is the packed file."""

    engine: str
    model: str
    threads: int
    batch: int


@dataclass(frozen=True)
class Runner:
    """An engine made ready: ``call()`` predicts one batch."""

    precision: str
    file_mb: float
    call: Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One line of the table. ``median_ms`` is the time of one call on ``batch`` pictures, MB are 10⁶ bytes.

    ``file_mb`` is the size of the model's file (for a twin without a file, its parameters' bytes) and ``peak_mb`` the
    largest resident memory of the process that loaded and ran it, interpreter and libraries included.
    """

    engine: str
    precision: str
    threads: int
    batch: int
    median_ms: float
    images_per_s: float
    file_mb: float
    peak_mb: float

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)


def _packed_runner(job: Job) -> Runner:
    import gsb_vit

    classifier = gsb_vit.load(job.model, threads=job.threads)
    height, width = classifier.architecture.image_size
    pictures = np.random.default_rng(0).integers(0, 256, (job.batch, height, width, 3), dtype=np.uint8)
    return Runner("1-bit", Path(job.model).stat().st_size / 1e6, lambda: classifier.logits(pictures))


def _torch_runner(job: Job) -> Runner:
    import torch

    torch.set_num_threads(job.threads)
    twin = full_precision_twin(read(job.model).architecture).eval()
    height, width = read(job.model).architecture.image_size
    pictures = torch.randn(job.batch, 3, height, width, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def call() -> None:
        twin(pictures)

    size = sum(parameter.numel() * parameter.element_size() for parameter in twin.parameters())
    return Runner("fp32", size / 1e6, call)


# Engine name → what makes it ready, and the library it needs (None: nothing beyond the package itself).
ENGINES: Mapping[str, tuple[Callable[[Job], Runner], str | None]] = {
    "gsb-vit": (_packed_runner, None),
    "torch": (_torch_runner, "torch"),
}


def full_precision_twin(architecture: Architecture) -> Any:
    """Return timm's vision transformer of the same shape, with random weights (speed does not depend on them)."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    kind = VisionTransformerDistilled if architecture.prefix_tokens == 2 else VisionTransformer
    return kind(
        img_size=architecture.image_size,
        patch_size=architecture.patch_size,
        embed_dim=architecture.embed_dim,
        depth=architecture.depth,
        num_heads=architecture.num_heads,
        mlp_ratio=architecture.mlp_hidden / architecture.embed_dim,
        num_classes=architecture.num_classes,
    )


def installed_engines() -> list[str]:
    """Return the engines whose library is installed, the packed model's first."""
    from importlib.util import find_spec

    return [name for name, (_, library) in ENGINES.items() if library is None or find_spec(library)]


def benchmark(
    model: str | os.PathLike[str],
    *,
    engines: Sequence[str] | None = None,
    threads: int = 1,
    batch: int = 1,
    rounds: int = ROUNDS,
) -> list[Row]:
    """Time engines in turn on one packed model's architecture, and return a row for each.

    Args:
        engines: names out of ``ENGINES``; by default all that are installed.
        rounds: turns of each engine; the median is over all timed calls.

    Raises:
        InputError: a model that cannot be read, an unknown engine, or an engine that cannot run.
    """
    names = list(engines) if engines is not None else installed_engines()
    for name in names:
        if name not in ENGINES:
            raise InputError(f"engine {name!r} is unknown: use {', '.join(ENGINES)}")
    if threads < 1 or batch < 1 or rounds < 1:
        raise InputError(f"threads {threads}, batch {batch} and rounds {rounds} must be at least 1")
    read(model)  # a model that cannot be read is told here, in the caller's process
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(Job(name, os.fspath(model), threads, batch))) for name in names]
        for worker in workers:
            worker.prepare()
        times: list[list[float]] = [[] for _ in workers]
        for _ in range(rounds):
            for worker, found in zip(workers, times, strict=True):
                found.extend(worker.ask({"seconds": ROUND_SECONDS})["ms"])
        return [worker.row(found) for worker, found in zip(workers, times, strict=True)]


class _Worker:
    """A process that runs one engine and answers one JSON line with another."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.ready: dict[str, Any] = {}
        self.errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would block a talkative library
        source = str(Path(__file__).resolve().parents[1])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(job.threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gsb_vit.benchmark"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def prepare(self) -> None:
        self.ready = self.ask(asdict(self.job))

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the worker has no pipes")
        try:
            print(json.dumps(question), file=stdin, flush=True)
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise InputError(f"engine {self.job.engine!r} cannot run: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        return lines[-1] if lines else f"its process ended with status {self.process.returncode}"

    def row(self, times: Sequence[float]) -> Row:
        median = statistics.median(times)
        return Row(
            engine=self.job.engine,
            precision=self.ready["precision"],
            threads=self.job.threads,
            batch=self.job.batch,
            median_ms=median,
            images_per_s=1000 * self.job.batch / median,
            file_mb=self.ready["file_mb"],
            peak_mb=self.ask({"peak": True})["peak_mb"],
        )


def _work(questions: IO[str], answers: IO[str]) -> None:
    """Answer the parent's questions: first a job, then how long to run, at last the peak of memory."""

    def answer(values: Mapping[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        job = Job(**json.loads(questions.readline()))
        runner = ENGINES[job.engine][0](job)
    except (InputError, ImportError) as error:
        answer({"error": str(error)})
        return
    for _ in range(WARM_UP_CALLS):
        runner.call()
    answer({"precision": runner.precision, "file_mb": runner.file_mb})
    for line in questions:
        question = json.loads(line)
        if "peak" in question:
            answer({"peak_mb": peak_memory_mb()})
        else:
            answer({"ms": _timed_calls(runner.call, question["seconds"])})


def _timed_calls(call: Callable[[], Any], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return times


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


if __name__ == "__main__":
    # Libraries may print: what they write to the standard output goes to the error output, not between the answers.
    with os.fdopen(os.dup(1), "w") as own_output:
        os.dup2(2, 1)
        _work(sys.stdin, own_output)
