"""Engines taking turns, and whether what they took is a figure or noise."""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.errors import InputError

from .engines import Engine
from .worker import Setting, Worker, WorkerError

ROUNDS = 15
TURN_SECONDS = 0.2
MAX_SPREAD, MAX_DRIFT, MAX_IDLE_CPU = 0.10, 0.05, 0.05
SHORT_IDLE = 0.1  # seconds; less is not enough to tell whether threads spin


@dataclass(frozen=True)
class Measurement:
    """One engine in one setting. Where ``problem`` says why there is no figure, ``median_ms`` is None.

    ``spread`` is the interquartile range of the calls over their median, ``drift`` the change of the median from the
    first half of the calls to the second; ``error`` and ``top1`` compare the logits with the float twin's; ``peak_mb``
    is the process's largest resident memory, of which ``bare_mb`` were Python and NumPy. MB are 10⁶ bytes.
    ``densities`` (:mod:`gsb_vit.bench.densities`) are the packed model's on the pictures given.
    """

    engine: str
    precision: str
    threads: int
    batch: int
    file_mb: float
    isa: str | None = None
    median_ms: float | None = None
    peak_mb: float | None = None
    bare_mb: float | None = None
    spread: float | None = None
    drift: float | None = None
    error: float | None = None
    top1: float | None = None
    problem: str | None = None
    densities: dict[str, Any] | None = None

    @property
    def images_per_s(self) -> float | None:
        """Pictures a second at the median; None without a median."""
        return None if self.median_ms is None else 1000 * self.batch / self.median_ms

    def row(self) -> dict[str, Any]:
        """Return the keys of a ``bench`` row, and ``problem`` and ``densities`` where there are any."""
        keys = ("engine", "precision", "threads", "batch", "median_ms", "images_per_s", "file_mb", "peak_mb")
        row = {key: getattr(self, key) for key in keys}
        extra = {key: getattr(self, key) for key in ("problem", "densities")}
        return {**row, **{key: value for key, value in extra.items() if value is not None}}


def measure(
    engines: Sequence[Engine],
    setting: Setting,
    pictures: Path | Sequence[Path],
    *,
    expected: Path | None = None,
    rounds: int = ROUNDS,
    turn_seconds: float = TURN_SECONDS,
    tries: int = 1,
) -> list[Measurement]:
    """Let every engine run for a turn, round after round, and return a measurement for each, in the given order.

    Each round starts with the next engine, so that none always follows the same one. An engine that cannot run, whose
    logits are off, whose threads keep a core busy while others run, or whose calls scatter, gets a ``problem``.

    Args:
        pictures: uint8 pictures (n, H, W, 3) as .npy, for all engines or for each its own; a call takes the next
            ``batch`` of them, over and over.
        expected: the float twin's logits of all pictures (n, K) as .npy.
        tries: where some engine's calls were noise, all rounds are done again, of all engines, up to so many times.

    Raises:
        InputError: for fewer than two rounds (drift needs two halves), no try or no engine at all.
    """
    if rounds < 2 or tries < 1 or not engines:
        raise InputError(f"rounds {rounds} must be at least 2, tries {tries} at least 1, engines at least one")
    each = [pictures] * len(engines) if isinstance(pictures, Path) else pictures
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gsb-vit-bench-")))
        turns = []
        for engine, own in zip(engines, each, strict=True):
            turn = _Turns(engine, setting)
            turn.start(stack, own, expected, folder)
            turns.append(turn)
        for _ in range(tries):
            for turn in turns:
                turn.forget()
            for number in range(rounds):
                shift = number % len(turns)
                for turn in turns[shift:] + turns[:shift]:
                    turn.take(turn_seconds)
            if not any(turn.noise() for turn in turns):
                break
        return [turn.result() for turn in turns]


