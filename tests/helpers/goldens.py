"""The tensors that the authors' released code produced (tests/golden/README.md)."""

from functools import cache

import torch
from paths import ROOT
from safetensors.torch import load_file
from torch import Tensor

FOLDER = ROOT / "tests" / "golden"


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def case(name: str, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix + "/"): t for key, t in golden(name).items() if key.startswith(prefix + "/")}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max|actual - expected| / max|expected|."""
    assert actual.shape == expected.shape
    error = (actual.detach().double() - expected.double()).abs().max()
    return (error / expected.double().abs().max().clamp(min=1e-30)).item()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance:.0e}"


def images(batch: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
