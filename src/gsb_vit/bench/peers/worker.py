"""A process that runs one engine: pinned, held to its threads, and asleep on a pipe while it is another's turn."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError, shown

from .engines import Engine
from .isa import environment, hold_onnxruntime

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerError(RuntimeError):
    """An engine's process failed; the message is the last thing it said."""


MOST_PICTURES = 65_536  # in one call


@dataclass(frozen=True)
class Setting:
    """How every engine runs: threads (one core each), pictures a call, instruction set (None: all the CPU has).

    Raises:
        InputError: threads or batch out of range, more threads than cores, or an unknown instruction set.
    """

    threads: int = 1
    batch: int = 1
    isa: str | None = None

    def __post_init__(self) -> None:
        if self.threads < 1 or not 1 <= self.batch <= MOST_PICTURES:
            raise InputError(
                f"threads {shown(self.threads)} must be at least 1, batch {shown(self.batch)} from 1 to "
                f"{MOST_PICTURES:,}"
            )
        if self.threads > len(available_cores()):
            raise InputError(f"threads {self.threads}: this process may use {len(available_cores())} cores")
        environment(self.isa)

    @property
    def cores(self) -> list[int]:
        """The cores to run on: the last ones, since the system's own work prefers the first."""
        return available_cores()[-self.threads :]


def available_cores() -> list[int]:
    """Return the cores that this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


class Worker:
    """Starts the process, loads the engine and warms it up; a context manager that ends the process.

    Raises:
        WorkerError: where the engine cannot be loaded or dies.
    """

    def __init__(self, engine: Engine, setting: Setting, pictures: Path, folder: Path, timeout: float = 600) -> None:
        self.engine, self.setting, self.timeout = engine, setting, timeout
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - see close(); an unread pipe would block a talkative library
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gsb_vit.bench.peers.session"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(engine, setting, folder),
        )
        job = {
            "engine": engine.name,
            "precision": engine.precision,
            "path": os.fspath(engine.path),
            "pictures": os.fspath(pictures),
            "threads": setting.threads,
            "batch": setting.batch,
            "cores": setting.cores,
        }
        try:
            ready = self._ask(job)
        except WorkerError:
            self.close()
            raise
        self.precision: str = ready["precision"]
        self.bare_mb: float = ready["bare_mb"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def run(self, seconds: float) -> dict[str, Any]:
        """Call the engine for so long; keys ``ms`` (a time per call), ``idle_cpu_s`` and ``idle_s`` since last time."""
        return self._ask({"run": seconds})

    def logits(self, output: Path) -> None:
        """Write the logits of all check pictures to ``output`` (.npy)."""
        self._ask({"logits": os.fspath(output)})

    def peak_mb(self) -> float:
        """Return the largest resident memory so far, in 10⁶ bytes."""
        return self._ask({"peak": True})["peak_mb"]

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the worker has no pipes")
        line = ""
        with suppress(BrokenPipeError), selectors.DefaultSelector() as selector:
            print(json.dumps(question), file=stdin, flush=True)
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(self.timeout):
                raise WorkerError(f"{self.engine.name} {self.engine.precision}: no answer in {self.timeout:g} s")
            line = stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise WorkerError(f"{self.engine.name} {self.engine.precision} cannot run: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"its process ended with status {status}"


def _environment(engine: Engine, setting: Setting, folder: Path) -> dict[str, str]:
    paths = [str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    if engine.name == "onnxruntime" and setting.isa is not None:
        paths.insert(0, str(hold_onnxruntime(setting.isa, folder)))
    threads = dict.fromkeys(THREAD_VARIABLES, str(setting.threads))
    return {**os.environ, **threads, **environment(setting.isa), "PYTHONPATH": os.pathsep.join(paths)}
