"""Models by name and switches, and what a model file says about one."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.train.recipe import ModelRecipe, Recipe

from . import zoo  # noqa: F401  (registers the models with timm)
from .binarize import Quantization, binarize


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a model file says about itself."""

    architecture: str
    model_args: dict[str, Any]
    quantization: Quantization
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    stage: str
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{f: getattr(self, f) for f in ("architecture", "model_args", "stage", "provenance")},
            "quantization": self.quantization.to_dict(),
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelInfo:
        """Read what ``to_json`` wrote. Raises KeyError or TypeError for values of another form."""
        return cls(
            architecture=values["architecture"],
            model_args=dict(values["model_args"]),
            quantization=Quantization.create(dict(values["quantization"])),
            class_names=tuple(values["class_names"]),
            preprocessing=Preprocessing.from_json(values["preprocessing"]),
            stage=values["stage"],
            provenance=dict(values["provenance"]),
        )


def model_args(recipe: ModelRecipe) -> dict[str, Any]:
    """Keyword arguments for the architecture: what the recipe gives, without what it leaves to the architecture."""
    values = dataclasses.asdict(recipe)
    values.pop("architecture")
    return {key: value for key, value in values.items() if value is not None}


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
