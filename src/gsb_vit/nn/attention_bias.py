"""The learned biases added to the attention matrix after the softmax."""

import torch
from torch import Tensor, nn


class FullAttentionBias(nn.Module):
    """A learned bias of heads·N² numbers, zero at first; calling it returns (h, N, N)."""

    def __init__(self, num_heads: int, num_tokens: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_heads, num_tokens, num_tokens))

    def forward(self) -> Tensor:
        return self.bias

    def stored(self) -> Tensor:
        """Return (h, N, N) as a packed file holds it: rounded to float16."""
        return self.bias.half().to(self.bias.dtype)


def relative_index(grid_size: tuple[int, int], prefix_tokens: int) -> Tensor:
    """Return the (N, N) indices into the relative table of T = (2gh-1)(2gw-1) + P² + 2P entries.

    The formula is in docs/packed-format.md: patches by their offset, then prefix → prefix, prefix → patch and
    patch → prefix.
    """
    height, width = grid_size
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    offset = (2 * height - 1) * (2 * width - 1)
    P, tokens = prefix_tokens, prefix_tokens + height * width
    prefix = torch.arange(P)
    index = torch.empty(tokens, tokens, dtype=torch.int64)
    index[P:, P:] = (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)
    index[:P, :P] = offset + prefix[:, None] * P + prefix
    index[:P, P:] = (offset + P * P + prefix)[:, None]
    index[P:, :P] = offset + P * P + P + prefix
    return index


class RelativeAttentionBias(nn.Module):
    """A learned bias by relative position: ``table`` (h, T), zero at first; calling it returns (h, N, N)."""

    index: Tensor

    def __init__(self, num_heads: int, grid_size: tuple[int, int], prefix_tokens: int) -> None:
        super().__init__()
        height, width = grid_size
        entries = (2 * height - 1) * (2 * width - 1) + prefix_tokens**2 + 2 * prefix_tokens
        self.table = nn.Parameter(torch.zeros(num_heads, entries))
        index = relative_index(grid_size, prefix_tokens)
        self.num_tokens = len(index)
        self.register_buffer("index", index.flatten(), persistent=False)

    def forward(self) -> Tensor:
        return self.table.index_select(1, self.index).view(-1, self.num_tokens, self.num_tokens)

    def stored(self) -> Tensor:
        """Return (h, N, N) as a packed file holds it: in float32."""
        return self()
