"""Decoded pictures into batches: training pictures varied, evaluation pictures as the device sees them."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gsb_vit.data.balance import balanced_order
from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.pictures import open_picture
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.models.pixel_inputs import normalize

from .augment import DRAWS, reduced, render, standardize, unstandardize
from .recipe import AugmentRecipe
from .seeds import seeded_generators

# Pictures kept for the batch policy are this much larger than the model's input, so that crops keep their detail.
_MARGIN = 1.25
_TOGETHER = 1 << 24  # numbers of varied pictures that a GPU computes at once: its time is that of launching kernels


class EvaluationPictures:
    """Pictures exactly as the device preprocesses them: ``batch(indices)`` → uint8 (B, H, W, 3), decoded once.

    Where all of them would need more than ``memory_limit_mb``, every batch is decoded anew.
    """

    def __init__(self, pictures: LabelledPictures, preprocessing: Preprocessing, memory_limit_mb: int = 4096) -> None:
        self.pictures = pictures
        self.preprocessing = preprocessing
        height, width = preprocessing.size
        fits = len(pictures) * height * width * 3 <= memory_limit_mb * 2**20
        self._cache = np.empty((len(pictures), height, width, 3), np.uint8) if fits else None
        self._decoded = np.zeros(len(pictures), dtype=bool)

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3). Raises InputError for a file that is not a picture, naming it."""
        if self._cache is None:
            return np.stack(_in_threads(self._decode, indices))
        missing = indices[~self._decoded[indices]]
        for index, array in zip(missing, _in_threads(self._decode, missing), strict=True):
            self._cache[index] = array
        self._decoded[missing] = True
        return self._cache[indices]

    def _decode(self, index: int) -> np.ndarray:
        return self.preprocessing(self.pictures.sources[index])


class View(NamedTuple):
    """Pictures as the student sees them, float (B, 3, H, W), labels (B,), and the same pictures as the teacher does.

    ``indices`` (B,) are those of the training pictures.
    """

    images: Tensor
    labels: Tensor
    taught: Tensor
    indices: Tensor


