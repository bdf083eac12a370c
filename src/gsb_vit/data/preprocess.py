"""From a picture to the uint8 array a model reads; the same code evaluates in training and runs on the device."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.errors import InputError, shown

from .pictures import MAX_PIXELS, Picture, open_picture, pixel_limit
from .resample import FILTERS, Box, resize

RESIZES = ("crop", "squash")


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the model's input.

    ``resize="crop"`` keeps the largest centred part that has the proportions of ``size``, ``crop_ratio`` of it along
    each side, and scales it to ``size``; ``"squash"`` scales the whole picture to ``size`` and ignores ``crop_ratio``.
    ``mean`` and ``std`` are per channel on the 0 … 1 scale; they are not applied here (export folds them into the
    patch embedding, training applies them to the batch).

    Calling it gives uint8 (H, W, 3), RGB.

    Raises:
        InputError: for values out of range, naming the field.
    """

    size: tuple[int, int]
    resize: str = "crop"
    crop_ratio: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _numbers("size", self.size, 2, whole=True))
        object.__setattr__(self, "mean", _numbers("mean", self.mean, 3))
        object.__setattr__(self, "std", _numbers("std", self.std, 3))
        if min(self.size) < 1 or self.size[0] * self.size[1] > MAX_PIXELS:
            raise InputError(
                f"preprocessing: size {shown(self.size)} must be two whole numbers above 0 (height, width), at most "
                f"{MAX_PIXELS:,} pixels"
            )
        if not isinstance(self.resize, str) or self.resize not in RESIZES:
            raise InputError(f"preprocessing: resize {shown(self.resize)} is unknown; use one of {', '.join(RESIZES)}")
        if not isinstance(self.interpolation, str) or self.interpolation not in FILTERS:
            allowed = ", ".join(FILTERS)
            raise InputError(
                f"preprocessing: interpolation {shown(self.interpolation)} is unknown; use one of {allowed}"
            )
        (ratio,) = _numbers("crop_ratio", (self.crop_ratio,), 1)
        object.__setattr__(self, "crop_ratio", ratio)
        if not 0 < ratio <= 1:
            raise InputError(f"preprocessing: crop_ratio {ratio} must be above 0 and at most 1")
        if min(self.std) <= 0:
            raise InputError(f"preprocessing: std {self.std} must be above 0 in every channel")

    def __call__(self, picture: Picture, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
        """Open, orient, resize and crop ``picture``: → uint8 (H, W, 3), with Pillow.

        The native engine makes the same pixels (``runtime/pictures.py``). Arguments and errors: :func:`open_picture`,
        and a picture so long that one of its width would have too many pixels.
        """
        image = open_picture(picture, max_pixels=max_pixels)
        # Only the part that is kept is resized: a picture of any proportions costs no more than its own pixels.
        limit = max(pixel_limit(max_pixels), image.width * image.height)
        return np.array(resize(image, self.size, self.interpolation, self._kept(image.width, image.height), limit))

    def _kept(self, width: int, height: int) -> Box:
        """The part of a picture that is kept: left, top, right, bottom in its own pixels."""
        if self.resize == "squash":
            return 0, 0, width, height
        factor = max(self.size[0] / height, self.size[1] / width) / self.crop_ratio
        kept_height, kept_width = min(self.size[0] / factor, height), min(self.size[1] / factor, width)
        left, top = (width - kept_width) / 2, (height - kept_height) / 2
        return left, top, min(left + kept_width, width), min(top + kept_height, height)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, as stored in model files."""
        return {
            "size": list(self.size),
            "resize": self.resize,
            "crop_ratio": self.crop_ratio,
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_json(cls, values: Any) -> "Preprocessing":
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: for a missing or unknown key or a value out of range, naming it.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"preprocessing must be a JSON object, not {type(values).__name__}")
        names = ("size", "resize", "crop_ratio", "interpolation", "mean", "std")
        missing = [name for name in names if name not in values]
        unknown = [str(name) for name in values if name not in names]
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has the unknown key {', '.join(unknown)}"
            raise InputError(f"preprocessing {what}; its keys are {', '.join(names)}")
        return cls(**values)


def _numbers(name: str, values: Any, count: int, *, whole: bool = False) -> tuple[Any, ...]:
    if (
        not isinstance(values, (tuple, list))
        or len(values) != count
        or not all(_is_number(value, whole) for value in values)
    ):
        kind = "whole numbers" if whole else "finite numbers"
        raise InputError(f"preprocessing: {name} {shown(values)} must be {count} {kind}")
    return tuple(int(value) if whole else float(value) for value in values)


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer) if whole else (int, float, np.number)):
        return False
    try:
        return not isinstance(value, np.complexfloating) and math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
