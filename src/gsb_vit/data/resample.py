"""Resize a picture horizontally, then vertically, with Pillow's arithmetic: docs/numerics.md.

Pillow 13 goes vertically first where that is cheaper, and its 8-bit numbers in between make that another picture. Where
the order is left to it, Pillow does both passes; else it does the first, and the second is done here.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsb_vit.errors import InputError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}
_BITS = 22  # behind the point of a weight

Box = tuple[float, float, float, float]  # left, top, right, bottom


def resize(image: Image.Image, size: tuple[int, int], filter_: str, box: Box, max_pixels: int) -> Image.Image:
    """Resize the part ``box`` of an RGB image to ``size`` (H, W).

    Raises:
        InputError: the picture between the two passes has more than ``max_pixels`` pixels, and more than the result.
    """
    height, width = size
    fewer_rows = image.height - height
    if filter_ == "nearest" or fewer_rows <= max(0, 2 * (image.width - width)):
        return image.resize((width, height), FILTERS[filter_], box=box)
    first, weights = _weights(image.height, box[1], box[3], height, filter_)
    top, bottom = int(first[0]), min(int(first[-1]) + weights.shape[1], image.height)
    if width * (bottom - top) > max(max_pixels, width * height):
        raise InputError(
            f"a picture of {image.width} × {image.height} pixels is too long: {bottom - top} rows of {width} are more "
            f"than {max_pixels} pixels; cut it, or raise max_pixels"
        )
    part = image.crop((0, top, image.width, bottom))
    part = part.resize((width, bottom - top), FILTERS[filter_], box=(box[0], 0, box[2], bottom - top))
    rows = np.asarray(part).reshape(bottom - top, width * 3)
    result = np.empty((height, width * 3), dtype=np.uint8)
    for output, (start, row_weights) in enumerate(zip(first - top, weights, strict=True)):
        taken = rows[start : start + len(row_weights)].astype(np.int32)
        total = row_weights[: len(taken)] @ taken + (1 << (_BITS - 1))
        result[output] = np.clip(total >> _BITS, 0, 255)
    return Image.fromarray(result.reshape(height, width, 3))


def _weights(
    pixels: int, begin: float, end: float, outputs: int, filter_: str
) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """The first pixel of each output, (outputs), and the weights from there on, (outputs, taps); 2^22 stands for 1."""
    scale = float(np.float32(end) - np.float32(begin)) / outputs
    widening = max(scale, 1.0)
    support = _SUPPORT[filter_] * widening
    centre = float(np.float32(begin)) + (np.arange(outputs) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    count = np.minimum((centre + support + 0.5).astype(np.intp), pixels) - first
    place = np.arange(count.max())
    at = (place + first[:, None] - centre[:, None] + 0.5) * (1.0 / widening)
    exact = np.where(place < count[:, None], _filter(np.abs(at), filter_), 0.0)
    total = np.zeros(outputs)
    for column in exact.T:  # in order
        total += column
    exact /= total[:, None]
    return first, np.where(exact < 0, exact * 2**_BITS - 0.5, exact * 2**_BITS + 0.5).astype(np.int32)


def _filter(t: NDArray[np.float64], filter_: str) -> NDArray[np.float64]:
    if filter_ == "bilinear":
        return np.where(t < 1, 1.0 - t, 0.0)
    near = ((-0.5 + 2.0) * t - (-0.5 + 3.0)) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * -0.5
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))
