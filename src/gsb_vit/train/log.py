"""What a run tells: progress bars, metrics.jsonl, TensorBoard scalars and the table at the end."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.table import Column
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from gsb_vit.bars import Bars
from gsb_vit.metrics import METRIC_NAMES
from gsb_vit.terminal import Table, filled

from .track import Tracking

QUIET = 60.0  # seconds between the lines of a log that is no terminal


@dataclass(frozen=True)
class RunTime:
    """Epochs of every stage of a run, in their order, and seconds an epoch is planned to take, where that is known."""

    epochs: Mapping[str, int]
    planned: Mapping[str, float]

    def left(self, stage: str, epochs_left: float, an_epoch: float | None) -> float | None:
        """Seconds to the end of the run, ``epochs_left`` of ``stage`` and all stages after it.

        ``an_epoch`` is what an epoch of this stage is seen to take, None before that is known: then what is planned.
        Stages to come take what is planned, times as much more or less as this one does; without a plan as much an
        epoch as this one. None where nothing is known.
        """
        planned = self.planned.get(stage)
        an_epoch = planned if an_epoch is None else an_epoch
        if an_epoch is None:
            return None
        factor = an_epoch / planned if planned else 1.0
        names = list(self.epochs)
        later = names[names.index(stage) + 1 :] if stage in names else []
        rest = sum(
            self.epochs[one] * (self.planned[one] * factor if one in self.planned else an_epoch) for one in later
        )
        return epochs_left * an_epoch + rest


class RunLog:
    """Writes for the main process; other processes have one that writes nothing."""

    def __init__(self, folder: Path, console: Console, active: bool, whole: RunTime | None = None) -> None:
        self.whole = whole or RunTime({}, {})
        self.folder = folder
        self.console = console
        self.active = active
        self.path = folder / "metrics.jsonl"
        self._writer: SummaryWriter | None = None
        self.tracking: Tracking | None = None

    def say(self, text: str) -> None:
        """One line for the user."""
        if self.active:
            self.console.print(text)

    def say_prose(self, text: str) -> None:
        """Text without names of files, in lines of 80 cells."""
        for line in filled(text):
            self.say(line)

    def position(self) -> int:
        """Length of metrics.jsonl in bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, position: int) -> None:
        """Drop the lines of an epoch that did not finish."""
        if self.active and self.position() > position:
            os.truncate(self.path, position)

    @contextmanager
    def stage(self, name: str, epochs: int, steps: int, progress: Any) -> Iterator[StageBar]:
        """A progress bar and a TensorBoard folder for one stage."""
        self.cut(progress.log_bytes)
        if self.active:
            folder = self.folder / "tensorboard" / name
            self._writer = SummaryWriter(str(folder), purge_step=progress.epoch + 1)
        try:
            bar = StageBar(self.console, name, epochs, steps, progress.epoch, self.active, self.whole)
            with _without_a_traceback_of_the_writer(), bar:
                yield bar
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def epoch(self, line: Mapping[str, Any], bar: StageBar) -> None:
        """Append one line to metrics.jsonl and the same numbers as scalars."""
        bar.epoch(line)
        if not self.active:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self._writer is not None:
            for key, value in line.items():
                if isinstance(value, float):
                    self._writer.add_scalar(key, value, line["epoch"])
        if self.tracking is not None:
            self.tracking.line(line, self._lines())

    def _lines(self) -> int:
        with self.path.open("rb") as file:
            return sum(1 for _ in file)


@contextmanager
def _without_a_traceback_of_the_writer() -> Iterator[None]:
    """TensorBoard's thread hands an error on to the next write here; it need not print it, too."""
    before = threading.excepthook

    def show(details: Any) -> None:
        if not type(details.thread).__module__.startswith("tensorboard."):
            before(details)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = before


