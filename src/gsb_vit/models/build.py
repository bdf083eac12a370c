"""Models by name and switches."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from gsb_vit.errors import InputError
from gsb_vit.nn.tokenizer import ConvEmbed
from gsb_vit.quantization import Quantization

from .arguments import check_arguments, require_architecture
from .binarize import binarize


class Enlarged(nn.Module):
    """A model behind a bilinear enlargement of its pictures, (B, 3, H, W) → (B, 3, ``size``, ``size``).

    It computes channels-last, which is faster for convolutions on a CPU.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pictures of any size → logits (B, K)."""
        x = x.contiguous(memory_format=torch.channels_last)
        shown = functional.interpolate(x, (self.size, self.size), mode="bilinear", align_corners=False)
        logits: Tensor = self.model(shown)
        return logits


def build_model(
    architecture: str, args: dict[str, Any], num_classes: int, quantization: Quantization, *, pretrained: bool = False
) -> nn.Module:
    """Build a timm vision transformer and binarize it as ``quantization`` says.

    Raises InputError for an unknown architecture (with the nearest), and for arguments that are not those of
    ``arguments.ARGUMENTS``, out of range, too large or not the architecture's.
    """
    require_architecture(architecture)
    check_arguments(architecture, args, num_classes)
    given = {**args, "quantization": quantization} if architecture.startswith("gsb_vit") else dict(args)
    shown = given.pop("shown_size", None)
    if shown and quantization != Quantization.full_precision():
        raise InputError(f"shown_size = {shown} enlarges the pictures of full-precision models only; leave it out")
    if channels := given.pop("tokenizer_channels", ()):
        given["embed_layer"] = partial(ConvEmbed, channels)
    try:
        model = timm.create_model(architecture, pretrained=pretrained, num_classes=num_classes, **given)
    except InputError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if pretrained and isinstance(error, RuntimeError):
            raise  # weights that could not be fetched
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{architecture} cannot be built with {args}: {reason}; mend the recipe's [model]") from error
    if architecture.startswith("gsb_vit") or quantization == Quantization.full_precision():
        return Enlarged(model, shown) if shown else model
    if not isinstance(model, VisionTransformer):
        raise InputError(
            f"{architecture} is no vision transformer, so it has no one-bit form; use one of timm's vit or deit"
        )
    return binarize(model, quantization)
