"""The optimiser and its schedule: AdamW and cosine from timm, quantizer scales with a rate of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from .recipe import StageRecipe

_SMALLEST_FACTOR = 2.0**-14


def scale_factors(model: nn.Module, recipe: StageRecipe) -> dict[str, float]:
    """Learning-rate factors of the quantizer scales, by parameter name; others have the factor 1.

    Relative: the power of two nearest to the mean size of the scale, at most 1. Absolute: none. The factors are fixed
    when a stage begins and saved with its state, so that a resumed run has the same ones.
    """
    if recipe.scale_learning_rate == "absolute":
        return {}
    factors = {}
    for name, parameter in quantizer_scales(model):
        size = float(parameter.detach().abs().mean())
        factors[name] = min(1.0, max(_SMALLEST_FACTOR, 2.0 ** round(math.log2(max(size, _SMALLEST_FACTOR)))))
    return factors


def quantizer_scales(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The learned scales of quantizers, by name; a timm model may have parameters called scale that are no such."""
    own = {name for name, module in model.named_modules() if type(module).__module__.startswith("gsb_vit.")}
    for name, parameter in model.named_parameters():
        if name.endswith("scale") and name.rpartition(".")[0] in own:
            yield name, parameter


def parameter_groups(
    model: nn.Module, weight_decay: float, factors: Mapping[str, float], hybrid: bool = False
) -> list[dict]:
    """Groups by weight decay and factor. No decay for 0/1-dimensional parameters and what the model exempts.

    A ``hybrid`` optimiser treats matrices as such: of timm's kind it is told to leave parameters of two or more
    dimensions that are no weights of a layer, such as positions and the bias of attention, to its fallback, AdamW.
    The order is that of the first parameter of each group, so equal arguments give equal groups.
    """
    exempt: set[str] = set(ask()) if callable(ask := getattr(model, "no_weight_decay", None)) else set()
    groups: dict[tuple[float, float, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name in exempt else weight_decay
        factor = factors.get(name, 1.0)
        plain = hybrid and parameter.ndim > 1 and not name.endswith("weight")
        settings = {"weight_decay": decay, "lr_scale": factor} | ({"use_fallback": True} if plain else {})
        groups.setdefault((decay, factor, plain), {"params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def make_optimizer(
    model: nn.Module, recipe: StageRecipe, factors: Mapping[str, float], steps: int
) -> tuple[torch.optim.Optimizer, Scheduler]:
    """The optimiser and its schedule over ``steps`` updates an epoch; timm's schedule multiplies by ``lr_scale``."""
    groups = parameter_groups(model, recipe.weight_decay, factors, hybrid="muon" in recipe.optimizer)
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    fused: dict[str, Any] = {"fused": True} if on_gpu and recipe.optimizer in ("adam", "adamw") else {}
    optimizer = create_optimizer_v2(groups, opt=recipe.optimizer, lr=recipe.peak_learning_rate(), **fused)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe.epochs,
        min_lr=recipe.min_learning_rate,
        warmup_lr=recipe.min_learning_rate,
        warmup_epochs=min(recipe.warmup_epochs, recipe.epochs - 1),
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return optimizer, schedule
