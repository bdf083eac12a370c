"""Products of packed bits in NumPy, word by word: what the runtime's kernels have to equal."""

import numpy as np
from numpy.typing import NDArray

WORD_BITS = 64

_BYTE_COUNTS = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


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
