"""One picture or many: what a classifier is asked about, as the pixels it reads, in batches."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gsb_vit.data.digests import bytes_digest, digest
from gsb_vit.data.held_out import BATCH
from gsb_vit.data.pictures import Picture, open_picture, pixel_limit
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.files import as_path

_MOST = 2**62  # pixels, in numbers that C has


def is_many(pictures: Any) -> bool:
    """Whether ``pictures`` are many: an iterable that is no picture itself, or an array of four axes."""
    if isinstance(pictures, np.ndarray):
        return pictures.ndim == 4
    one = isinstance(pictures, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image))
    return not one and not callable(getattr(pictures, "read", None)) and isinstance(pictures, Iterable)


def is_stored(pictures: Any) -> bool:
    """Whether many pictures are there already, so that the answer is there at once, too."""
    return isinstance(pictures, (list, tuple, np.ndarray))


def prepare(
    picture: Picture, preprocessing: Preprocessing, backend: str, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """Open, orient, resize and crop a picture: → uint8 (H, W, 3), the same bits as ``preprocessing`` makes with Pillow.

    ``backend`` is ``"reference"``, which asks ``preprocessing`` itself, or an instruction set of the native extension.

    Raises:
        InputError: as ``preprocessing``.
    """
    if backend == "reference":
        return preprocessing(picture, max_pixels=max_pixels)
    from gsb_vit import _native

    if _is_plain(picture):
        pixels = np.ascontiguousarray(picture)
    else:
        pixels = np.asarray(open_picture(picture, max_pixels=max_pixels))
    how = preprocessing
    limit = min(max(pixel_limit(max_pixels), pixels.shape[0] * pixels.shape[1]), _MOST)
    try:
        prepared: NDArray[np.uint8] = _native.prepare(
            pixels, how.size, how.resize, how.crop_ratio, how.interpolation, backend, limit
        )
    except _native.NativeError as error:
        raise InputError(str(error)) from error
    return prepared


def picture_digest(picture: Picture) -> str:
    """The digest of a picture: that of its file's bytes where it has any, else of its pixels.

    A file object is left where it was.

    Raises:
        InputError: for a file that cannot be read.
    """
    if isinstance(picture, (str, os.PathLike)):
        return digest(as_path(picture, "a picture"))
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes_digest(bytes(picture))
    if isinstance(picture, (np.ndarray, Image.Image)):
        return digest(np.asarray(picture))
    if callable(getattr(picture, "read", None)) and callable(getattr(picture, "seek", None)):
        file: Any = picture
        place = file.tell()
        data = file.read()
        file.seek(place)
        return bytes_digest(data) if isinstance(data, bytes) else ""
    return ""


def _is_plain(picture: Any) -> bool:
    """Whether a picture is an array that the extension reads as it is: uint8 of 1, 3 or 4 channels."""
    is_bytes = isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.size > 0
    return is_bytes and picture.ndim == 3 and picture.shape[2] in (1, 3, 4)


def batches(
    pictures: Iterable[Picture], prepare_one: Callable[[Picture], NDArray[np.uint8]]
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
                batch.append(prepare_one(picture))
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
