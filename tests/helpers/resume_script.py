"""A short run on digits that can be told to kill itself (run by test_train_resume.py).

Arguments: the run's folder, ``resume`` or ``start``, and where to kill: ``EVENT:N``, the N-th time EVENT happens, or
``never``. Events: ``replace`` before a file gets its name, ``replaced`` after it did, ``log`` after a line of
metrics.jsonl was written, ``step`` after an optimiser step.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from gsb_vit.train import loop
from gsb_vit.train.log import RunLog
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import train

SETTINGS = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=1",
    "model.drop_path_rate=0.1",
    "model.tokenizer_channels=[6]",
    "data.shots=8",
    "data.validation_fraction=0.25",
    "threads=1",
    "distillation.feature_weight=0.5",
    "stage1.optimizer=muon",
    "stage2.ema_decay=0.7",
    "stage2.mixup=0.4",
    "stage2.cutmix=1.0",
    *(f"{stage}.{setting}" for stage in ("teacher", "stage1", "stage2") for setting in ("epochs=2", "batch_size=20")),
]


class Killer:
    """Counts events and kills this very process, with a signal it cannot handle, at the chosen one."""

    def __init__(self, event: str) -> None:
        self.event, _, number = event.partition(":")
        self.left = int(number or 0)

    def happened(self, event: str) -> None:
        if event == self.event:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, resume: bool, event: str) -> None:
    killer = Killer(event)
    replace, epoch, step = os.replace, RunLog.epoch, torch.optim.AdamW.step

    def killing_replace(source: object, target: object) -> None:
        killer.happened("replace")
        replace(source, target)
        killer.happened("replaced")

    def killing_epoch(self: RunLog, line: dict, bar: object) -> None:
        epoch(self, line, bar)
        killer.happened("log")

    def killing_step(self: torch.optim.AdamW, *arguments: object, **options: object) -> object:
        result = step(self, *arguments, **options)
        killer.happened("step")
        return result

    loop.SAVING_SHARE = float("inf")  # every epoch, so that the events can be counted
    os.replace, RunLog.epoch, torch.optim.AdamW.step = killing_replace, killing_epoch, killing_step
    train(load_recipe("quickstart", SETTINGS), "digits", folder, resume=resume)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "resume", sys.argv[3])
