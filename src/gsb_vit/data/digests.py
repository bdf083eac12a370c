"""Digests of pictures, by which a picture is known whatever its file or folder is called; and which pictures decode.

A digest is the first 16 bytes of SHA-256: of the bytes of a picture's file, or of an array's shape, type and bytes. A
model file keeps the first 8 of them. Two different pictures among a million share these with probability 3e-8.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.files import open_regular

from .datasets import Source
from .encoded import Encoded
from .likeness import picture_hash, thumbnail
from .pictures import BYTES_PER_PIXEL, open_picture, pixel_limit

LENGTH = 16  # bytes in a run's split
_BLOCK = 1 << 20
SHORT = 8  # bytes in a model file: 10,700 characters of Base64 a thousand pictures


@dataclass(frozen=True)
class Inspection:
    """A picture's digest ("" where it cannot be read), and what is wrong with it, if anything.

    Of a picture that was looked at: its size (width, height), whether it is grey, and its hash (``likeness``).
    """

    digest: str
    problem: str | None = None
    size: tuple[int, int] | None = None
    grey: bool = False
    hash: np.ndarray | None = field(default=None, repr=False, compare=False)


def digest(source: Source) -> str:
    """A picture's digest, 32 hexadecimal digits. Raises InputError where a file is no regular file or unreadable."""
    if isinstance(source, np.ndarray):
        found = hashlib.sha256(f"{source.shape} {source.dtype.str} ".encode())
        found.update(np.ascontiguousarray(source).tobytes())
        return found.digest()[:LENGTH].hex()
    found = hashlib.sha256()
    if isinstance(source, Encoded):
        found.update(source.read(BYTES_PER_PIXEL * pixel_limit(None) + 1))
        return found.digest()[:LENGTH].hex()
    with open_regular(source, "a picture file") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.digest()[:LENGTH].hex()


def bytes_digest(data: bytes) -> str:
    """The digest of a picture file's bytes, 32 hexadecimal digits."""
    return hashlib.sha256(data).digest()[:LENGTH].hex()


def digest_or_nothing(source: Source) -> str:
    """A picture's digest, or "" where its file cannot be read."""
    try:
        return digest(source)
    except InputError:
        return ""


def digests(sources: Sequence[Source]) -> list[str]:
    """The digests of pictures, in their order; files are read in threads."""
    return in_threads(digest, sources)


def inspect(source: Source) -> Inspection:
    """A picture's digest, and whether it decodes from its first to its last byte."""
    try:
        if not isinstance(source, np.ndarray):
            open_picture(source)
        return Inspection(digest(source))
    except InputError as error:
        return Inspection("", str(error))


def look(source: Source) -> Inspection:
    """As :func:`inspect`, and what a person would see: size, grey or colour, and a hash that near copies share."""
    try:
        picture = open_picture(source)
        small = thumbnail(picture)
        grey = int(np.ptp(small, axis=2).max()) <= _GREY
        return Inspection(digest(source), None, picture.size, grey, picture_hash(small, picture.size))
    except InputError as error:
        return Inspection("", str(error))


_GREY = 3  # levels between the channels of a grey picture, as compression leaves them


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], done: Callable[[], None] | None = None) -> list:
    """``function`` of every item, in their order. Reading, hashing and decoding leave the interpreter lock."""
    found = []
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        for one in pool.map(function, items):
            found.append(one)
            if done is not None:
                done()
    finally:  # interrupted, it does not go on with the others
        pool.shutdown(cancel_futures=True)
    return found


def listed(names: Sequence[str]) -> str:
    """The first three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def pack_seen(found: Iterable[str]) -> dict[str, Any]:
    """Digests for a model file's provenance: sorted, each once, in one Base64 text."""
    short = sorted({one[: 2 * SHORT] for one in found})
    return {
        "digest": f"sha256/{SHORT}",
        "count": len(short),
        "pictures": base64.b64encode(bytes.fromhex("".join(short))).decode(),
    }


def unpack_seen(provenance: Mapping[str, Any]) -> frozenset[str] | None:
    """The digests of the pictures that a model was trained on, cut to 8 bytes; None where its file does not say.

    Raises InputError where what it says cannot be read.
    """
    if (packed := provenance.get("seen")) is None:
        return None
    try:
        data = base64.b64decode(packed["pictures"], validate=True)
        if packed["digest"] != f"sha256/{SHORT}" or len(data) != SHORT * packed["count"]:
            raise ValueError(f"{packed['count']!r} digests of kind {packed['digest']!r} in {len(data)} bytes")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InputError(
            f"the model's digests of its training pictures are damaged ({error}); export the model again"
        ) from error
    return frozenset(data[i : i + SHORT].hex() for i in range(0, len(data), SHORT))


def is_seen(found: str, seen: frozenset[str]) -> bool:
    """Whether a picture, by its digest, is among those that ``unpack_seen`` gave."""
    return found[: 2 * SHORT] in seen
