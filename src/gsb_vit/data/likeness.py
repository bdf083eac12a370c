"""Near copies: pictures of one photograph that differ in format, size, quality, brightness or a narrow margin.

A picture's hash has 255 bits: the signs, against their median, of the 16 × 16 lowest frequencies (without the mean) of
its grey picture of 64 × 64. Two pictures are near copies where at most ``NEAR`` bits differ.

``NEAR`` was chosen on 8,189 flowers of 128 pixels and more (33.5 million pairs) and 3,000 objects of 32 × 32 (4.5
million). The 31 pairs of files within 58 bits were looked at: each shows one photograph. ``NEAR`` stays below that, for
pictures that are plainer. Of 300 pictures each that were saved again as JPEG of quality 30, halved, brightened by a
fifth or cut by 1 % a side, 99 in 100 differ in 30 bits or fewer, the objects at quality 30 in 42. Cuts of 3 % and
turned or mirrored pictures are not found.

The idea is that of pHash (https://www.phash.org; C. Zauner, Implementation and Benchmarking of Perceptual Image Hash
Functions, 2010), with four times its bits: at 63 bits copies and other pictures overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

BITS = 255
NEAR = 40
_SIDE, _FREQUENCIES = 64, 16
_SMALLEST = 16  # pixels of the shorter side: fewer do not have as many frequencies
_PLAIN = 4.0  # standard deviation of grey levels: a picture with less contrast shows nothing to know it by
_ROWS, _NUMBERS = 1024, 1 << 24  # pictures compared at once, and numbers of that comparison in memory
_WAVES = np.cos(
    np.pi * (2 * np.arange(_SIDE)[None] + 1) * np.arange(_FREQUENCIES)[:, None] / (2 * _SIDE), dtype=np.float32
)


def thumbnail(image: Image.Image) -> np.ndarray:
    """The RGB picture squeezed into 64 × 64: uint8 (64, 64, 3)."""
    way = Image.Resampling.BOX if min(image.size) >= _SIDE else Image.Resampling.BILINEAR
    return np.asarray(image.resize((_SIDE, _SIDE), way))


def picture_hash(small: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The hash bool (255,) of a picture of ``size`` (width, height) by its thumbnail.

    None where the picture has fewer than 16 pixels a side or hardly any contrast: then nothing is near to it.
    """
    grey = small @ np.array([0.299, 0.587, 0.114], np.float32)
    if min(size) < _SMALLEST or grey.std() < _PLAIN:
        return None
    found = (_WAVES @ grey @ _WAVES.T).ravel()[1:]
    return found > np.median(found)


def group_copies(hashes: Sequence[np.ndarray | None], digests: Sequence[str]) -> np.ndarray:
    """Group numbers int64 (n,): near copies, and pictures with the same digest, share that of their first member.

    A group holds what a chain of near copies connects. All pairs are compared, by blocks of products of matrices:
    n²·255 multiplications. An empty digest equals no other.
    """
    forest = _Forest(len(hashes))
    firsts: dict[str, int] = {}
    for index, digest in enumerate(digests):
        if digest:
            forest.join(firsts.setdefault(digest, index), index)
    known = np.array([i for i, one in enumerate(hashes) if one is not None], dtype=np.int64)
    if len(known):
        bits = np.stack([one for one in hashes if one is not None])
        _, first, same = np.unique(np.packbits(bits, axis=1), axis=0, return_index=True, return_inverse=True)
        for index, of in zip(known, same.reshape(-1), strict=True):
            forest.join(int(known[first[of]]), int(index))
        for one, other in _near(bits[first]):
            forest.join(int(known[first[one]]), int(known[first[other]]))
    return forest.roots()


def _near(bits: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows of bool (m, 255) that connect what is near; not all pairs of a crowd."""
    signs = bits.astype(np.float32) * 2 - 1
    rows = max(1, min(_ROWS, _NUMBERS // max(len(signs), 1)))
    least = BITS - 2 * NEAR  # the product of two rows of ±1 whose distance is NEAR
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(signs), rows):
        near = signs[start : start + rows] @ signs[start:].T >= least
        row, column = np.nonzero(near)
        first = near.argmax(axis=0)  # of each column, the first row that is near to it
        links = np.unique(np.stack([row, first[column]], axis=1), axis=0)
        found = np.flatnonzero(near.any(axis=0))
        links = np.concatenate([links, np.stack([first[found], found], axis=1)]) + start
        pairs += [(int(one), int(other)) for one, other in links if one != other]
    return pairs


class _Forest:
    """Disjoint sets of numbers; the root of each is its smallest member."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, one: int) -> int:
        while self._parent[one] != one:
            self._parent[one] = self._parent[self._parent[one]]
            one = self._parent[one]
        return one

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self.find(one), self.find(other)))
        self._parent[high] = low

    def roots(self) -> np.ndarray:
        return np.array([self.find(one) for one in range(len(self._parent))], dtype=np.int64)
