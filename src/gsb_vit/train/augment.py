"""Decoded pictures into batches: training pictures varied, evaluation pictures as the device sees them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing, open_picture

from .recipe import AugmentRecipe
from .seeds import seeded_generators

# Pictures kept for the batch policy are this much larger than the model's input, so that crops keep their detail.
_MARGIN = 1.25
DRAWS = 16  # uniform numbers that decide how the batch policy varies one picture
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


class TrainingPictures:
    """Batches of varied training pictures, float (B, 3, H, W), normalised, with labels (B,) int64, on ``device``.

    What happens to a picture depends on the seeds given to ``epoch`` and its place in the global batch, never on how
    many processes share that batch. The ``batch`` policy computes on the device, from draws made on the CPU.
    """

    def __init__(
        self,
        pictures: LabelledPictures,
        preprocessing: Preprocessing,
        recipe: AugmentRecipe,
        memory_limit_mb: int = 4096,
        device: torch.device | str = "cpu",
    ) -> None:
        self.pictures = pictures
        self.preprocessing = preprocessing
        self.recipe = recipe
        self.device = torch.device(device)
        self.labels = torch.from_numpy(pictures.labels)
        self._plain = EvaluationPictures(pictures, preprocessing, memory_limit_mb)
        self._squares = SquarePictures(pictures, preprocessing, memory_limit_mb) if recipe.policy == "batch" else None

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch: whole batches only, or one short batch where there are fewer pictures than that."""
        return max(1, len(self.pictures) // batch_size)

    def epoch(
        self, seed: tuple[int, ...], batch_size: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's part of every batch of one epoch, in an order drawn from ``seed``."""
        for images, labels in self._batches(seed, batch_size, rank, world):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _batches(
        self, seed: tuple[int, ...], batch_size: int, rank: int, world: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = np.random.default_rng(seed).permutation(len(self.pictures))
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
                yield normalise(self._plain.batch(whole[own]), self.preprocessing), self.labels[whole[own]]
            return
        together = 1
        if self.device.type != "cpu":
            together = max(1, _TOGETHER // (3 * batch_size * math.prod(self.preprocessing.size)))
        for start in range(0, len(parts), together):
            yield from self._varied(self._squares, parts[start : start + together], seed)

    def _varied(
        self, source: SquarePictures, parts: list[tuple[int, np.ndarray, slice]], seed: tuple[int, ...]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Some batches, varied at once; each has its own draws."""
        draws = []
        for step, whole, own in parts:
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence((*seed, step)).generate_state(1)[0]))
            draws.append(torch.rand(len(whole), DRAWS, generator=generator)[own])
        indices = [whole[own] for _, whole, own in parts]
        squares, aspects = source.batch(np.concatenate(indices))
        images = vary(squares, aspects, torch.cat(draws), self.preprocessing, self.recipe, self.device)
        for part, batch in zip(images.split([len(part) for part in indices]), indices, strict=True):
            yield part, self.labels[batch]

    def _timm_epoch(self, parts: list, seed: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """timm's transforms, in worker processes where the recipe asks for them; each picture has its own seed."""
        batches = [
            [(int(i), (*seed, step, own.start + place)) for place, i in enumerate(whole[own])]
            for step, whole, own in parts
        ]
        yield from torch.utils.data.DataLoader(
            _TimmDataset(self.pictures, self.preprocessing, self.recipe),
            batch_sampler=batches,
            num_workers=self.recipe.workers,
            generator=torch.Generator().manual_seed(0),
        )


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

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: tuple[int, tuple[int, ...]]) -> tuple[Tensor, int]:
        index, seed = item
        with seeded_generators(seed):
            return self.transform(open_picture(self.pictures.sources[index])), int(self.pictures.labels[index])


class Mixing:
    """Mixup and CutMix of a batch, a weight of its own for every picture, by timm; drawn from NumPy's generator.

    Images (B, 3, H, W) and labels (B,) → images, and labels (B,) as they are without mixing, else shares (B, K). The
    last picture of an odd batch stays as it is.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int) -> None:
        self.classes = classes
        self._mix = (
            Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, mode="elem", label_smoothing=0.0, num_classes=classes)
            if mixup > 0 or cutmix > 0
            else None
        )

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._mix is None:
            return images, labels
        shares = functional.one_hot(labels, self.classes).to(images.dtype)
        pairs = len(images) - len(images) % 2
        if pairs:
            images, even = images.clone(), images[:pairs].clone()
            images[:pairs], shares[:pairs] = self._mix(even, labels[:pairs])
        return images, shares


def normalise(pictures: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """uint8 (B, H, W, 3) → float (B, 3, H, W): (u / 255 − mean) / std."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return ((images - mean) / std).contiguous()


def vary(
    squares: np.ndarray,
    aspects: np.ndarray,
    draws: Tensor,
    preprocessing: Preprocessing,
    recipe: AugmentRecipe,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Vary squeezed pictures (B, S, S, 3) as draws (B, 16), uniform in [0, 1), say: → float (B, 3, H, W) on ``device``.

    One affine warp does crop (a box of ``scale`` of the area and ``ratio`` of the shape), flips and rotation, edges
    mirrored; then brightness, contrast and saturation by factors in 1 ± the recipe's, and erasing of a box.
    """
    draws = draws.to(device)
    images = torch.from_numpy(np.ascontiguousarray(squares)).to(device).permute(0, 3, 1, 2).float() / 255
    theta = _affine(draws, torch.from_numpy(aspects).to(device), preprocessing.size, recipe)
    grid = functional.affine_grid(theta, [len(images), 3, *preprocessing.size], align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    images = _colour(images, draws, recipe)
    if recipe.random_erasing > 0:
        images = _erase(images, draws, recipe.random_erasing)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (images - mean) / std


def _affine(draws: Tensor, aspects: Tensor, size: tuple[int, int], recipe: AugmentRecipe) -> Tensor:
    """Maps from output to input coordinates, both in [−1, 1]: (B, 2, 3)."""
    low, high = recipe.scale
    area = low + (high - low) * draws[:, 0]
    log_low, log_high = (math.log(r * size[1] / size[0]) for r in recipe.ratio)
    shape = torch.exp(log_low + (log_high - log_low) * draws[:, 1])
    # Half extents of the box in units of the picture's height; the area is a share of the picture's.
    height = torch.sqrt(area * aspects / shape).clamp(max=1.0)
    width = torch.minimum(height * shape, aspects)
    angle = (2 * draws[:, 2] - 1) * math.radians(recipe.rotation)
    flip_x = 1 - 2 * (draws[:, 3] < recipe.horizontal_flip).float()
    flip_y = 1 - 2 * (draws[:, 4] < recipe.vertical_flip).float()
    shift_x = (2 * draws[:, 5] - 1) * (1 - width / aspects)
    shift_y = (2 * draws[:, 6] - 1) * (1 - height)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack([cos * width * flip_x / aspects, -sin * height * flip_y / aspects, shift_x], dim=1)
    row_y = torch.stack([sin * width * flip_x, cos * height * flip_y, shift_y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def _colour(images: Tensor, draws: Tensor, recipe: AugmentRecipe) -> Tensor:
    def factor(column: int, strength: float) -> Tensor:
        return (1 + (2 * draws[:, column] - 1) * strength).view(-1, 1, 1, 1)

    grey = (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    images = grey + (images - grey) * factor(7, recipe.saturation)
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (middle + (images - middle) * factor(8, recipe.contrast)) * factor(9, recipe.brightness)
    return images.clamp(0, 1)


def _erase(images: Tensor, draws: Tensor, probability: float) -> Tensor:
    """Set a box of 2 … 33 % of the area to mid grey, with the given probability per picture."""
    height, width = images.shape[-2:]
    area = 0.02 + 0.31 * draws[:, 10]
    shape = torch.exp((2 * draws[:, 11] - 1) * math.log(3.0))
    half_y, half_x = torch.sqrt(area * shape) / 2, torch.sqrt(area / shape) / 2
    y = torch.arange(height, device=images.device).view(1, -1, 1).add(0.5) / height
    x = torch.arange(width, device=images.device).view(1, 1, -1).add(0.5) / width
    column = [d.view(-1, 1, 1) for d in (draws[:, 12], draws[:, 13], half_y, half_x, draws[:, 14])]
    inside = ((y - column[0]).abs() < column[2]) & ((x - column[1]).abs() < column[3]) & (column[4] < probability)
    return torch.where(inside.unsqueeze(1), 0.5, images)


def _in_threads(function, indices: np.ndarray) -> list:  # type: ignore[no-untyped-def]
    """Pillow decodes without the interpreter lock, so threads are enough."""
    if len(indices) < 8:
        return [function(i) for i in indices]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, indices))
