"""Runs of seconds on a folder of small pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from class_folders import fill

from gsb_vit.terminal import plain_console
from gsb_vit.train.log import RunLog
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import RunSummary, train

CLASSES = ("a", "b", "c")
SETTINGS = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=1",
    "model.img_size=8",
    "model.patch_size=4",
    "threads=1",
    *(f"{stage}.epochs=2" for stage in ("teacher", "stage1", "stage2")),
]


def write_pictures(folder: Path, count: int = 20) -> Path:
    """A folder of three classes of ``count`` pictures."""
    for name in CLASSES:
        fill(folder / name, count)
    return folder


def train_small(data: Path | str, out: Path, *more: str, stream=None, **ways) -> RunSummary:
    """Train a tiny model on a folder; ``more`` are settings, ``ways`` the options of ``train``."""
    console = plain_console(stream, quiet=stream is None)
    return train(load_recipe("quickstart", [*SETTINGS, *more]), str(data), out, console=console, **ways)


@contextmanager
def stopped_after(epochs: int) -> Iterator[None]:
    """Stop what trains in here after so many epochs in all, as Ctrl-C does."""
    epoch, left = RunLog.epoch, [epochs]

    def stop(self, *arguments):
        epoch(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "epoch", stop)
        yield
