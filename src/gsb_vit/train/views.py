"""Views of the training pictures that are drawn once, with what the teacher says of each kept in the run's folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gsb_vit.data.digests import digests
from gsb_vit.errors import InputError
from gsb_vit.models.trained import read_tensors, write_tensors

from .augment import DRAWS, Mixes, Mixing
from .batches import TrainingPictures
from .distill import DistillationTask, Lesson
from .precision import fast_attention
from .seeds import seeded_generators

_AT_ONCE = 128  # pictures that the teacher sees at once while a view is drawn
_LARGEST = 60000.0  # logits beyond it are cut, so that float16 holds them


class Taught(NamedTuple):
    """A batch: the student's pictures, labels, and labels as the loss takes them; the teacher's pictures or logits.

    ``indices`` (B,) are those of the training pictures.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    taught: Tensor
    indices: Tensor


class LiveViews:
    """New views in every epoch; the teacher is asked for each batch. ``waited`` counts the seconds it took."""

    def __init__(self, training: TrainingPictures, mixing: Mixing, task: DistillationTask) -> None:
        self.training = training
        self.mixing = mixing
        self.task = task
        self.waited = 0.0
        self.fetched = 0.0

    def batches(self, seed: tuple[int, ...], epoch: int, batch_size: int, rank: int, world: int) -> Iterator[Taught]:
        """This process's part of the batches of one epoch."""
        self.waited = self.fetched = 0.0
        views = self.training.views(seed, batch_size, rank, world)
        for _ in range(self.training.steps(batch_size)):
            asked = time.perf_counter()
            images, labels, taught, indices = next(views)
            self.fetched += time.perf_counter() - asked
            if taught is images:
                (images,), targets = self.mixing.together([images], labels)
                taught = images
            else:
                (images, taught), targets = self.mixing.together([images, taught], labels)
            yield Taught(images, labels, targets, taught, indices)

    def lesson(self, batch: Taught) -> Lesson | None:
        """What the teacher says of a batch; within the autocast that it is to have."""
        asked = time.perf_counter()
        lesson = self.task.lesson(batch.taught)
        self.waited += time.perf_counter() - asked
        return lesson


@dataclass(frozen=True)
class Plan:
    """One view of every picture: an ``order`` of them (n,), what varies each (n, 16), and how pairs are mixed.

    Place i of the first m, the largest even number up to n, has place m − 1 − i for a partner.
    """

    order: np.ndarray
    draws: Tensor
    mixes: Mixes | None

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self.order) // 2

    def partners(self, places: np.ndarray) -> np.ndarray:
        """The places of the partners; the last place of an odd number is its own."""
        return np.where(places < 2 * self.pairs, 2 * self.pairs - 1 - places, places)


