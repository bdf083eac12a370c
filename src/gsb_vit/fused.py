"""Which training steps run in the extension's fused kernels: the one place that chooses, and the calls themselves.

The kernels (native/train/) work on CPU tensors of a processor with AVX-512 (VPOPCNTDQ), AVX2 or NEON, with the same
numbers on each. Everywhere else, under torch.compile and torch.func, and with GSB_VIT_FUSED=0 in the environment, the
same layers run in PyTorch alone: equal values, gradients equal up to rounding. GSB_VIT_FUSED=avx2 asks for those.
"""

import os
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .errors import InputError

WIDEST = 32767  # inputs of a layer: products are counted in int16
MOST_GROUPS = 8  # planes of a superposition
INSTRUCTION_SETS = ("avx512", "avx2", "neon")  # the fastest first


@cache
def available() -> dict[str, ModuleType]:
    """Return the extensions that were built and that this processor can run, by instruction set."""
    found = {}
    for name in INSTRUCTION_SETS:
        try:
            module = import_module(f"._train_{name}", __package__)
        except ImportError:
            continue
        if module.supported():
            found[name] = module
    return found


def kernels() -> ModuleType | None:
    """Return the extension in use: the one that GSB_VIT_FUSED names, else the fastest; None for 0 or without any.

    Raises InputError where GSB_VIT_FUSED names one that is not here.
    """
    asked, found = os.environ.get("GSB_VIT_FUSED", "1"), available()
    if asked in ("", "1"):
        return next(iter(found.values()), None)
    if asked == "0":
        return None
    if asked not in found:
        choices = ", ".join(["0 (off)", "1 (the fastest)", *found])
        raise InputError(f"GSB_VIT_FUSED={asked} is not among the training kernels here; set it to one of {choices}")
    return found[asked]


def native() -> Any:
    """Return the extension; only to be called where ``enabled`` said yes."""
    return kernels()


def enabled() -> bool:
    """Return whether fused kernels may be used here and now."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
        and kernels() is not None
    )


def fits(x: Tensor, *dtypes: torch.dtype) -> bool:
    """Return whether the kernels can read x: a plain CPU tensor without holes, of one of the dtypes."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and x.dtype in dtypes and x.numel() > 0


def fits_parameter(x: Tensor) -> bool:
    """Return whether the kernels can read a parameter: float32 on the CPU, row behind row."""
    return fits(x, torch.float32) and x.is_contiguous()


def compute_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype a matrix product of x has here, autocast included; None where the kernels do not know it."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in (torch.float32, torch.bfloat16) else None


def address(x: Tensor | None) -> int:
    """Return where the numbers of x lie, 0 for None."""
    return 0 if x is None else x.data_ptr()


def is_half(x: Tensor | None) -> bool:
    """Return whether x holds bfloat16."""
    return x is not None and x.dtype == torch.bfloat16
