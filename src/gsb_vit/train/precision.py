"""Mixed precision: what it costs on a machine, and the faster way where there are two."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


def bfloat16_cost(device: torch.device) -> float:
    """Return how many times as long as in float32 a product of a layer's size takes in bfloat16, measured here.

    On a CPU that depends on more than its instructions: about 0.5 on a Zen 5, 10 where they are missing, and 1.7 on a
    Xeon of the Sapphire Rapids class whose tiles (AMX) are hidden from the machine. Elsewhere than on a CPU it is 0.
    """
    if device.type != "cpu":
        return 0.0
    tokens, weight = torch.ones(1024, 192), torch.ones(192, 768)
    shortest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(8):
        for dtype, before in shortest.items():
            x, w = tokens.to(dtype), weight.to(dtype)
            started = time.perf_counter()
            x @ w
            shortest[dtype] = min(before, time.perf_counter() - started)
    return shortest[torch.bfloat16] / shortest[torch.float32]


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def quick_inference(device: torch.device, fast: bool) -> Iterator[None]:
    """Within, a model answers without a gradient; if ``fast``, in bfloat16 where ``has_bfloat16``.

    Tensors made within are inference tensors: clone them outside before a loss keeps them for its backward pass.
    """
    bfloat16 = torch.autocast(device.type, torch.bfloat16) if fast and has_bfloat16(device) else nullcontext()
    with torch.inference_mode(), bfloat16:
        yield


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
