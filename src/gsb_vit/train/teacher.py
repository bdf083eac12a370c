"""The teacher of a recipe: the student's full-precision twin, or a model of timm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from gsb_vit.models import zoo  # noqa: F401  (registers the models with timm)
from gsb_vit.models.build import build_model
from gsb_vit.models.trained import ModelInfo
from gsb_vit.train.recipe import Recipe


def build_teacher(recipe: Recipe, info: ModelInfo, say: Callable[[str], None]) -> tuple[nn.Module, ModelInfo]:
    """The untrained (or pretrained) teacher of a recipe whose source is ``twin`` or ``timm:NAME``, and its description.

    Where pretrained weights are asked for and cannot be had, ``say`` is told and the teacher starts from scratch.
    """
    source, switches = recipe.teacher.source, recipe.teacher.quantization
    classes = len(info.class_names)
    if source == "twin":
        return build_model(info.architecture, info.model_args, classes, switches), info
    name = source.removeprefix("timm:")
    args: dict[str, Any] = {"drop_path_rate": recipe.model.drop_path_rate}
    if name.partition(".")[0].startswith(("vit", "deit", "gsb_vit", "beit", "eva", "swin")):
        args["img_size"] = recipe.model.img_size
    info = dataclasses.replace(info, architecture=name, model_args=args)
    pretrained = recipe.teacher.pretrained
    try:
        model = build_model(name, args, classes, switches, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        say(f"teacher: no pretrained weights for {name} ({type(error).__name__}); it starts from scratch")
        pretrained, model = False, build_model(name, args, classes, switches)
    return model, dataclasses.replace(info, provenance={**info.provenance, "pretrained": pretrained})
