"""ReActNet's activation function."""

from typing import Any

import torch
from torch import Tensor, nn


class RPReLU(nn.Module):
    """y = r(x - γ) + ζ with r(z) = z where z > 0 and β·z elsewhere, γ, β, ζ learned per channel (C,).

    x (..., C). Starts as PReLU does: γ = ζ = 0, β = 0.25. ReActNet, https://arxiv.org/abs/2003.03488.
    """

    def __init__(self, channels: int, device: Any = None) -> None:
        super().__init__()
        self.input_shift = nn.Parameter(torch.zeros(channels, device=device))
        self.slope = nn.Parameter(torch.full((channels,), 0.25, device=device))
        self.output_shift = nn.Parameter(torch.zeros(channels, device=device))

    def forward(self, x: Tensor) -> Tensor:
        input_shift, slope, output_shift = (p.to(x.dtype) for p in (self.input_shift, self.slope, self.output_shift))
        z = x - input_shift
        return torch.where(z > 0, z, slope * z) + output_shift