class CachedViews:
    """``count`` views of every picture, drawn once from ``seed``; epoch e shows view e mod count, batched anew.

    What the teacher says of view v is asked when an epoch first needs it, and kept as float16 (n, K) in
    ``FOLDER/NAME-v.safetensors``, which exists in full or not at all. So a run that was stopped goes on with the same
    numbers. Pictures are not kept: they are computed again from the same draws and mixes.
    """

    def __init__(
        self,
        training: TrainingPictures,
        mixing: Mixing,
        task: DistillationTask,
        count: int,
        seed: tuple[int, ...],
        stem: Path,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        shared: Callable[[], None] = lambda: None,
    ) -> None:
        self.training = training
        self.mixing = mixing
        self.task = task
        self.count = count
        self.seed = seed
        self.stem = stem
        self.autocast = autocast
        self.shared = shared
        self.waited = 0.0
        self.fetched = 0.0

    def plan(self, view: int) -> Plan:
        """What is drawn for a view; the generators of the process are left alone."""
        seed = (*self.seed, view)
        order = self.training.order(np.random.default_rng(seed))
        with seeded_generators(seed):
            draws = torch.rand(len(order), DRAWS)
            pairs = len(order) // 2
            height, width = self.training.preprocessing.size
            mixes = self.mixing.draw(2 * pairs, (height, width)) if self.mixing and pairs else None
        return Plan(order, draws, mixes)

    def pictures(
        self, plan: Plan, places: np.ndarray, *, own_only: bool = False
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Pictures at these places of a plan, (B, 3, H, W) for the student and the teacher; labels; mixed labels.

        With ``own_only`` the student's alone: what the teacher says of its own is known already.
        """
        device, labels = self.training.device, self.training.labels
        own = labels[plan.order[places]].to(device)
        if plan.mixes is None:
            rendered = self.training.render(plan.order[places], plan.draws[places], own_only=own_only)
            return rendered, own, own
        partners = plan.partners(places)
        needed, where = np.unique(np.concatenate([places, partners]), return_inverse=True)
        mine, theirs = torch.from_numpy(where.reshape(2, -1)).to(device)
        mixes = _padded(plan.mixes, len(plan.order))[torch.from_numpy(places)]
        rendered = self.training.render(plan.order[needed], plan.draws[needed], own_only=own_only)
        others = labels[plan.order[partners]].to(device)
        mixed = [mixes.images(images[mine], images[theirs]) for images in rendered]
        return mixed, own, mixes.labels(own, others, self.mixing.classes)

    def logits(self, view: int, plan: Plan, write: bool) -> Tensor:
        """What the teacher says of every place of a view, float16 (n, K), from its file, which is made if missing."""
        path = self.stem.with_name(f"{self.stem.name}-{view:03}.safetensors")
        if write and self._kept(path) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, {"logits": self._ask(plan)}, {"view": view, "seed": list(self.seed)})
        self.shared()  # in every process, whether or not it sees the file already
        kept = self._kept(path)
        if kept is None:
            raise InputError(f"{path} is damaged or not seen by all processes; remove it and go on with --resume")
        return kept

    def _kept(self, path: Path) -> Tensor | None:
        """The logits in a view's file; None where it is missing, damaged, or of another number of pictures."""
        try:
            kept = read_tensors(path)[0].get("logits")
        except InputError:
            return None
        return kept if kept is not None and len(kept) == len(self.training.pictures) else None

    def _ask(self, plan: Plan) -> Tensor:
        parts = []
        for start in range(0, len(plan.order), _AT_ONCE):
            places = np.arange(start, min(start + _AT_ONCE, len(plan.order)))
            images = self.pictures(plan, places)[0][-1]
            with self.autocast(), fast_attention(self.task.models):
                lesson = self.task.lesson(images)
            assert lesson is not None
            parts.append(lesson.logits.float().clamp(-_LARGEST, _LARGEST).half().cpu())
        return torch.cat(parts)

    def batches(self, seed: tuple[int, ...], epoch: int, batch_size: int, rank: int, world: int) -> Iterator[Taught]:
        """As ``LiveViews.batches``: pairs stay together, and their order is drawn from ``seed``."""
        view = epoch % self.count
        plan = self.plan(view)
        asked = time.perf_counter()
        logits = self.logits(view, plan, write=rank == 0)
        self.waited, self.fetched = time.perf_counter() - asked, 0.0
        shuffled = np.random.default_rng(seed).permutation(plan.pairs)
        places = np.stack([shuffled, 2 * plan.pairs - 1 - shuffled], axis=1).reshape(-1)
        places = np.concatenate([places, np.arange(2 * plan.pairs, len(plan.order))])
        for step in range(self.training.steps(batch_size)):
            asked = time.perf_counter()
            whole = places[step * batch_size : (step + 1) * batch_size]
            whole = whole[: len(whole) - len(whole) % world]
            part = whole[rank * len(whole) // world : (rank + 1) * len(whole) // world]
            images, labels, targets = self.pictures(plan, part, own_only=True)
            said = logits[torch.from_numpy(part)].float().to(self.training.device)
            self.fetched += time.perf_counter() - asked
            yield Taught(images[0], labels, targets, said, torch.from_numpy(plan.order[part]))

    def lesson(self, batch: Taught) -> Lesson:
        """What the teacher said of a batch's views."""
        return Lesson(batch.taught, [])


def views_key(training: TrainingPictures, mixes: Sequence[float], teacher: nn.Module, seed: tuple[int, ...]) -> str:
    """Name what the teacher says of the views: 16 digits of SHA-256 over all that decides it.

    That is the pictures and their labels, how both models read them, how they vary and mix (``mixes``: the strengths of
    mixup and cutmix), the teacher's tensors, and the seed.
    """
    digest = hashlib.sha256()
    digest.update("\n".join(digests(training.pictures.sources)).encode())
    digest.update(training.pictures.labels.tobytes())
    digest.update(repr([training.preprocessing, training.teacher, training.recipe, list(mixes), seed]).encode())
    digest.update(b"balanced" if training.balanced else b"")
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _padded(mixes: Mixes, count: int) -> Mixes:
    """The mixes of all places: the last of an odd number stays as it is."""
    missing = count - len(mixes.shares)
    shares = torch.cat([mixes.shares, torch.ones(missing, 1)])
    return Mixes(shares, torch.cat([mixes.boxes, torch.full((missing, 4), torch.nan, dtype=mixes.boxes.dtype)]))
