"""One-bit vision transformers: train, pack and run them.

``import gsb_vit`` stays light: it never imports PyTorch. ``import gsb_vit.models`` registers the models with timm.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load": "runtime.classifier",
    "push_to_hub": "runtime.hub",
    "ray_predict": "runtime.ray_data",
    "Classifier": "runtime.classifier",
    "Prediction": "runtime.classifier",
    "Preprocessing": "data.preprocess",
    "InputError": "errors",
    "fit": "runs",
    "Run": "runs",
    "GSBClassifier": "sklearn",
    "Quantization": "quantization",
    "binarize": "models.binarize",
    "initialize_scales": "models.binarize",
    "calibrate_thresholds": "models.binarize",
    "export_model": "export.pack",
    "import_authors_checkpoint": "models.authors",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
