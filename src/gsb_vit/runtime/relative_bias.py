"""The table of the relative attention bias: its size and who reads which entry (``docs/packed-format.md``)."""

import numpy as np
from numpy.typing import NDArray


def relative_bias_size(grid: tuple[int, int], prefix_tokens: int) -> int:
    """Return T = (2gh − 1)(2gw − 1) + P² + 2P, the entries a head."""
    rows, columns = grid
    return (2 * rows - 1) * (2 * columns - 1) + prefix_tokens**2 + 2 * prefix_tokens


def relative_bias_index(grid: tuple[int, int], prefix_tokens: int) -> NDArray[np.int64]:
    """Return the position in the table of every pair of tokens: (N, N), prefixes first."""
    rows, columns = grid
    y, x = (axis.reshape(-1) for axis in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    patch_to_patch = (y[:, None] - y[None, :] + rows - 1) * (2 * columns - 1) + (x[:, None] - x[None, :] + columns - 1)
    offset, prefixes = (2 * rows - 1) * (2 * columns - 1), prefix_tokens
    tokens = prefixes + rows * columns
    index = np.empty((tokens, tokens), dtype=np.int64)
    index[prefixes:, prefixes:] = patch_to_patch
    index[:prefixes, :prefixes] = offset + np.arange(prefixes**2).reshape(prefixes, prefixes)
    index[:prefixes, prefixes:] = offset + prefixes**2 + np.arange(prefixes)[:, None]
    index[prefixes:, :prefixes] = offset + prefixes**2 + prefixes + np.arange(prefixes)[None, :]
    return index
