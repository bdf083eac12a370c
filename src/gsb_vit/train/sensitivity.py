"""What the quantization of each part of a trained model costs, and what to keep in more bits for a budget of bytes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.held_out import BATCH, judged_pictures, require_same_classes
from gsb_vit.data.stored_split import run_data, run_split
from gsb_vit.errors import InputError
from gsb_vit.metrics import softmax
from gsb_vit.models.parts import KINDS, Part, is_quantized, plain_order, quantized_parts, without
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.models.trained import TrainedModel, load_model

from .batches import EvaluationPictures
from .evaluate import run_data_options
from .folder import RUN_FILE, read_run

MOST_PICTURES = 1000
LEVEL = 0.05  # chance that anything at all is called significant where nothing is
LEAST_PICTURES = 20


@dataclass(frozen=True)
class Change:
    """What quantization costs, each a mean over pictures and its standard error.

    ``loss``: cross-entropy with it less cross-entropy without it; ``top1``: share of right answers without it less the
    share with it. Both are above 0 where it does harm. The pictures are the same, so the errors are those of paired
    differences. ``kl``: Σ p·log(p/q) of the probabilities p with it and q without it, in nats.
    """

    loss: float
    loss_error: float
    top1: float
    top1_error: float
    kl: float
    kl_error: float

    def loss_is_beyond(self, z: float) -> bool:
        """Whether the change of the loss is more than ``z`` standard errors."""
        return abs(self.loss) > z * self.loss_error

    def kl_is_beyond(self, z: float) -> bool:
        """Whether the divergence is more than ``z`` standard errors."""
        return self.kl > z * self.kl_error


@dataclass(frozen=True)
class PartCost:
    """A part of the model and what its quantization costs.

    ``significant``: the loss changes by more than chance makes of any of them; ``heard``: the answers do.
    """

    part: Part
    change: Change
    significant: bool
    heard: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = ("kind", "bits", "more_bits", "bytes", "bit_operations")
        values = {name: getattr(self.part, name) for name in fields}
        return {"part": self.part.name, **values, **vars(self.change), **self._beyond()}

    def _beyond(self) -> dict[str, bool]:
        return {"significant": self.significant, "heard": self.heard}


@dataclass(frozen=True)
class Choice:
    """Parts to keep in more bits for ``budget`` bytes; ``change`` was measured with all of them switched at once."""

    budget: int
    parts: tuple[Part, ...]
    change: Change | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        change = {} if self.change is None else vars(self.change)
        size = sum(part.bytes for part in self.parts)
        return {"budget": self.budget, "bytes": size, "parts": {p.name: p.bytes for p in self.parts}, **change}


@dataclass(frozen=True)
class Sensitivity:
    """What was found: ``parts`` by how far the answers move, the farthest first; ``kinds``: all of a kind at once."""

    pictures: str
    n: int
    loss: float
    top1: float
    z: float
    parts: tuple[PartCost, ...]
    kinds: tuple[tuple[str, int, Change], ...]
    choice: Choice | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        kinds = [{"kind": kind, "bytes": size, **vars(change)} for kind, size, change in self.kinds]
        found = {name: getattr(self, name) for name in ("pictures", "n", "loss", "top1", "z")}
        found |= {"parts": [one.to_json() for one in self.parts], "kinds": kinds}
        return found if self.choice is None else {**found, "budget": self.choice.to_json()}


def run_sensitivity(
    run: str | Path,
    data_spec: str | None = None,
    *,
    budget: int | None = None,
    most: int = MOST_PICTURES,
    say: Callable[[str], None] | None = None,
) -> Sensitivity:
    """Measure a trained model with the quantization of one part at a time switched off.

    The pictures are the run's validation pictures, or its test pictures where it has none; with ``data_spec`` those of
    other data that the model has not seen, as for ``evaluate``. Of more than ``most`` so many are taken, evenly.
    ``say`` gets a line about which they are.

    Raises:
        InputError: the run or its data cannot be read, nothing in the model is quantized, there are fewer than
            ``LEAST_PICTURES`` pictures that it has not seen, or ``budget`` is below 0.
    """
    if budget is not None and budget < 0:
        raise InputError(f"a budget of {budget} bytes is below 0; give the bytes that the file may grow by")
    if most < LEAST_PICTURES:
        raise InputError(f"{most} pictures tell signal from noise badly; give at least {LEAST_PICTURES}")
    trained = load_model(run)
    if not is_quantized(trained.model):
        raise InputError(
            f"nothing in the {trained.info.stage} of {run} is quantized; give a run with a stage 1 or 2, or its file"
        )
    name, pictures = _held_out(Path(run), trained, data_spec)
    if len(pictures) > most:
        pictures = pictures.take(np.linspace(0, len(pictures) - 1, most).astype(np.int64))
    if len(pictures) < LEAST_PICTURES:
        raise InputError(
            f"{name} are {len(pictures)}, too few to tell signal from noise; give at least {LEAST_PICTURES} others "
            "with --data SPEC"
        )
    if say is not None:
        say(f"measured on {len(pictures):,} pictures: {name}")
    return sensitivity(trained, pictures, name, budget=budget)


def _held_out(path: Path, trained: TrainedModel, spec: str | None) -> tuple[str, LabelledPictures]:
    """What the pictures are, and the pictures; never those of training."""
    if spec is not None:
        split = dataclasses.asdict(run_data_options(path))
        judged = judged_pictures(spec, {**trained.info.provenance, "split": split}, trained.class_names)
        require_same_classes(trained.class_names, judged.class_names, spec)
        return judged.line, judged.pictures
    folder = next((one for one in (path, *list(path.parents)[:2]) if (one / RUN_FILE).is_file()), None)
    if folder is None:
        raise InputError(f"{path} lies in no run that says what data to measure on; give it as --data SPEC")
    data = run_data(path, read_run(folder)["data"], run_data_options(path))
    require_same_classes(trained.class_names, data.class_names, data.spec)
    if len(data.validation):
        return "the run's validation pictures", data.validation
    stored = run_split(path)
    if stored is not None and stored.tested_on_seen:
        raise InputError("the run has no pictures that it has not seen; give some with --data SPEC")
    return (
        "the run's test pictures; it has no validation pictures, so the test no longer judges what is chosen",
        data.test,
    )


def sensitivity(
    trained: TrainedModel, pictures: LabelledPictures, name: str = "", *, budget: int | None = None
) -> Sensitivity:
    """Measure a trained model on pictures with the quantization of each part switched off in turn.

    One-bit and ternary weights are put into eight bits, eight-bit ones and activations into float32. Nothing is
    trained again. What remains was learned for the numbers as they were; so a change of the loss can be negative, and
    often is. How far the answers move, ``Change.kl``, has no such sign: it says how loud a part's quantization is, and
    orders the parts (ZeroQ, https://arxiv.org/abs/2001.00281, whose base is the full-precision model, while it is the
    quantized one here).

    ``significant`` and ``heard`` parts differ from 0 by more than z standard errors, z such that the chance of calling
    any part of an indifferent model so is at most 5 % (Bonferroni). With ``budget`` parts are chosen by
    :func:`choose`, and the model is measured with all of them at once.
    """
    model, labels = trained.model, pictures.labels
    parts = quantized_parts(model)
    images = EvaluationPictures(pictures, trained.preprocessing)
    with plain_order(model):
        before = _logits(model, images)

        def cost(some: Sequence[Part]) -> Change:
            with without(some):
                return paired_change(before, _logits(model, images), labels)

        z = NormalDist().inv_cdf(1 - LEVEL / (2 * max(len(parts), 1)))
        changes = [cost([part]) for part in parts]
        found = [
            PartCost(part, one, one.loss_is_beyond(z), one.kl_is_beyond(z))
            for part, one in zip(parts, changes, strict=True)
        ]
        by_kind = [(kind, [part for part in parts if part.kind == kind]) for kind in KINDS]
        kinds = [(kind, sum(part.bytes for part in some), cost(some)) for kind, some in by_kind if some]
        choice = None
        if budget is not None:
            chosen = tuple(one.part for one in choose(found, budget))
            choice = Choice(budget, chosen, cost(chosen) if chosen else None)
    loss, right = _loss(before, labels), before.argmax(axis=1) == labels
    ordered = sorted(found, key=lambda one: -one.change.kl)
    return Sensitivity(
        name, len(labels), float(loss.mean()), float(right.mean()), z, tuple(ordered), tuple(kinds), choice
    )


def choose(found: Sequence[PartCost], budget: int) -> list[PartCost]:
    """Return the parts to train with more bits: those heard, of most divergence a byte first, as many as fit.

    Only parts that take bytes are chosen; whatever takes none is free of the budget.
    """
    worth = [one for one in found if one.heard and one.part.bytes > 0]
    chosen, left = [], budget
    for one in sorted(worth, key=lambda one: -one.change.kl / one.part.bytes):
        if one.part.bytes <= left:
            chosen.append(one)
            left -= one.part.bytes
    return chosen


def paired_change(
    quantized: NDArray[np.floating], without: NDArray[np.floating], labels: NDArray[np.integer]
) -> Change:
    """Compare logits (n, K) of the same pictures, as quantized and without, with labels (n): mean and standard error.

    The error of a mean is the standard deviation (n − 1) of the pictures' differences, over √n.
    """
    losses = _loss(quantized, labels) - _loss(without, labels)
    right = [(logits.argmax(axis=1) == labels).astype(np.float64) for logits in (without, quantized)]
    ours, others = (_log_softmax(logits) for logits in (quantized, without))
    divergence = np.maximum((softmax(quantized) * (ours - others)).sum(axis=1), 0.0)
    return Change(*_mean(losses), *_mean(right[0] - right[1]), *_mean(divergence))


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = np.asarray(logits, dtype=np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def _loss(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Cross-entropy of each picture (n)."""
    return -_log_softmax(logits)[np.arange(len(labels)), labels]


def _logits(model: nn.Module, pictures: EvaluationPictures) -> NDArray[np.float32]:
    """Logits (n, K) as the model is now: ``model_logits`` would tell it its pixels again."""
    batches = (np.arange(start, min(start + BATCH, len(pictures))) for start in range(0, len(pictures), BATCH))
    with torch.inference_mode():
        return np.concatenate(
            [model(normalize(pictures.batch(one), pictures.preprocessing)).float().numpy() for one in batches]
        )
