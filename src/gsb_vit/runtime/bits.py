"""Bits in words: pack and unpack vectors of one-bit numbers with NumPy.

A row of k bits is ⌈k/64⌉ little-endian uint64 words; element 64·i + j is bit j (value 2^j) of word i. Bit 1 means +1
(or "present" in a {0, 1} mask), bit 0 means −1 (or 0). Pad bits are zero in every operand, so a product never counts
them: they are equal under XOR and absent under AND.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

WORD_BITS = 64


def words_for(depth: int) -> int:
    """Return the number of 64-bit words that hold ``depth`` bits."""
    return -(-depth // WORD_BITS)


def pack(bits: ArrayLike) -> NDArray[np.uint64]:
    """Pack booleans along the last axis: (..., k) → uint64 (..., ⌈k/64⌉), pad bits zero.

    Any non-zero element counts as 1. To pack signs, give ``x >= 0``: zero and −0.0 are +1.
    """
    array = np.asarray(bits).astype(bool, copy=False)
    depth = array.shape[-1]
    packed = np.packbits(array, axis=-1, bitorder="little")
    words = np.zeros((*array.shape[:-1], words_for(depth) * (WORD_BITS // 8)), dtype=np.uint8)
    words[..., : packed.shape[-1]] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def unpack(words: NDArray[np.uint64], depth: int) -> NDArray[np.bool_]:
    """Unpack words to booleans: uint64 (..., ⌈k/64⌉) → bool (..., k). The inverse of :func:`pack`."""
    raw = np.ascontiguousarray(words.astype("<u8", copy=False)).view(np.uint8)
    return np.unpackbits(raw, axis=-1, count=depth, bitorder="little").view(np.bool_)


def pad_is_zero(words: NDArray[np.uint64], depth: int) -> bool:
    """Say whether every bit behind the ``depth``-th of each row is zero."""
    used = depth % WORD_BITS
    return used == 0 or not bool(np.any(words[..., -1] >> np.uint64(used)))
