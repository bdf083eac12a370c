"""Trackers of experiments through accelerate: TensorBoard, Weights & Biases, MLflow and the others that it knows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType

from gsb_vit.errors import InputError, shown

from .recipe import Recipe

PROJECT = "gsb-vit"
Tracker: TypeAlias = str | GeneralTracker
_PACKAGES = {"comet_ml": "comet-ml"}


def check_trackers(wanted: Sequence[Tracker]) -> list[Tracker]:
    """Return the trackers, each once. Raises InputError for an unknown one, and for one whose package is missing."""
    known = [str(one) for one in LoggerType if str(one) != "all"]
    there = {str(one) for one in get_available_trackers()}
    for one in wanted:
        if isinstance(one, GeneralTracker):
            continue
        if one not in known:
            raise InputError(f"tracker {shown(one)} is unknown; use one of {', '.join(known)}")
        if one not in there:
            raise InputError(f"tracker {one} needs its package: pip install {_PACKAGES.get(one, one)}")
    return list(dict.fromkeys(wanted))


class Tracking:
    """What a run tells its trackers: the recipe once, and every line of metrics.jsonl.

    Keys are ``STAGE/NAME``. The step is the number of the line in metrics.jsonl. It grows over all stages and goes on
    where a run is resumed. A tracker that fails stops being told; the run goes on, and so do the others.
    """

    def __init__(self, accelerator: Accelerator, say: Callable[[str], None]) -> None:
        self.accelerator = accelerator
        self.say = say
        self.told: list[GeneralTracker] = []

    def start(self, recipe: Recipe, folder: Path, spec: str) -> None:
        """Begin the run of that folder's name with its trackers."""
        config = {"data": spec, "run": str(folder), **_flat(asdict(recipe))}
        names = {"wandb": {"name": folder.name}, "mlflow": {"run_name": folder.name}}
        for one in list(self.accelerator.log_with):
            self.accelerator.log_with, self.accelerator.trackers = [one], []  # so that one's failure is its own
            if self._tell(one, lambda: self.accelerator.init_trackers(PROJECT, config=config, init_kwargs=names)):
                self.told += self.accelerator.trackers

    def line(self, values: Mapping[str, Any], step: int) -> None:
        """Tell a line of metrics.jsonl, its numbers."""
        kept = {f"{values['stage']}/{key}": value for key, value in values.items() if isinstance(value, float)}
        kept[f"{values['stage']}/epoch"] = values["epoch"]
        self.told = [one for one in self.told if self._tell(one, partial(one.log, kept, step=step))]

    def end(self) -> None:
        """Let the trackers write what they hold."""
        for one in self.told:
            self._tell(one, one.finish)

    def _tell(self, tracker: Tracker, tell: Callable[[], Any]) -> bool:
        """Whether the tracker took it."""
        try:
            tell()
        except Exception as error:
            with contextlib.suppress(Exception):
                name = tracker.name if isinstance(tracker, GeneralTracker) else tracker
                self.say(
                    f"tracker {name} stopped: {type(error).__name__}: {' '.join(str(error).split())[:200]}; the run "
                    "goes on, and metrics.jsonl holds everything"
                )
            return False
        return True


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, and values of kinds that every tracker takes: numbers, text, truth values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return found