class _Turns:
    """What one engine did so far."""

    def __init__(self, engine: Engine, setting: Setting) -> None:
        self.engine, self.setting = engine, setting
        self.worker: Worker | None = None
        self.problem: str | None = None
        self.similarity: tuple[float, float] | None = None
        self.forget()

    def forget(self) -> None:
        self.times: list[list[float]] = []
        self.idle_cpu = self.idle = 0.0

    def start(self, stack: ExitStack, pictures: Path, expected: Path | None, folder: Path) -> None:
        try:
            self.worker = stack.enter_context(Worker(self.engine, self.setting, pictures, folder))
            if expected is None or self.engine.error_limit is None:
                return
            output = folder / "logits.npy"
            self.worker.logits(output)
        except (WorkerError, InputError) as error:
            self.problem = str(error)
            return
        self.similarity = similarity(np.load(output), np.load(expected))
        if not self.similarity[0] <= self.engine.error_limit:
            self.problem = (
                f"its logits are off by {self.similarity[0]:.2g} of the float twin's (at most "
                f"{self.engine.error_limit:g} is allowed at this precision)"
            )

    def take(self, seconds: float) -> None:
        if self.worker is None or self.problem is not None:
            return
        try:
            answer = self.worker.run(seconds)
        except WorkerError as error:
            self.problem = str(error)
            return
        if self.times:  # before the first turn the others were being loaded
            self.idle_cpu += answer["idle_cpu_s"]
            self.idle += answer["idle_s"]
        self.times.append(answer["ms"])

    def noise(self) -> str | None:
        if self.problem is not None:
            return None
        return noise(*scatter(self.times), self.idle_cpu / self.idle if self.idle > SHORT_IDLE else 0.0)

    def result(self) -> Measurement:
        engine, worker, setting = self.engine, self.worker, self.setting
        error, top1 = self.similarity or (None, None)
        spread, drift = scatter(self.times) if self.problem is None else (None, None)
        problem = self.problem or self.noise()
        times = [one for turn in self.times for one in turn]
        return Measurement(
            engine=engine.name,
            precision=engine.precision if worker is None else worker.precision,
            threads=setting.threads,
            batch=setting.batch,
            file_mb=engine.file_mb,
            isa=setting.isa,
            median_ms=statistics.median(times) if problem is None else None,
            peak_mb=worker.peak_mb() if worker is not None and self.problem is None else None,
            bare_mb=None if worker is None else worker.bare_mb,
            spread=spread,
            drift=drift,
            error=error,
            top1=top1,
            problem=problem,
        )


def similarity(logits: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    """Return ``‖y − ŷ‖ / ‖ŷ − mean_k ŷ‖`` over all pictures and the share of equal top-1; NaN logits give NaN."""
    centred = expected - expected.mean(axis=1, keepdims=True)
    error = np.linalg.norm(logits - expected) / max(float(np.linalg.norm(centred)), 1e-12)
    return float(error), float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)))


def scatter(turns: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return spread and drift of the calls of all turns: (q75 − q25)/median, and |median of later turns/earlier − 1|.

    The halves are split by turns, not calls: a slow turn has fewer calls but lasts as long. An odd middle turn counts
    to neither.
    """
    half = len(turns) // 2
    first, second = (statistics.median([ms for turn in part for ms in turn]) for part in (turns[:half], turns[-half:]))
    low, median, high = np.percentile([ms for turn in turns for ms in turn], [25, 50, 75])
    return float((high - low) / median), abs(second / first - 1)


def noise(spread: float, drift: float, idle_cpu: float) -> str | None:
    """Return why such calls are noise and no figure, or None; ``idle_cpu`` is the share of a core used out of turn."""
    if idle_cpu > MAX_IDLE_CPU:
        return (
            f"invalid: its threads used {idle_cpu:.0%} of a core while other engines ran (at most {MAX_IDLE_CPU:.0%})"
        )
    if spread > MAX_SPREAD:
        return (
            f"invalid: the middle half of its calls spreads over {spread:.0%} of the median (at most {MAX_SPREAD:.0%})"
        )
    if drift > MAX_DRIFT:
        return f"invalid: its second half differs from the first by {drift:.0%} (at most {MAX_DRIFT:.0%})"
    return None
