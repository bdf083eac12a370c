"""Matrix products of training, on the fastest library at hand: one place that chooses.

On AVX-512 processors oneDNN, which comes with PyTorch, multiplies float32 matrices at full width on every make, while
the library behind ``torch.mm`` may not (105 against 235 GFLOP/s on one Zen 5 core).
"""

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F  # noqa: N812

SMALL = 1 << 18  # multiply-adds below which the choice of a library costs more than it saves


@cache
def has_onednn() -> bool:
    """Return whether oneDNN's linear layer on plain float32 matrices is there and made for this processor."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def emulates_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 products on the device run without instructions for it: an x86-64 CPU with AVX2 at most.

    They then take about ten times as long as in float32.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and x86 and torch.backends.cpu.get_cpu_capability() != "AVX512"


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a·b of two matrices (M, K), (K, N), of any strides; not differentiable.

    Rounding follows the library; on one machine the same call gives the same bits.
    """
    on_cpu = a.device.type == b.device.type == "cpu" and a.dtype == b.dtype == torch.float32
    if on_cpu and a.shape[0] * a.shape[1] * b.shape[1] >= SMALL and has_onednn():
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return torch.mm(a, b)


class _PlaneProduct(Function):
    @staticmethod
    def forward(plane: Tensor, weight: Tensor) -> Tensor:
        return matmul(plane.flatten(0, -2), weight.t()).view(*plane.shape[:-1], len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        plane, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        grad_plane = matmul(rows, weight).view_as(plane) if ctx.needs_input_grad[0] else None
        grad_weight = matmul(rows.t(), plane.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return grad_plane, grad_weight


def plane_product(plane: Tensor, weight: Tensor) -> Tensor:
    """Return plane·weightᵀ of planes (..., in) and (out, in), as ``F.linear`` does and with its gradients."""
    plain = plane.device.type == "cpu" and plane.dtype == weight.dtype == torch.float32
    if not torch.compiler.is_compiling() and plain and not torch.is_autocast_enabled("cpu") and has_onednn():
        return _PlaneProduct.apply(plane, weight)
    return F.linear(plane, weight)


@contextmanager
def fast_attention(models: Iterable[nn.Module]) -> Iterator[None]:
    """Within, full-precision attention of these models takes the faster of its two ways; enter it inside autocast.

    PyTorch's fused attention is slow in bfloat16 on a CPU: forward and backward take 30 ms where the written-out
    products take 5 (50 pictures, 3 heads, 65 tokens, one Zen 5 core). There ``fused_attn``, timm's switch, is off
    meanwhile.
    """
    slow = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    found = [m for model in models for m in model.modules() if getattr(m, "fused_attn", False)] if slow else []
    for module in found:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in found:
            module.fused_attn = True  # type: ignore[assignment]


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Within, float32 products on a GPU take its TF32 units, 10 bits of mantissa: exact for planes of few levels."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