class StageBar:
    """Stage, epoch, rate, loss and accuracy on one line, and the time that is left of the whole run.

    Where the console is no terminal, an epoch's line is printed, at most one in ``QUIET`` seconds, and the last one's.
    """

    def __init__(
        self, console: Console, name: str, epochs: int, steps: int, done: int, active: bool, whole: RunTime
    ) -> None:
        self._console, self._name, self._whole = console, name, whole
        self._epochs, self._steps, self._active = epochs, steps, active
        self._began, self._walked = time.perf_counter(), 0
        self._first: float | None = None  # seconds of this process's first epoch, in which pictures are decoded
        self._told = self._began
        self._numbers = self._validation = ""
        self._shown = 0.0
        self._started: tuple[float, int] = (time.perf_counter(), 0)
        self._bar = Bars(
            # In a narrow terminal the numbers are cut first.
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=7)),
            BarColumn(bar_width=8),
            TextColumn("{task.percentage:3.0f}%", table_column=Column(no_wrap=True, min_width=4)),
            TextColumn("left", table_column=Column(no_wrap=True, min_width=4)),
            TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=console,
            active=active,
        )
        self._epoch_done = done
        self._task = self._bar.add_task(
            name, total=epochs * steps, completed=done * steps, numbers="", left=self._left(0)
        )

    def __enter__(self) -> StageBar:
        self._bar.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.stop()

    def step(self, total: Tensor) -> None:
        """After every step; ``total`` holds the sums of loss, hits, pictures and labels of this epoch so far."""
        self._bar.advance(self._task)
        self._walked += 1
        now = time.perf_counter()
        # Reading the sums waits for the device, so it is done at most four times a second.
        if self._bar.disable or now - self._shown < 0.25:
            return
        self._shown = now
        loss, hits, count, known = total.tolist()
        rate = max(count - self._started[1], 0) / max(now - self._started[0], 1e-9)
        self._show(self._epoch_done + 1, rate, loss / count, hits / max(known, 1))

    def epoch(self, line: Mapping[str, Any]) -> None:
        """After every epoch."""
        self._epoch_done += 1
        self._started = (time.perf_counter(), 0)
        if self._first is None:
            self._first = self._started[0] - self._began
            self._began, self._walked = self._started
        teacher = f" teacher {100 * line['teacher_wait']:.0f} % of the time" if "teacher_wait" in line else ""
        if "validation_top1" in line:
            self._validation = f" validation {100 * line['validation_top1']:.1f} %"
        self._numbers = teacher + self._validation
        self._show(self._epoch_done, line["images_per_s"], line["train_loss"], line["train_top1"])
        now = time.perf_counter()
        due = now - self._told >= QUIET or self._epoch_done == self._epochs
        if self._active and not self._console.is_terminal and due:
            self._told = now
            checked = f", validation {100 * line['validation_top1']:.1f} %" if "validation_top1" in line else ""
            self._console.print(
                f"{self._name} epoch {self._epoch_done}/{self._epochs}, {self._left(0)} left: "
                f"loss {line['train_loss']:.3f}, top-1 {100 * line['train_top1']:.1f} %{checked}"
            )

    def _show(self, epoch: int, rate: float, loss: float, top1: float) -> None:
        text = f"epoch {epoch}/{self._epochs} {rate:.0f} pictures/s loss {loss:.3f} top-1 {100 * top1:.1f} %"
        within = self._walked % self._steps / self._steps if epoch > self._epoch_done else 0.0
        self._bar.update(self._task, numbers=text + self._numbers, left=self._left(within))

    def _left(self, within: float) -> str:
        """The time to the end of the run; ``within``: the share of an epoch that is done of the present one."""
        took = time.perf_counter() - self._began
        seen = took * self._steps / self._walked if self._walked >= self._steps else None
        if seen is None and self._name not in self._whole.planned:
            seen = self._first
        left = self._whole.left(self._name, self._epochs - self._epoch_done - within, seen)
        if left is None:
            return "-:--:--"
        minutes, seconds = divmod(round(left), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def summary_table(stages: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table of test metrics in percent, one row a stage."""
    columns = ("stage", *METRIC_NAMES.values(), "chosen epoch", "training")
    table = Table("Test split (macro averages, percent)", columns)
    for name, stage in stages.items():
        numbers = [f"{100 * stage['test'][key]:.2f}" for key in METRIC_NAMES]
        table.add_row(name, *numbers, str(stage["chosen_epoch"]), f"{stage['seconds']:.0f} s")
    return table
