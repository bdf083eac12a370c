"""One picture or many: what a classifier is asked about, in batches."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsb_vit.data.held_out import BATCH
from gsb_vit.data.pictures import Picture
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError


def is_many(pictures: Any) -> bool:
    """Whether ``pictures`` are many: an iterable that is no picture itself, or an array of four axes."""
    if isinstance(pictures, np.ndarray):
        return pictures.ndim == 4
    one = isinstance(pictures, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image))
    return not one and not callable(getattr(pictures, "read", None)) and isinstance(pictures, Iterable)


def is_stored(pictures: Any) -> bool:
    """Whether many pictures are there already, so that the answer is there at once, too."""
    return isinstance(pictures, (list, tuple, np.ndarray))


def batches(
    pictures: Iterable[Picture], preprocessing: Preprocessing, max_pixels: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Read pictures as they come: → uint8 (at most ``BATCH``, H, W, 3) each.

    Raises:
        InputError: for what is not a picture, with its place where it has no name; the pictures before it come first.
    """
    numbered = enumerate(pictures)
    while True:
        batch: list[NDArray[np.uint8]] = []
        problem: InputError | None = None
        for index, picture in islice(numbered, BATCH):
            try:
                batch.append(preprocessing(picture, max_pixels=max_pixels))
            except InputError as error:
                named = isinstance(picture, (str, os.PathLike))
                problem = error if named else InputError(f"picture {index}, counted from 0: {error}")
                break
        if batch:
            yield np.stack(batch)
        if problem is not None:
            raise problem
        if not batch:
            return