class TrainingPictures:
    """Batches of varied training pictures, float (B, 3, H, W), normalised, with labels (B,) int64, on ``device``.

    What happens to a picture depends on the seeds given to ``epoch`` and its place in the global batch, never on how
    many processes share that batch. The ``batch`` policy computes on the device, from draws made on the CPU.

    A ``teacher`` that reads pictures of another size or normalisation sees the same view: it is computed in the larger
    of the two sizes, and the smaller one is that picture ``reduced``, with antialiasing. Without variation each sees
    its own evaluation picture. Where ``balanced``, an epoch shows every class equally often
    (``data/balance.py``), with as many pictures as there are.
    """

    def __init__(
        self,
        pictures: LabelledPictures,
        preprocessing: Preprocessing,
        recipe: AugmentRecipe,
        memory_limit_mb: int = 4096,
        device: torch.device | str = "cpu",
        teacher: Preprocessing | None = None,
        balanced: bool = False,
    ) -> None:
        self.pictures = pictures
        self.balanced = balanced
        self.preprocessing = preprocessing
        self.recipe = recipe
        self.device = torch.device(device)
        self.labels = torch.from_numpy(pictures.labels)
        self.teacher = preprocessing if teacher is None else teacher
        self.size = max(preprocessing.size, self.teacher.size, key=math.prod)
        self._plain = [EvaluationPictures(pictures, p, memory_limit_mb) for p in self._read_as]
        drawn = dataclasses.replace(preprocessing, size=self.size)
        self._squares = SquarePictures(pictures, drawn, memory_limit_mb) if recipe.policy == "batch" else None

    @property
    def _read_as(self) -> list[Preprocessing]:
        """The student's preprocessing, and the teacher's where it is another."""
        return [self.preprocessing] if self.teacher == self.preprocessing else [self.preprocessing, self.teacher]

    @property
    def labelled(self) -> int:
        """How many of the pictures have labels; they come first."""
        return int((self.pictures.labels >= 0).sum())

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch: whole batches only, or one short batch where there are fewer pictures than that."""
        return max(1, len(self.pictures) // batch_size)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """The places of an epoch's pictures (n,), in their order: each once, or every class equally often."""
        if self.balanced:
            own = balanced_order(self.pictures.labels[: self.labelled], generator)
            others = np.arange(self.labelled, len(self.pictures))
            return generator.permutation(np.concatenate([own, others])) if len(others) else own
        return generator.permutation(len(self.pictures))

    def epoch(
        self, seed: tuple[int, ...], batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of every batch of one epoch, in an order drawn from ``seed``, for the student alone."""
        for view in self.views(seed, batch_size, rank, world):
            yield view.images, view.labels

    def views(self, seed: tuple[int, ...], batch_size: int, rank: int = 0, world: int = 1) -> Iterator[View]:
        """As ``epoch``, for student and teacher; where they read the same, one tensor is both."""
        for images, places in self._batches(seed, batch_size, rank, world):
            moved = [part.to(self.device, non_blocking=True) for part in images]
            indices = torch.from_numpy(places)
            yield View(moved[0], self.labels[indices].to(self.device, non_blocking=True), moved[-1], indices)

    def render(self, indices: np.ndarray, draws: Tensor, *, own_only: bool = False) -> list[Tensor]:
        """Pictures of the ``batch`` policy, varied as ``draws`` (B, 16) say: the student's, then the teacher's.

        With ``own_only`` the student's alone, the same to the last bit.
        """
        assert self._squares is not None
        squares, aspects = self._squares.batch(indices)
        images = render(squares, aspects, draws, self.size, self.recipe, self.device)
        return self._as(images, self._read_as[:1] if own_only else self._read_as)

    def _both(self, images: Tensor) -> list[Tensor]:
        """Pictures from 0 to 1 in the larger size → one tensor, or the student's and the teacher's."""
        return self._as(images, self._read_as)

    @staticmethod
    def _as(images: Tensor, read_as: list[Preprocessing]) -> list[Tensor]:
        return [standardize(reduced(images, p.size), p) for p in read_as]

    def _batches(
        self, seed: tuple[int, ...], batch_size: int, rank: int, world: int
    ) -> Iterator[tuple[list[Tensor], np.ndarray]]:
        order = self.order(np.random.default_rng(seed))
        parts = []
        for step in range(self.steps(batch_size)):
            whole = order[step * batch_size : (step + 1) * batch_size]
            whole = whole[: len(whole) - len(whole) % world]
            parts.append((step, whole, slice(rank * len(whole) // world, (rank + 1) * len(whole) // world)))
        if self.recipe.policy == "timm":
            yield from self._timm_epoch(parts, seed)
            return
        if self._squares is None:
            for _, whole, own in parts:
                plain = zip(self._plain, self._read_as, strict=True)
                yield [normalize(p.batch(whole[own]), setting) for p, setting in plain], whole[own]
            return
        together = 1
        if self.device.type != "cpu":
            together = max(1, _TOGETHER // (3 * batch_size * math.prod(self.size)))
        for start in range(0, len(parts), together):
            yield from self._varied(parts[start : start + together], seed)

    def _varied(
        self, parts: list[tuple[int, np.ndarray, slice]], seed: tuple[int, ...]
    ) -> Iterator[tuple[list[Tensor], np.ndarray]]:
        """Some batches, varied at once; each has its own draws."""
        draws = []
        for step, whole, own in parts:
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence((*seed, step)).generate_state(1)[0]))
            draws.append(torch.rand(len(whole), DRAWS, generator=generator)[own])
        indices = [whole[own] for _, whole, own in parts]
        lengths = [len(part) for part in indices]
        split = [images.split(lengths) for images in self.render(np.concatenate(indices), torch.cat(draws))]
        for place, batch in enumerate(indices):
            yield [images[place] for images in split], batch

    def _timm_epoch(self, parts: list, seed: tuple[int, ...]) -> Iterator[tuple[list[Tensor], np.ndarray]]:
        """timm's transforms, in worker processes where the recipe asks for them; each picture has its own seed."""
        batches = [
            [(int(i), (*seed, step, own.start + place)) for place, i in enumerate(whole[own])]
            for step, whole, own in parts
        ]
        drawn = dataclasses.replace(self.preprocessing, size=self.size)
        loader = torch.utils.data.DataLoader(
            _TimmDataset(self.pictures, drawn, self.recipe),
            batch_sampler=batches,
            num_workers=self.recipe.workers,
            generator=torch.Generator().manual_seed(0),
        )
        for images, (_, whole, own) in zip(loader, parts, strict=True):
            alike = len(self._read_as) == 1
            yield [images] if alike else self._both(unstandardize(images, self.preprocessing)), whole[own]


class SquarePictures:
    """Whole pictures squeezed into squares a little larger than the model's input, with their width / height.

    The side is at most that of the largest picture: small pictures are not blown up before they are varied.
    """

    def __init__(self, pictures: LabelledPictures, preprocessing: Preprocessing, memory_limit_mb: int) -> None:
        self.pictures = pictures
        side = math.ceil(_MARGIN * max(preprocessing.size))
        arrays = [s.shape[:2] for s in pictures.sources if isinstance(s, np.ndarray)]
        if len(arrays) == len(pictures):
            side = min(side, max(max(shape) for shape in arrays))
        self._squeeze = Preprocessing(size=(side, side), resize="squash", interpolation=preprocessing.interpolation)
        fits = len(pictures) * side * side * 3 <= memory_limit_mb * 2**20
        self._cache = np.empty((len(pictures), side, side, 3), np.uint8) if fits else None
        self._aspects = np.zeros(len(pictures), dtype=np.float32)

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squares uint8 (B, S, S, 3) and aspects float32 (B,)."""
        if self._cache is None:
            decoded = _in_threads(self._decode, indices)
            return np.stack([d[0] for d in decoded]), np.array([d[1] for d in decoded], dtype=np.float32)
        missing = indices[self._aspects[indices] == 0]
        for index, (square, aspect) in zip(missing, _in_threads(self._decode, missing), strict=True):
            self._cache[index], self._aspects[index] = square, aspect
        return self._cache[indices], self._aspects[indices]

    def _decode(self, index: int) -> tuple[np.ndarray, float]:
        picture = open_picture(self.pictures.sources[index])
        return self._squeeze(picture), picture.width / picture.height


class _TimmDataset(torch.utils.data.Dataset):
    def __init__(self, pictures: LabelledPictures, preprocessing: Preprocessing, recipe: AugmentRecipe) -> None:
        from timm.data import create_transform

        self.pictures = pictures
        self.transform = create_transform(
            input_size=(3, *preprocessing.size),
            is_training=True,
            scale=recipe.scale,
            ratio=recipe.ratio,
            hflip=recipe.horizontal_flip,
            vflip=recipe.vertical_flip,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.rand_augment or None,
            interpolation=preprocessing.interpolation,
            re_prob=recipe.random_erasing,
            re_mode="pixel",
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
        for operation in _policy_operations(self.transform):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: tuple[int, tuple[int, ...]]) -> Tensor:
        index, seed = item
        with seeded_generators(seed):
            return self.transform(open_picture(self.pictures.sources[index]))


def _policy_operations(transform: Any) -> Iterator[Any]:
    """The operations of timm's random policies in a transform: RandAugment, AugMix, and AutoAugment's pairs."""
    for one in transform.transforms:
        yield from getattr(one, "ops", ())
        for pair in getattr(one, "policy", ()):
            yield from pair


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest ``bits`` of each channel. None is black, as up to Pillow 12; Pillow 13 calls that an error."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else image.point(lambda _: 0)


def _in_threads(function, indices: np.ndarray) -> list:  # type: ignore[no-untyped-def]
    """Pillow decodes without the interpreter lock, so threads are enough."""
    if len(indices) < 8:
        return [function(i) for i in indices]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, indices))
