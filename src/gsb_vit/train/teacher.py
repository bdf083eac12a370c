"""The teacher of a recipe: the student's full-precision twin, a model of timm with weights from anywhere, or a file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gsb_vit.data.class_names import class_names as spelled
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.models import zoo  # noqa: F401  (registers the models with timm)
from gsb_vit.models.arguments import require_architecture, takes_a_size
from gsb_vit.models.build import build_model
from gsb_vit.models.trained import ModelInfo, load_model
from gsb_vit.train.recipe import Recipe, StageRecipe, TeacherRecipe

from .weights import fit_weights, head_parameters, load_fit, read_weights


@dataclass(frozen=True)
class Teacher:
    """A model that teaches: its stage's name, the pictures it reads, and whether it may compute in bfloat16."""

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    fast: bool = False


def teacher_preprocessing(recipe: Recipe, student: Preprocessing) -> Preprocessing:
    """How pictures become the teacher's input: as the student's, in the teacher's own size and normalisation."""
    teacher = recipe.teacher
    defaults: dict[str, Any] = {}
    if teacher.weights is not None:
        config = _config(teacher.source.removeprefix("timm:"))
        defaults = {"size": tuple(config.input_size[1:]), "mean": tuple(config.mean), "std": tuple(config.std)}
    own = {"size": teacher.img_size and (teacher.img_size,) * 2, "mean": teacher.mean, "std": teacher.std}
    return dataclasses.replace(
        student, **{**defaults, **{key: value for key, value in own.items() if value is not None}}
    )


def build_teacher(
    recipe: Recipe, info: ModelInfo, say: Callable[[str], None], *, load: bool = True
) -> tuple[nn.Module, ModelInfo]:
    """The untrained (or pretrained) teacher of a recipe whose source is ``twin`` or ``timm:NAME``, and its description.

    ``info`` describes the student's twin. Where ``pretrained`` weights are asked for and cannot be had, ``say`` is told
    and the teacher starts from scratch; ``weights`` that cannot be had are an InputError. Without ``load`` they are not
    read: a resumed teacher has its own.
    """
    source, switches = recipe.teacher.source, recipe.teacher.quantization
    classes = len(info.class_names)
    if source == "twin":
        return build_model(info.architecture, info.model_args, classes, switches), info
    name = source.removeprefix("timm:")
    preprocessing = teacher_preprocessing(recipe, info.preprocessing)
    args = timm_arguments(name, preprocessing.size[0], recipe.model.drop_path_rate, classes)
    info = dataclasses.replace(info, architecture=name, model_args=args, preprocessing=preprocessing)
    if recipe.teacher.weights is not None:
        model = build_model(name, args, classes, switches)
        if load:
            load_weights(model, recipe, say)
        return model, dataclasses.replace(info, provenance={**info.provenance, "weights": recipe.teacher.weights})
    pretrained = recipe.teacher.pretrained
    try:
        model = build_model(name, args, classes, switches, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        say(f"teacher: no pretrained weights for {name} ({type(error).__name__}); it starts from scratch")
        pretrained, model = False, build_model(name, args, classes, switches)
    return model, dataclasses.replace(info, provenance={**info.provenance, "pretrained": pretrained})


def load_weights(model: nn.Module, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Fill a timm teacher with the recipe's weights, its classifier left out; say what did and did not fit."""
    source = str(recipe.teacher.weights)
    fit = fit_weights(model, read_weights(source), recipe.teacher.weights_order, source)
    load_fit(model, fit)
    say(f"teacher: {recipe.teacher.source} with the weights of {source} and a new classifier: {fit}")


def timm_arguments(name: str, size: int, drop_path_rate: float, classes: int) -> dict[str, Any]:
    """Arguments a timm model takes: stochastic depth where it has it, and the picture size where it is built for one.

    Raises InputError for an unknown name, with the nearest.
    """
    require_architecture(name)
    sized: dict[str, Any] = {"img_size": size} if takes_a_size(name) else {}
    full = {"drop_path_rate": drop_path_rate, **sized}
    with torch.device("meta"):
        for args in (full, sized):
            try:
                timm.create_model(name, num_classes=classes, **args)
            except TypeError:
                continue
            except Exception:
                break
            return args
    return full


def require_teacher(recipe: Recipe, classes: int, student: Preprocessing, *, weights: bool = True) -> None:
    """Raise InputError where the recipe's timm teacher cannot be built, or its weights be had or fit."""
    if not recipe.teacher.source.startswith("timm:"):
        return
    name = recipe.teacher.source.removeprefix("timm:")
    require_architecture(name)
    if recipe.teacher.weights is not None:
        args = timm_arguments(
            name, teacher_preprocessing(recipe, student).size[0], recipe.model.drop_path_rate, classes
        )
        model = build_model(name, args, classes, recipe.teacher.quantization)
        if weights:
            load_weights(model, recipe, lambda text: None)


def load_teacher(source: str, class_names: tuple[str, ...]) -> Teacher:
    """A trained teacher from a file or run. Raises InputError where its classes are not the data's."""
    trained = load_model(source)
    if spelled(trained.class_names) != spelled(class_names):
        raise InputError(
            f"teacher {source!r} knows {len(trained.class_names)} classes that are not the {len(class_names)} of "
            "the data; train it on the same classes"
        )
    return Teacher("teacher", trained.model, trained.preprocessing)


class HeadFirst:
    """The epochs in which a teacher's classifier alone is trained, and BatchNorm that keeps its statistics.

    In a head epoch the model is in evaluation mode, so that its features are those it was trained for, and all else
    than the classifier gets no gradient. Other stages than the teacher's have no such epochs.
    """

    def __init__(self, model: nn.Module, recipe: StageRecipe) -> None:
        own = recipe if isinstance(recipe, TeacherRecipe) else None
        self.model = model
        self.epochs = min(own.head_epochs, own.epochs) if own else 0
        self.epochs_of_all = max(1, recipe.epochs - self.epochs)
        self.frozen = own.batch_norm_frozen if own else False
        self._rates = (own.head_learning_rate, own.min_learning_rate) if own else (0.0, 0.0)
        head = {id(p) for p in head_parameters(model)} if self.epochs else set()
        self._body = [p for p in model.parameters() if id(p) not in head and p.requires_grad] if self.epochs else []

    def prepare(self, epoch: int, alone: bool) -> None:
        """Set modes for an epoch, after ``train()``; a process that is not ``alone`` computes all gradients."""
        if epoch < self.epochs:
            self.model.eval()
        for parameter in self._body if alone else ():
            parameter.requires_grad_(epoch >= self.epochs)
        for module in self.model.modules() if self.frozen else ():
            if isinstance(module, _BatchNorm):
                module.eval()

    def drop_gradients(self, epoch: int) -> None:
        """Between backward and step: only the classifier moves in a head epoch."""
        for parameter in self._body if epoch < self.epochs else ():
            parameter.grad = None

    def learning_rate(self, share: float) -> float:
        """After a share of the head epochs: from ``head_learning_rate`` along a cosine to the smallest."""
        highest, lowest = self._rates
        return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * share))


def _config(name: str) -> Any:
    """What timm knows of a model's weights: input size, mean and std."""
    return get_pretrained_cfg(name)
