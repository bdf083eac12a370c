"""What the autograd functions of fused layers ask of their kernels, and the words in between."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LimitsOf = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InputSettings:
    """How inputs become a plane: ``step`` 1[x > s/2] instead of sign(x), after a clip to ±``clip``."""

    step: bool
    clip: float = math.inf


SIGN = InputSettings(step=False)


@dataclass(frozen=True)
class Inputs:
    """A layer's inputs: rows x (M, in), shift (in,) or None, the scale () in use, and how they become a plane."""

    x: Tensor
    shift: Tensor | None
    scale: Tensor
    settings: InputSettings


@dataclass(frozen=True)
class PackedWeight:
    """The plane of a weight matrix (out, in) as the kernels keep it, what they know of its rows, their scale (out,)."""

    plane: Tensor
    sums: Tensor
    scale: Tensor
    shape: torch.Size

    @classmethod
    def restore(cls, tensors: Sequence[Tensor], shape: torch.Size) -> "PackedWeight":
        """From what ``tensors`` gave."""
        plane, sums, scale = tensors
        return cls(plane, sums, scale, shape)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What to save for the backward pass."""
        return self.plane, self.sums, self.scale


@dataclass(frozen=True)
class InputGradients:
    """Gradients of inputs (M, in), of their shift (in,) or None and scale (); the dequantized inputs s·B (M, in)."""

    x: Tensor
    shift: Tensor | None
    scale: Tensor
    dequantized: Tensor


@dataclass(frozen=True)
class CoreSettings:
    """Heads; what the scopes make of the extremes (E, B, 1, 1, 1) of attention and Value; the Value's gradient."""

    heads: int
    attention_limits: LimitsOf
    value_limits: LimitsOf
    aligned: bool


@dataclass(frozen=True)
class CoreTensors:
    """qkv (B, N, 3C); shifts (h, 1, d) or None of queries, keys and values; the scales in use of queries, keys (),
    attention and Value (G,); bias (h, N, N) or None."""

    qkv: Tensor
    shifts: Sequence[Tensor | None]
    scales: Sequence[Tensor]
    bias: Tensor | None


@dataclass(frozen=True)
class CoreGradients:
    """Gradients of qkv (B, N, 3C), of the shifts and of the bias; of all scales in order the sums before the LSQ
    factors (2 + G_A + G_V,), and the members of the groups of attention and Value (G_A + G_V,)."""

    qkv: Tensor
    shifts: Sequence[Tensor | None]
    scale_sums: Tensor
    members: Tensor
    bias: Tensor | None


class Kernels(Protocol):
    """The steps of the fused layers. Codes (M, …) are what a backward pass must know of M rows of inputs."""

    block_bytes: int  # of what fc1 gives, in the MLP's backward pass: what is made again there at a time

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a·b of two matrices (M, K), (K, N)."""

    def pack_weight(self, weight: Tensor, scale: Tensor) -> PackedWeight:
        """Pack sign(W - mean W); scale (out, 1) or (1, 1)."""

    def expand_weight(self, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        """Return s_w·B (out, in)."""

    def encode(self, inputs: Inputs) -> Tensor:
        """Return the code of inputs."""

    def multiply(
        self, inputs: Inputs, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype, with_code: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return y = (s_x·s_w)·(B_x B_wᵀ) + b (M, out), and the code if asked for."""

    def multiply_integers(self, inputs: Inputs, weight: PackedWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return B_x B_wᵀ (M, out), int16, and the code; dtype is that of products."""

    def rescale(self, integers: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return y = integers·scale + bias (M, out) of integers (M, out), scale and bias (out,)."""

    def input_gradients(
        self, grad: Tensor, code: Tensor, scale: Tensor, settings: InputSettings, with_shift: bool
    ) -> InputGradients:
        """From the gradient of s·B (M, in), which may be overwritten; the scale's is without its LSQ factor."""

    def attend(self, tensors: CoreTensors, settings: CoreSettings) -> tuple[Tensor, Tensor, Tensor]:
        """Return y = A_b V_b (B, N, C), the limits of attention and of the Value."""

    def attend_backward(
        self, tensors: CoreTensors, settings: CoreSettings, limits: tuple[Tensor, Tensor], grad: Tensor, in_place: bool
    ) -> CoreGradients:
        """Gradients from that of y (B, N, C); that of qkv may lie where qkv is if ``in_place``."""
