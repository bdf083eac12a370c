"""From a picture to the uint8 array a model reads; the same code evaluates in training and runs on the device."""

import io
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from gsb_vit.errors import InputError

# What Pillow's decoders raise on a damaged file: each format trips over its own broken header in its own way.
_DAMAGED = (
    Image.DecompressionBombError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
)

Picture = Union[str, "os.PathLike[str]", bytes, BinaryIO, Image.Image, NDArray[Any]]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: a drive has one

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
RESIZES = ("crop", "squash")
# Modes whose pixels are wider than 8 bits; Pillow's own conversion of these to "L" clips instead of scaling.
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


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
        if min(self.size) < 1:
            raise InputError(f"preprocessing: size {self.size} must be two whole numbers above 0 (height, width)")
        if self.resize not in RESIZES:
            raise InputError(f"preprocessing: resize {self.resize!r} is unknown; use one of {', '.join(RESIZES)}")
        if self.interpolation not in FILTERS:
            allowed = ", ".join(FILTERS)
            raise InputError(f"preprocessing: interpolation {self.interpolation!r} is unknown; use one of {allowed}")
        (ratio,) = _numbers("crop_ratio", (self.crop_ratio,), 1)
        object.__setattr__(self, "crop_ratio", ratio)
        if not 0 < ratio <= 1:
            raise InputError(f"preprocessing: crop_ratio {ratio} must be above 0 and at most 1")
        if min(self.std) <= 0:
            raise InputError(f"preprocessing: std {self.std} must be above 0 in every channel")

    def __call__(self, picture: Picture) -> NDArray[np.uint8]:
        """Open, orient, resize and crop ``picture``: → uint8 (H, W, 3). Raises what :func:`open_picture` raises."""
        image = open_picture(picture)
        height, width = self.size
        filter_ = FILTERS[self.interpolation]
        if self.resize == "squash":
            if image.size != (width, height):
                image = image.resize((width, height), filter_)
            return np.array(image, dtype=np.uint8)
        # Only the part that is kept is resized: a picture of any proportions costs no more than its own pixels.
        return np.array(
            image.resize((width, height), filter_, box=self._kept(image.width, image.height)), dtype=np.uint8
        )

    def _kept(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that ``crop`` keeps: left, top, right, bottom in its own pixels."""
        factor = max(self.size[0] / height, self.size[1] / width) / self.crop_ratio
        kept_height, kept_width = min(self.size[0] / factor, height), min(self.size[1] / factor, width)
        left, top = (width - kept_width) / 2, (height - kept_height) / 2
        return left, top, left + kept_width, top + kept_height

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


def open_picture(picture: Picture) -> Image.Image:
    """Open a picture as 8-bit RGB.

    ``picture`` is a path, a file's bytes, a file object opened in binary mode (read from where it stands), a Pillow
    image, or an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16. URLs are refused.
    The EXIF orientation is applied; transparency is laid on white; palettes, greyscale and CMYK are converted; 16-bit
    values are divided by 257 (65535 → 255) rather than clipped. Only the first frame of an animation is read.

    Raises:
        InputError: for a missing, truncated or unreadable file, a URL, an array of another shape or type, and for what
            is no picture.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Image.Image):
        return _decode(picture, "the picture")
    data, name = _read(picture)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _decode(image, name)
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture that Pillow can read; give a JPEG, PNG or the like") from error
    except InputError:
        raise
    except _DAMAGED as error:
        raise InputError(f"{name}: the picture cannot be decoded ({_one_line(error)}); is it truncated?") from error


def _read(picture: Any) -> tuple[bytes, str]:
    """The bytes of a picture file that is not decoded yet, and its name for messages."""
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes(picture), f"a picture of {len(bytes(picture))} bytes"
    if callable(getattr(picture, "read", None)):
        name = f"the file {getattr(picture, 'name', None) or type(picture).__name__}"
        try:
            data = picture.read()
        except (OSError, ValueError) as error:  # a closed file, a file of text that is not UTF-8
            raise InputError(f"{name}: cannot be read ({_one_line(error)}); open it in binary mode") from error
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise InputError(f"{name} gives {type(data).__name__}, not bytes; open it in binary mode")
        return bytes(data), name
    if not isinstance(picture, (str, os.PathLike)):
        raise InputError(
            f"a {type(picture).__name__} is not a picture; give a path, the bytes of a file, a file object, a Pillow "
            "image or a NumPy array"
        )
    path = Path(picture)
    if _URL.match(os.fspath(picture)) and not path.exists():
        raise InputError(f"{os.fspath(picture)}: URLs are not fetched; download the picture and give its path or bytes")
    try:
        return path.read_bytes(), str(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise InputError(f"{path}: cannot be read ({reason}); give a picture file") from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except _DAMAGED as error:
        raise InputError(f"{name}: the picture cannot be decoded ({_one_line(error)}); is it truncated?") from error
    if image.mode in _WIDE_MODES:
        return _from_wide(np.asarray(image), name).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_wide(values: NDArray[Any], name: str) -> Image.Image:
    """Greyscale (H, W) of 16 bits, or of 32 bits that hold 16-bit values (as Pillow opens 16-bit PNGs)."""
    if not np.all(np.isfinite(values)):
        raise InputError(f"{name} holds numbers that are not finite; save it as an 8-bit or 16-bit picture")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        raise InputError(f"{name}: values {low:g} … {high:g} are not 16 bits wide; save it as an 8-bit picture")
    if values.dtype.kind == "f" and high <= 1:
        values = values.astype(np.float64) * 65535
    return Image.fromarray(_to_8_bits(values))


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.rint(values.astype(np.float64) / 257).astype(np.uint8)


def _from_array(array: NDArray[Any]) -> Image.Image:
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shape_fits or array.size == 0 or array.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"an array of shape {array.shape} and type {array.dtype} is not a picture; "
            "give uint8 or uint16 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.dtype == np.uint16:
        array = _to_8_bits(array)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return _decode(Image.fromarray(np.ascontiguousarray(array)), "the picture")


def _numbers(name: str, values: Any, count: int, *, whole: bool = False) -> tuple[Any, ...]:
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if (
        not isinstance(values, (tuple, list))
        or len(values) != count
        or not all(
            isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value) for value in values
        )
    ):
        kind = "whole numbers" if whole else "finite numbers"
        raise InputError(f"preprocessing: {name} {values!r} must be {count} {kind}")
    return tuple(int(value) if whole else float(value) for value in values)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
