"""Checks of a recipe's teacher, twin and distillation: numbers in range, and settings that go together."""

from __future__ import annotations

from typing import Any

from gsb_vit.errors import InputError, shown

from .recipe import DistillationRecipe, Recipe


def require(holds: bool, key: str, value: Any, allowed: str) -> None:
    """Raise InputError, naming the recipe key and what is allowed, unless ``holds``."""
    if not holds:
        raise InputError(f"recipe key {key} = {shown(value)} is out of range; it must be {allowed}")


def check_teaching(recipe: Recipe) -> None:
    """Raise InputError for a teacher, a twin or a distillation that cannot be."""
    _check_distillation(recipe, "distillation", recipe.distillation)
    _check_distillation(recipe, "twin.distillation", recipe.twin.distillation)
    for table, taught in (("distillation", ("stage1", "stage2")), ("twin.distillation", ("twin",))):
        kind = recipe.distillation.kind if table == "distillation" else recipe.twin.distillation.kind
        for name in taught if kind == "match" else ():
            if getattr(recipe, name).epochs and recipe.learns_from(name) is None:
                raise InputError(
                    f'{table}.kind = "match" learns from a teacher alone and {name} has none; give teacher.source, or '
                    f'{table}.kind = "none"'
                )
    _check_teacher(recipe)


def _check_distillation(recipe: Recipe, table: str, values: DistillationRecipe) -> None:
    require(0 <= values.alpha <= 1, f"{table}.alpha", values.alpha, "from 0 to 1")
    require(values.tau > 0, f"{table}.tau", values.tau, "above 0")
    weight = values.feature_weight
    require(weight >= 0, f"{table}.feature_weight", weight, "0 or above")
    require(not (weight and recipe.compile), f"{table}.feature_weight", weight, "0 where compile = true")
    cached = recipe.teacher.cache_views > 0
    require(not (weight and cached), f"{table}.feature_weight", weight, "0 where teacher.cache_views is above 0")


def _check_teacher(recipe: Recipe) -> None:
    teacher = recipe.teacher
    own = [name for name in ("weights", "img_size", "mean", "std") if getattr(teacher, name) is not None]
    if own and not teacher.source.startswith("timm:"):
        raise InputError(f'teacher.{own[0]} goes with teacher.source = "timm:NAME", not {teacher.source!r}; drop one')
    if teacher.weights is not None and teacher.epochs == 0:
        raise InputError("teacher.weights get a new classifier, which must be trained; set teacher.epochs above 0")
    if teacher.weights is not None and teacher.pretrained:
        raise InputError("teacher.weights and teacher.pretrained both name weights; drop one")
    require(teacher.img_size is None or teacher.img_size > 0, "teacher.img_size", teacher.img_size, "at least 1")
    require(teacher.std is None or min(teacher.std) > 0, "teacher.std", teacher.std, "above 0 in every channel")
    require(teacher.head_epochs >= 0, "teacher.head_epochs", teacher.head_epochs, "0 (off) or larger")
    rate = teacher.head_learning_rate
    require(rate > 0, "teacher.head_learning_rate", rate, "above 0")
    require(teacher.cache_views >= 0, "teacher.cache_views", teacher.cache_views, "0 (off) or larger")
    if teacher.views is not None and not teacher.cache_views:
        raise InputError(f"teacher.views = {teacher.views!r} needs teacher.cache_views above 0; set it, or drop views")
    if teacher.cache_views and recipe.augment.policy != "batch":
        raise InputError(
            f'teacher.cache_views = {teacher.cache_views} needs augment.policy = "batch", not {recipe.augment.policy!r}'
        )
