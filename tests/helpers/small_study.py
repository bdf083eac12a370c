"""A small study on digits, and how tests run it: every job in this process, counted."""

import io
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("accelerate")

from gsb_vit.study import command, jobs
from gsb_vit.study.command import run_study
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import train

STUDY = """
title = "Tiny"
data = "digits"
recipe = "quickstart"
reference = "gsb"

[set]
"model.depth" = 1
model.embed_dim = 32
data.shots = 8
threads = 1
teacher.epochs = EPOCHS
stage1.epochs = EPOCHS
stage2.epochs = EPOCHS

[variants.gsb]
title = "GSB"

[variants.bit]
stage2.quantization.scheme = "bit"

[variants.authors]
stage1.quantization.preset = "authors_stage1"
stage2.quantization.preset = "authors_stage2"
"""


class InThisProcess:
    """Runs a job's command where the test is, and counts."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, command, environment, log):
        options = dict(zip(command[4::2], command[5::2], strict=False))
        assert command[1:4] == ["-m", "gsb_vit", "train"] and environment["OMP_NUM_THREADS"] == "1"
        self.started.append(Path(options["--out"]).name)
        try:
            train(load_recipe(options["--recipe"]), options["--data"], options["--out"], resume=True, console=quiet())
        except Exception as error:
            return Ended(str(error))
        return Ended("")


class Ended:
    """A job that is over."""

    def __init__(self, error: str) -> None:
        self.error = error

    def poll(self):
        return self.error

    def stop(self):
        pass


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def write_study(folder: Path, text: str = STUDY, epochs: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(text.replace("EPOCHS", str(epochs)), encoding="utf-8")
    return folder / "tiny.toml"


def run_here(monkeypatch, file: Path, out: Path, **options) -> tuple[dict[str, str], list[str]]:
    here = InThisProcess()
    monkeypatch.setattr(command, "make_executor", lambda *_: here)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    return run_study(file, out, **{"jobs": 2, "console": quiet(), **options}), here.started
