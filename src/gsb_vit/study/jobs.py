"""Runs the jobs of a study: one process a job, here or through submitit; resumable, since every job is."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn

from gsb_vit.bars import Bars
from gsb_vit.errors import InputError
from gsb_vit.files import write_atomically
from gsb_vit.train.recipe_io import dump_recipe

from .plan import Job, is_finished, run_folder

POLL_SECONDS = 0.5


class Handle(Protocol):
    """A job on its way."""

    def poll(self) -> str | None:
        """None while it runs, "" when it is done, else its error in one line."""

    def stop(self) -> None:
        """End it at once and wait until it has ended."""


class Executor(Protocol):
    """Starts jobs somewhere."""

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Handle:
        """Start a command with some variables in its environment; its output is added to ``log``."""


class LocalExecutor:
    """A child process a job. Children end with this process (on Linux, even where it is killed), and on ``stop``."""

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Handle:
        """Start a command in a process group of its own."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                list(command),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        return _LocalHandle(process, log)


def _end_with_parent() -> None:
    """In the child: be sent SIGTERM when the parent is gone, even killed (prctl PR_SET_PDEATHSIG = 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _outcome(code: int, log: Path) -> str:
    """What an exit status means: "" for 0, else the signal, or the last line that the command wrote."""
    if code == 0:
        return ""
    if code < 0:
        return f"ended by signal {signal.Signals(-code).name}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("gsb-vit: ") if lines else f"exit status {code}"


class _LocalHandle:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def poll(self) -> str | None:
        code = self.process.poll()
        return None if code is None else _outcome(code, self.log)

    def stop(self) -> None:
        for kind, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, kind)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
                return


class SubmititExecutor:
    """Jobs through submitit: Slurm where there is one, or ``cluster`` = ``local`` or ``debug``.

    The study's folder must be reached under the same path from every host.
    """

    def __init__(self, folder: Path, cluster: str | None, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise InputError("--executor submitit needs submitit: pip install 'gsb-vit[cluster]'") from error
        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        try:
            self._executor.update_parameters(**options)
        except (NameError, TypeError, ValueError) as error:
            raise InputError(f"--cluster-set: {' '.join(str(error).split())}") from error

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Handle:
        """Submit a command."""
        return _SubmititHandle(self._executor.submit(_run_logged, list(command), dict(environment), log))


def _run_logged(command: list[str], environment: dict[str, str], log: Path) -> str:
    """On the host that got the job: run a command; → its outcome."""
    with log.open("ab") as file:
        done = subprocess.run(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    return _outcome(done.returncode, log)


class _SubmititHandle:
    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> str | None:
        if not self.job.done():
            return None
        error = self.job.exception()
        return self.job.result() if error is None else f"the cluster's job {self.job.job_id} failed: {error}"

    def stop(self) -> None:
        self.job.cancel(check=False)


def run_jobs(
    jobs: Sequence[Job],
    data: str,
    out: Path,
    executor: Executor,
    slots: int,
    console: Console,
    on_finish: Callable[[Job], None],
    gpus: int = 0,
) -> dict[str, str]:
    """Run what is not finished, at most ``slots`` jobs at a time, each after the one it needs; → errors by job.

    Each child has one thread unless its recipe says otherwise (OMP_NUM_THREADS, recorded in its run.json), and one of
    the ``gpus`` in turn where there are several. ``on_finish`` is called after every job that ended well.
    """
    todo = [job for job in jobs if not is_finished(job, out)]
    errors: dict[str, str] = {}
    running: dict[str, tuple[Job, Handle, int, TaskID]] = {}
    with Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        console=console,
    ) as bars:
        whole = bars.add_task("study", total=len(jobs), completed=len(jobs) - len(todo), unit="runs")
        try:
            while todo or running:
                for job in _ready(todo, running, errors, slots):
                    todo.remove(job)
                    slot = min(set(range(slots)) - {taken for _, _, taken, _ in running.values()})
                    bar = bars.add_task(job.name, total=max(job.epochs, 1), unit="epochs")
                    running[job.name] = (
                        job,
                        _start(job, data, out, executor, slot % gpus if gpus > 1 else None),
                        slot,
                        bar,
                    )
                    console.print(f"{job.name}: started", highlight=False)
                time.sleep(POLL_SECONDS)
                for name, (job, handle, _, bar) in list(running.items()):
                    bars.update(bar, completed=_epochs_done(job, out))
                    if (error := handle.poll()) is None:
                        continue
                    del running[name]
                    bars.remove_task(bar)
                    bars.advance(whole)
                    if not error and not is_finished(job, out):
                        error = f"ended without a summary; see {out / 'logs'}"
                    if error:
                        errors[name] = error
                        console.print(f"{name}: failed: {error}", highlight=False, markup=False)
                        _drop_dependants(todo, errors)
                    else:
                        console.print(f"{name}: done", highlight=False)
                        on_finish(job)
        finally:
            for _, handle, _, _ in running.values():
                handle.stop()
    return errors


def _ready(todo: Sequence[Job], running: Mapping[str, Any], errors: Mapping[str, str], slots: int) -> list[Job]:
    """The first jobs that wait for nothing, as many as there are free slots."""
    waiting = {job.name for job in todo} | running.keys() | errors.keys()
    return [job for job in todo if job.needs not in waiting][: slots - len(running)]


def _drop_dependants(todo: list[Job], errors: dict[str, str]) -> None:
    for job in list(todo):
        if job.needs in errors:
            todo.remove(job)
            errors[job.name] = f"not run: {job.needs} failed"


def _start(job: Job, data: str, out: Path, executor: Executor, gpu: int | None) -> Handle:
    folder, recipe = run_folder(out, job.name), out / "recipes" / f"{job.name}.toml"
    for parent in (folder.parent, recipe.parent, out / "logs"):
        parent.mkdir(parents=True, exist_ok=True)
    write_atomically(recipe, dump_recipe(job.recipe).encode())
    if job.kind == "student" and (job.needs or "").startswith("stage1-") and not folder.exists():
        _take_stage1(run_folder(out, str(job.needs)), folder)
    environment = {"OMP_NUM_THREADS": "1", **({"CUDA_VISIBLE_DEVICES": str(gpu)} if gpu is not None else {})}
    return executor.start(train_command(data, recipe, folder), environment, out / "logs" / f"{job.name}.log")


def train_command(data: str, recipe: Path, folder: Path) -> list[str]:
    """The command of a job: ``gsb-vit train --resume``, which starts what is not there yet."""
    options = ["--data", data, "--recipe", str(recipe), "--out", str(folder), "--resume", "--no-report"]
    return [sys.executable, "-m", "gsb_vit", "train", *options]


def _take_stage1(source: Path, folder: Path) -> None:
    """Begin a student's run folder with a finished stage 1: its states and its lines of metrics.jsonl, whole or not."""
    beginning = folder.with_name(f".{folder.name}.beginning")
    shutil.rmtree(beginning, ignore_errors=True)
    beginning.mkdir()
    shutil.copytree(source / "stage1", beginning / "stage1")
    shutil.copy2(source / "metrics.jsonl", beginning / "metrics.jsonl")
    beginning.rename(folder)


def _epochs_done(job: Job, out: Path) -> int:
    """Lines of metrics.jsonl of the stages that this job trains itself."""
    path = run_folder(out, job.name) / "metrics.jsonl"
    if not path.is_file():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    stages = [found[1] for line in lines if (found := re.match(r'\{"stage": "(\w+)"', line))]
    copied = job.kind == "student" and (job.needs or "").startswith("stage1-")
    return len([stage for stage in stages if not (copied and stage == "stage1")])
