"""Which training steps run in fused layers, one autograd function each that keeps little, and on which kernels.

The extension's kernels (native/train/) work on CPU tensors of a processor with AVX-512 (VPOPCNTDQ), AVX2 or NEON, with
the same numbers on each; GSB_VIT_FUSED=avx2 in the environment asks for those of AVX2. GSB_VIT_FUSED=torch takes the
same steps in PyTorch (``fused.pytorch``), on a GPU or any CPU: a fifth to a quarter of the memory, and slower.
Everywhere else, under torch.compile and torch.func, and with GSB_VIT_FUSED=0, the layers run module by module: equal
values, gradients equal up to rounding.
"""

import os
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from gsb_vit.errors import InputError

from .interface import Kernels
from .native import NativeKernels
from .pytorch import TorchKernels

WIDEST = 32767  # inputs of a layer: products are counted in int16
MOST_GROUPS = 8  # planes of a superposition
INSTRUCTION_SETS = ("avx512", "avx2", "neon")  # the fastest first
IN_PYTORCH = "torch"

_pytorch = TorchKernels()


@cache
def available() -> dict[str, NativeKernels]:
    """Return the extensions that were built and that this processor can run, by instruction set."""
    found = {}
    for name in INSTRUCTION_SETS:
        try:
            module = import_module(f"gsb_vit._train_{name}")
        except ImportError:
            continue
        if module.supported():
            found[name] = NativeKernels(module)
    return found


def _asked() -> str:
    """What GSB_VIT_FUSED says. Raises InputError where that names kernels that are not here."""
    asked = os.environ.get("GSB_VIT_FUSED", "1") or "1"
    if asked not in ("0", "1", IN_PYTORCH, *available()):
        choices = ", ".join(["0 (off)", "1 (the fastest)", f"{IN_PYTORCH} (in PyTorch)", *available()])
        raise InputError(f"GSB_VIT_FUSED={asked} is not among the training kernels here; set it to one of {choices}")
    return asked


def kernel_name(device: str = "cpu") -> str:
    """Return which kernels fused layers take on a device: an instruction set, ``torch``, or ``none``.

    Raises InputError where GSB_VIT_FUSED names kernels that are not here.
    """
    asked = _asked()
    if asked == "0":
        return "none"
    if asked == IN_PYTORCH:
        return asked
    if device != "cpu":
        return "none"
    return next(iter(available()), "none") if asked == "1" else asked


def kernels(x: Tensor) -> Kernels | None:
    """Return the kernels for a training step on x here and now; None where layers run module by module."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.numel() == 0
    ):
        return None
    name = kernel_name(x.device.type)
    found: Kernels | None = _pytorch if name == IN_PYTORCH else available().get(name)
    return found if found is not None and x.dtype in (torch.float32, torch.bfloat16) else None


def fits_parameter(x: Tensor, like: Tensor) -> bool:
    """Return whether kernels for ``like`` can read a parameter: float32 on the same device, row behind row."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.dtype == torch.float32 and x.numel() > 0
    return plain and x.is_contiguous() and x.device == like.device


def compute_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype a matrix product of x has here, autocast included; None where the kernels do not know it."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return dtype if dtype in (torch.float32, torch.bfloat16) else None
