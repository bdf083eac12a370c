"""Models by name and switches."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gsb_vit.errors import InputError
from gsb_vit.quantization import Quantization

from . import zoo  # noqa: F401  (registers the models with timm)
from .binarize import binarize


def require_architecture(name: str) -> None:
    """Raise InputError for a name timm does not know, with the nearest one."""
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise InputError(f"unknown architecture {name!r}; the nearest is {near[0]!r}; timm.list_models() has all")


def build_model(
    architecture: str, args: dict[str, Any], num_classes: int, quantization: Quantization, *, pretrained: bool = False
) -> nn.Module:
    """Build a timm vision transformer and binarize it as ``quantization`` says.

    Raises InputError for an unknown architecture (with the nearest) and arguments it does not take.
    """
    require_architecture(architecture)
    if architecture.startswith("gsb_vit"):
        args = {**args, "quantization": quantization}
    try:
        model = timm.create_model(architecture, pretrained=pretrained, num_classes=num_classes, **args)
    except (TypeError, AssertionError) as error:
        raise InputError(f"{architecture} cannot be built with {args}: {error}; mend the recipe's [model]") from error
    if architecture.startswith("gsb_vit") or quantization == Quantization.full_precision():
        return model
    if not isinstance(model, VisionTransformer):
        raise InputError(
            f"{architecture} is no vision transformer, so it has no one-bit form; use one of timm's vit or deit"
        )
    return binarize(model, quantization)
