"""The float operations of docs/numerics.md in PyTorch: what a one-bit model computes in evaluation mode.

There its sums of floats follow the packed model's order, so that both give the same bits and the same logits. That
holds for float32 on the CPU, run eagerly; training, other types and devices, autocast and compiled or traced graphs
use PyTorch's own operations, which differ in the last digit (``applies``). Values come from here, gradients, where
they are recorded, from PyTorch's operations (``in_order``).
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import LayerNorm as TimmLayerNorm
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812

LANES = 16
# Entries of the exp table below this are stored as 0: products with them would be subnormal numbers, which processors
# handle slowly, and no sum that contains a 1 notices them.
SMALLEST_EXP = 1e-30
# How far a pixel may lie from a whole grey level and still be one; float32's rounding moves it by a tenth of this.
PIXEL_TOLERANCE = 1e-3
EXACT_FLOAT32 = 1 << 24

Scaling = tuple[tuple[float, ...], tuple[float, ...]]


def applies(x: Tensor) -> bool:
    """Return whether evaluation of x follows docs/numerics.md: float32 on the CPU, eager, without autocast."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
    )


class _InOrder(Function):
    @staticmethod
    def forward(ctx: Any, plain: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        return grad, None


def in_order(value: Tensor, plain: Callable[[], Tensor]) -> Tensor:
    """Return ``value``; where gradients are recorded, with the gradient of ``plain()``, which differs by rounding."""
    return _InOrder.apply(plain(), value) if torch.is_grad_enabled() else value


@torch.no_grad()
def sum16(x: Tensor) -> Tensor:
    """Sum the last axis in sixteen lanes, (..., n) → (..., 1): ``reference.sum16``."""
    lanes = x.new_zeros((*x.shape[:-1], LANES))
    for start in range(0, x.shape[-1], LANES):
        part = x[..., start : start + LANES]
        lanes[..., : part.shape[-1]].add_(part)
    width = LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes


@torch.no_grad()
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise the last axis: ``((x − μ) · 1/sqrt(v + eps)) · weight + bias``, sums by ``sum16``."""
    share = 1 / x.shape[-1]
    y = x - sum16(x) * share
    variance = (sum16(y * y) * share).add_(eps)
    # PyTorch's float32 square root may be off by one; that of float64, rounded once more, is the correctly rounded one.
    y = y.mul_(variance.double().sqrt_().float().reciprocal_())
    y = y if weight is None else y.mul_(weight)
    return y if bias is None else y.add_(bias)


def exp_table(query_key_scale: Tensor, head_dim: int) -> Tensor:
    """Return exp(−2·t·s/√d), t = 0 … d, for s = s_q·s_k () as float32: computed in float64, rounded once."""
    steps = torch.arange(head_dim + 1, dtype=torch.float64)
    table = torch.exp(-2 * steps * query_key_scale.double() / head_dim**0.5)
    return torch.where(table < SMALLEST_EXP, 0.0, table).float()


@torch.no_grad()
def softmax(dots: Tensor, table: Tensor) -> Tensor:
    """Return A without its bias from the integer products q·k (..., N), which it overwrites: ``table[z − m]·r``."""
    steps = torch.sub(dots.amax(-1, keepdim=True), dots, out=dots).mul_(0.5).to(torch.int32)
    # Of all ways to look numbers up in a table this one is the fastest on a CPU.
    weights = F.embedding(steps, table[:, None]).squeeze(-1)
    return weights.mul_(sum16(weights).reciprocal_())


class OrderedNorm(nn.LayerNorm):
    """LayerNorm that in evaluation mode sums in the order of docs/numerics.md, once what ``follows`` has its scales.

    Until then it is the plain one, so that first scales do not depend on the order.
    """

    follows: tuple[Any, ...] = ()  # a tuple, so that they do not become its children

    def is_ordered(self, x: Tensor) -> bool:
        """Whether x is normalised in that order now."""
        return not self.training and applies(x) and all(layer.input_quantizer.is_ready for layer in self.follows)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_ordered(x):
            return super().forward(x)
        return in_order(layer_norm(x, self.weight, self.bias, self.eps), lambda: super(OrderedNorm, self).forward(x))


class OrderedTimmNorm(OrderedNorm, TimmLayerNorm):
    """The same in place of timm's LayerNorm."""


_ORDERED_NORMS: dict[type, type] = {nn.LayerNorm: OrderedNorm, TimmLayerNorm: OrderedTimmNorm}


def order_norm(norm: nn.Module, *follows: nn.Module) -> None:
    """Make a LayerNorm of torch or timm an ordered one, in place; ``follows``: the quantized layers that read it."""
    norm.__class__ = _ORDERED_NORMS.get(type(norm), type(norm))
    if isinstance(norm, OrderedNorm):
        norm.follows = follows


@torch.no_grad()
def grey_levels(x: Tensor, scaling: Scaling) -> Tensor | None:
    """Return the whole pixels u (B, 3, H, W) that x = (u/255 − mean)/std was made of; None if it was of others."""
    mean, std = (torch.tensor(part, dtype=torch.float64).mul(255).float().view(3, 1, 1) for part in scaling)
    levels = x * std + mean
    pixels = levels.round()
    whole = (levels - pixels).abs_().amax() <= PIXEL_TOLERANCE and pixels.amin() >= 0 and pixels.amax() <= 255
    return pixels if whole else None


def pixel_scale(weight_scale: Tensor, std: tuple[float, ...]) -> Tensor:
    """Return a[o, c] = s_w[o]/(255·std_c), (C, 3), rounded once."""
    return (weight_scale.double()[:, None] / (255 * torch.tensor(std, dtype=torch.float64))).float()


@torch.no_grad()
def patch_sums(pixels: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return (f(S_0)·a[o,0] + f(S_1)·a[o,1]) + f(S_2)·a[o,2] of pixels (B, 3, H, W), as (B, C, H/h, W/w).

    weight (C, 3, h, w) in whole numbers of eight bits, scale a (C, 3). Sums are exact in float32 below 2^24, else in
    float64.
    """
    (batch, _, height, width), (channels, _, h, w) = pixels.shape, weight.shape
    patches = pixels.view(batch, 3, height // h, h, width // w, w).permute(1, 0, 2, 4, 3, 5).reshape(3, -1, h * w)
    kind = torch.float32 if h * w * 128 * 255 < EXACT_FLOAT32 else torch.float64
    planes = weight.view(channels, 3, h * w).to(kind)
    parts = [(patches[c].to(kind) @ planes[:, c].T).float().mul_(scale[:, c]) for c in range(3)]
    sums = parts[0].add_(parts[1]).add_(parts[2])
    return sums.view(batch, height // h, width // w, channels).permute(0, 3, 1, 2)


@torch.no_grad()
def levels(y: Tensor, highest: int = 255) -> Tensor:
    """Return clamp(rint(y), 0, highest), round half to even; NaN becomes 0."""
    return torch.where(y > 0, y, 0.0).clamp_(max=highest).round_()


def _row_sums(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Σ over columns and channels, for each of the three kernel rows: x (B, I, H, W), weight (O, I, 3, 3), both whole.

    3 × 3, stride 2, padding 1. The sums (B·H/2·W/2, O) are exact in float32 below 2^24, else in float64; rounded once.
    """
    channels, inputs, size, _ = weight.shape
    height, width = x.shape[2:]
    x = F.pad(x, (1, 0, 1, 0))
    kind = torch.float32 if size * inputs * 128 * 255 < EXACT_FLOAT32 else torch.float64
    sums = []
    for row in range(size):
        lines = x[:, :, row : row + height - 1 : 2]
        taps = torch.cat([lines[..., column : column + width - 1 : 2] for column in range(size)], dim=1)
        taps = taps.permute(0, 2, 3, 1).reshape(-1, size * inputs).to(kind)
        kernel = weight[:, :, row].permute(0, 2, 1).reshape(channels, size * inputs).to(kind)
        sums.append((taps @ kernel.T).float())
    return sums


@torch.no_grad()
def convolution(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return (f(S_0)·scale + f(S_1)·scale) + f(S_2)·scale, S_r the sum of kernel row r, as (B, O, H/2, W/2).

    x (B, I, H, W) whole levels 0 … 255, weight (O, I, 3, 3) in whole numbers of eight bits, scale (O).
    """
    batch, _, height, width = x.shape
    parts = [part.mul_(scale) for part in _row_sums(x, weight)]
    return parts[0].add_(parts[1]).add_(parts[2]).view(batch, height // 2, width // 2, -1).permute(0, 3, 1, 2)


@torch.no_grad()
def binary_convolution(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return f(S)·scale, S the sum over all taps, as (B, O, H/2, W/2).

    x (B, I, H, W) levels 0 and 1, weight (O, I, 3, 3) of ±1, scale (O). The padding, level 0, adds nothing.
    """
    batch, _, height, width = x.shape
    rows = _row_sums(x, weight)
    return rows[0].add_(rows[1]).add_(rows[2]).mul_(scale).view(batch, height // 2, width // 2, -1).permute(0, 3, 1, 2)


@torch.no_grad()
def first_convolution(pixels: Tensor, weight: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return ((f(S_0)·a[o,0] + f(S_1)·a[o,1]) + f(S_2)·a[o,2]) + offset[e,o], S_c the sum of colour c.

    pixels (B, 3, H, W) → (B, O, H/2, W/2); weight (O, 3, 3, 3), scale a (O, 3), offset (4, O) for the place
    e = 2·(first line) + (first column).
    """
    height, width = pixels.shape[2:]
    x, shape = F.pad(pixels, (1, 0, 1, 0)), (height // 2, width // 2)
    parts = []
    for colour in range(3):
        one = x[:, colour]
        taps = [one[:, r : r + height - 1 : 2, c : c + width - 1 : 2] for r in range(3) for c in range(3)]
        sums = torch.stack(taps, dim=-1).float() @ weight[:, colour].reshape(-1, 9).T.float()
        parts.append(sums.mul_(scale[:, colour]))
    place = torch.zeros(shape, dtype=torch.int64)
    place[0] += 2
    place[:, 0] += 1
    return parts[0].add_(parts[1]).add_(parts[2]).add_(offset[place]).permute(0, 3, 1, 2)


@torch.no_grad()
def mean_tokens(x: Tensor) -> Tensor:
    """Mean of tokens (B, N, C) → (B, C): ``sum16`` over them, times f32(1/N); one token is itself."""
    if x.shape[1] == 1:
        return x[:, 0]
    return sum16(x.transpose(1, 2)).squeeze(-1) * (1 / x.shape[1])
