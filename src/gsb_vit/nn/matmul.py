"""Matrix products of training, on the fastest library at hand: one place that chooses.

On AVX-512 processors oneDNN, which comes with PyTorch, multiplies float32 matrices at full width on every make, while
the library behind ``torch.mm`` may not (105 against 235 GFLOP/s on one Zen 5 core).
"""

import platform
from functools import cache
from typing import Any

import torch
from torch import Tensor
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
