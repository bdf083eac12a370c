"""Bits in words: pack, unpack and multiply vectors of one-bit numbers with NumPy.

A row of k bits is ⌈k/64⌉ little-endian uint64 words; element 64·i + j is bit j (value 2^j) of word i. Bit 1 means +1
(or "present" in a {0, 1} mask), bit 0 means −1 (or 0). Pad bits are zero in every operand, so a product never counts
them: they are equal under XOR and absent under AND.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

WORD_BITS = 64

_BYTE_COUNTS = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


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


def popcount(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Count the ones of each word: uint64 (...) → uint8 (...)."""
    # NumPy 1.x has no bitwise_count.
    return np.bitwise_count(words) if hasattr(np, "bitwise_count") else popcount_by_table(words)


def popcount_by_table(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Count the ones of each word with a table of bytes: what :func:`popcount` is where NumPy is older than 2.0."""
    raw = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, WORD_BITS // 8)
    return _BYTE_COUNTS[raw].sum(axis=-1, dtype=np.uint8)


def xor_popcount(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Count the differing bits of every pair of rows: (..., n, w) and (..., m, w) → int32 (..., n, m)."""
    return _pairwise(left, right, np.bitwise_xor)


def sign_dot(left: NDArray[np.uint64], right: NDArray[np.uint64], depth: int) -> NDArray[np.int32]:
    """Multiply ±1 rows with ±1 rows: ``depth − 2·popcount(left ^ right)``, (..., n, w) · (..., m, w)ᵀ → (..., n, m)."""
    return np.int32(depth) - 2 * xor_popcount(left, right)


def mask_dot(mask: NDArray[np.uint64], signs: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Multiply {0, 1} rows with ±1 rows: ``2·popcount(mask & signs) − popcount(mask)``, → int32 (..., n, m)."""
    present = popcount(mask).sum(axis=-1, dtype=np.int32)
    return 2 * _pairwise(mask, signs, np.bitwise_and) - present[..., :, None]


def _pairwise(left: NDArray[np.uint64], right: NDArray[np.uint64], operation: np.ufunc) -> NDArray[np.int32]:
    shape = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    total = np.zeros((*shape, left.shape[-2], right.shape[-2]), dtype=np.int32)
    # One word at a time keeps the temporaries at (n, m) however deep the product is.
    for word in range(left.shape[-1]):
        total += popcount(operation(left[..., :, None, word], right[..., None, :, word]))
    return total
