"""The MLP of a one-bit transformer: two binary linear layers with GELU between."""

import math
from typing import cast

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from . import fused
from .binary_linear import BinaryLinear
from .fused.interface import InputSettings
from .fused.mlp import FusedMlp


class BinaryMlp(Mlp):
    """timm's Mlp of binary linear layers. Module by module, or in one function with the same values.

    The function keeps a third of the bytes for the backward pass. It needs ``fused.kernels``, one-bit layers with an
    elastic sign before fc1 and an elastic step before fc2, plain GELU, no dropout and no hooks between the layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fc1, self.fc2
        if not (isinstance(first, BinaryLinear) and isinstance(second, BinaryLinear) and self._runs_fused(x)):
            return super().forward(x)
        settings = InputSettings(True, math.inf if second.clip is None else second.clip)
        dtype = cast(torch.dtype, fused.compute_dtype(x))
        return FusedMlp.apply(x, settings, dtype, fused.kernels(x), *first.fused_inputs(), *second.fused_inputs())

    def _runs_fused(self, x: Tensor) -> bool:
        first, second = cast(BinaryLinear, self.fc1), cast(BinaryLinear, self.fc2)
        return (
            first.runs_fused(x)
            and second.runs_fused(x)
            and (first.signed, second.signed, first.clip) == (True, False, None)
            and type(self.act) is nn.GELU
            and self.act.approximate == "none"
            and isinstance(self.norm, nn.Identity)
            and self.drop1.p == self.drop2.p == 0
            and first.output is None
            and second.output is None
            and not any(part._forward_hooks or part._forward_pre_hooks for part in (first, self.act, second))
        )
