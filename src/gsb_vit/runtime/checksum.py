"""XXH64, the checksum of a packed file: from the native extension, or in plain Python where that is not built."""

import struct

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_P1, _P2, _P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_P4, _P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def xxh64(data: NDArray[np.uint8]) -> int:
    """Return XXH64 with seed 0 (xxHash specification 0.2.0) of contiguous bytes, uint8 (n), as 0 … 2^64 − 1.

    It finds damage, not malice.
    """
    try:
        from gsb_vit import _native
    except ImportError:
        return plain_xxh64(data)
    return int(_native.xxh64(data))


def plain_xxh64(data: NDArray[np.uint8]) -> int:
    """Return the same without the extension. The steps: ``docs/packed-format.md``."""
    size, stripes = len(data), len(data) // 32 * 32
    total = _sum_of_stripes(data[:stripes]) if stripes else _P5
    total = (total + size) & _MASK
    rest = data[stripes:].tobytes()
    words, tail = len(rest) // 8 * 8, len(rest) // 4 * 4
    for (word,) in struct.iter_unpack("<Q", rest[:words]):
        total = (_rotated(total ^ _round(0, word), 27) * _P1 + _P4) & _MASK
    for (word,) in struct.iter_unpack("<I", rest[words:tail]):
        total = (_rotated(total ^ (word * _P1 & _MASK), 23) * _P2 + _P3) & _MASK
    for byte in rest[tail:]:
        total = _rotated(total ^ (byte * _P5 & _MASK), 11) * _P1 & _MASK
    total = (total ^ total >> 33) * _P2 & _MASK
    total = (total ^ total >> 29) * _P3 & _MASK
    return total ^ total >> 32


def _sum_of_stripes(data: NDArray[np.uint8]) -> int:
    a, b, c, d = (_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK
    for one, two, three, four in struct.iter_unpack("<4Q", data.data):
        a, b, c, d = _round(a, one), _round(b, two), _round(c, three), _round(d, four)
    total = (_rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)) & _MASK
    for lane in (a, b, c, d):
        total = ((total ^ _round(0, lane)) * _P1 + _P4) & _MASK
    return total


def _round(total: int, word: int) -> int:
    return _rotated((total + word * _P2) & _MASK, 31) * _P1 & _MASK


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK
