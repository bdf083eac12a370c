"""One-bit vision transformers: train, pack and run them.

``import gsb_vit`` stays light: it never imports PyTorch. ``import gsb_vit.models`` registers the models with timm.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "runtime",
    "Classifier": "runtime",
    "InputError": "errors",
    "Quantization": "convert",
    "binarize": "convert",
    "initialize_scales": "convert",
    "calibrate_thresholds": "convert",
    "import_authors_checkpoint": "authors",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
