"""How pictures vary: crop, flip, colour and erasing from draws; mixing of pairs; the same view at two sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from torch import Tensor
from torch.nn import functional

from gsb_vit.data.preprocess import Preprocessing

from .recipe import AugmentRecipe

DRAWS = 16  # uniform numbers that decide how the batch policy varies one picture


@dataclass(frozen=True)
class Mixes:
    """How each picture of n is mixed with its partner.

    ``shares`` (n, 1): the picture's own part. ``boxes`` (n, 4), top, bottom, left, right as parts of the height and
    width: what CutMix takes from the partner; a row of NaN where the whole pictures are blended.
    """

    shares: Tensor
    boxes: Tensor

    def __getitem__(self, items: Tensor | slice) -> Mixes:
        return Mixes(self.shares[items], self.boxes[items])

    def images(self, own: Tensor, partners: Tensor) -> Tensor:
        """Mixed pictures (n, 3, H, W) of any size: a box's edge lies on the nearest pixel."""
        height, width = own.shape[-2:]
        shares, boxes = self.shares.to(own).view(-1, 1, 1, 1), self.boxes.to(own.device)
        boxed = ~boxes[:, 0].isnan()
        edges = (boxes.nan_to_num() * boxes.new_tensor([height, height, width, width])).round().view(-1, 4, 1, 1)
        y = torch.arange(height, device=own.device).view(1, -1, 1)
        x = torch.arange(width, device=own.device).view(1, 1, -1)
        inside = (y >= edges[:, 0]) & (y < edges[:, 1]) & (x >= edges[:, 2]) & (x < edges[:, 3])
        blended = own * shares + partners * (1 - shares)
        return torch.where(boxed.view(-1, 1, 1, 1), torch.where(inside.unsqueeze(1), partners, own), blended)

    def labels(self, own: Tensor, partners: Tensor, classes: int) -> Tensor:
        """Shares of the classes (n, K) from labels (n,)."""
        shares = self.shares.to(own.device)
        first, second = (one_hot(labels, classes).to(shares) for labels in (own, partners))
        return first * shares + second * (1 - shares)


class Mixing:
    """Mixup and CutMix of a batch, a weight of its own for every picture, drawn by timm from NumPy's generator.

    The i-th picture's partner is the i-th from the end. The last picture of an odd batch stays as it is.
    """

    def __init__(self, mixup: float, cutmix: float, classes: int) -> None:
        self.classes = classes
        self._mix = (
            Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, mode="elem", label_smoothing=0.0, num_classes=classes)
            if mixup > 0 or cutmix > 0
            else None
        )

    def __bool__(self) -> bool:
        return self._mix is not None

    def draw(self, count: int, size: tuple[int, int]) -> Mixes:
        """Draw for an even ``count`` of pictures; boxes lie on the pixels of ``size`` (height, width)."""
        shares, boxed = self._mix._params_per_elem(count)  # type: ignore[union-attr]
        boxes = np.full((count, 4), np.nan)
        scale = np.array([size[0], size[0], size[1], size[1]], dtype=np.float64)
        for i in np.flatnonzero(boxed & (shares != 1.0)):
            box, shares[i] = cutmix_bbox_and_lam((3, *size), shares[i], correct_lam=True)
            boxes[i] = np.array(box) / scale
        return Mixes(torch.from_numpy(shares).float().unsqueeze(1), torch.from_numpy(boxes))

    def together(self, pictures: Sequence[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
        """Mix pictures (B, 3, H, W), given in several sizes, with one draw for all; boxes are drawn at the first size.

        Returns them and labels (B,) as they are without mixing, else shares (B, K).
        """
        pairs = len(labels) - len(labels) % 2
        if self._mix is None:
            return list(pictures), labels
        shares = one_hot(labels, self.classes).to(pictures[0].dtype)
        if not pairs:
            return list(pictures), shares
        mixes = self.draw(pairs, (pictures[0].shape[-2], pictures[0].shape[-1]))
        mixed = [
            torch.cat([mixes.images(images[:pairs], images[:pairs].flip(0)), images[pairs:]]) for images in pictures
        ]
        own = labels[:pairs]
        return mixed, torch.cat([mixes.labels(own, own.flip(0), self.classes).to(shares), shares[pairs:]])

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W) of one size and their labels, as ``together``."""
        (mixed,), targets = self.together([images], labels)
        return mixed, targets


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (n,) → (n, K), a one in the label's place; a picture without a label (−1) has none."""
    return functional.one_hot(labels.clamp(min=0), classes) * (labels >= 0).unsqueeze(1)


def standardize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Pictures (B, 3, H, W) from 0 to 1 → (x − mean) / std."""
    mean, std = (
        torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std)
    )
    return (images - mean) / std


def unstandardize(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The pictures that ``standardize`` was given."""
    mean, std = (
        torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std)
    )
    return images * std + mean


def reduced(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (B, 3, H, W) made smaller: bilinear, antialiased; a new pixel is the weighted mean of all it covers."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return functional.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


def render(
    squares: np.ndarray,
    aspects: np.ndarray,
    draws: Tensor,
    size: tuple[int, int],
    recipe: AugmentRecipe,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Vary squeezed pictures (B, S, S, 3) as draws (B, 16), uniform in [0, 1), say: → (B, 3, *size), from 0 to 1.

    One affine warp does crop (a box of ``scale`` of the area and ``ratio`` of the shape), flips and rotation, edges
    mirrored; then brightness, contrast and saturation by factors in 1 ± the recipe's, and erasing of a box. Equal draws
    give the same view in every size.
    """
    draws = draws.to(device)
    images = torch.from_numpy(np.ascontiguousarray(squares)).to(device).permute(0, 3, 1, 2).float() / 255
    theta = _affine(draws, torch.from_numpy(aspects).to(device), size, recipe)
    grid = functional.affine_grid(theta, [len(images), 3, *size], align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    images = _colour(images, draws, recipe)
    if recipe.random_erasing > 0:
        images = _erase(images, draws, recipe.random_erasing)
    return images


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
