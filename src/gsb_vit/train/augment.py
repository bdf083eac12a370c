"""Decoded pictures into batches: training pictures varied, evaluation pictures as the device sees them."""

from __future__ import annotations

import math

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional

from gsb_vit.data.preprocess import Preprocessing

from .recipe import AugmentRecipe

DRAWS = 16  # uniform numbers that decide how the batch policy varies one picture


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
