"""What a stage said of its training pictures, averaged over its epochs: a wrong label stands out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from gsb_vit.models.trained import read_tensors, write_tensors

CONFIDENCE = "confidence.safetensors"
MOST_NUMBERS = 1 << 26  # pictures times classes; more are not recorded
_PREFIX = "confidence."


class Confidence:
    """Sums of softmax(logits) of every training picture over all epochs, as the training step itself saw it.

    The pictures are varied and the weights still move, as for the area under the margin
    (https://arxiv.org/abs/2001.10528). Mixed pictures are left out: they show two classes.
    """

    def __init__(self, pictures: int, classes: int) -> None:
        self.active = 0 < pictures * classes <= MOST_NUMBERS
        rows = pictures if self.active else 0
        self.sums = torch.zeros(rows, classes)
        self.counts = torch.zeros(rows)
        self._epoch: tuple[Tensor, Tensor] | None = None

    def add(self, indices: Tensor, logits: Tensor) -> None:
        """Add a batch of this epoch: indices (B,) of training pictures, logits (B, K).

        Pictures without labels come after the others, and are left out.
        """
        if not self.active:
            return
        device = logits.device
        if bool((others := indices >= len(self.sums)).any()):
            indices, logits = indices[~others], logits[~others.to(device)]
        if self._epoch is None:
            self._epoch = torch.zeros_like(self.sums, device=device), torch.zeros_like(self.counts, device=device)
        indices = indices.to(device)
        self._epoch[0].index_add_(0, indices, logits.float().softmax(-1))
        self._epoch[1].index_add_(0, indices, torch.ones(len(indices), device=device))

    def finish_epoch(self, accelerator: Accelerator) -> None:
        """Add what all processes saw in this epoch to the sums."""
        if self._epoch is None:
            return
        for total, part in zip((self.sums, self.counts), self._epoch, strict=True):
            total += accelerator.reduce(part, "sum").cpu()
        self._epoch = None

    def tensors(self) -> dict[str, Tensor]:
        """What resuming needs."""
        return {f"{_PREFIX}sums": self.sums, f"{_PREFIX}counts": self.counts}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave; the state of an older version has none, and nothing is recorded then."""
        sums, counts = tensors.get(f"{_PREFIX}sums"), tensors.get(f"{_PREFIX}counts")
        if sums is None or counts is None or sums.shape != self.sums.shape:
            self.active = False
            return
        self.sums, self.counts = sums.clone(), counts.clone()

    def write(self, folder: Path) -> None:
        """Write the means (n, K), float16, where every picture was seen."""
        if self.active and bool((self.counts > 0).all()):
            means = self.sums / self.counts[:, None]
            write_tensors(folder / CONFIDENCE, {"probabilities": means.half()}, {"epochs": float(self.counts.mean())})


def read_confidence(folder: Path) -> np.ndarray | None:
    """The mean probabilities float32 (n, K) that a stage in ``folder`` recorded, or None."""
    path = folder / CONFIDENCE
    return read_tensors(path)[0]["probabilities"].float().numpy() if path.is_file() else None
