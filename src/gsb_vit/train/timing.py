"""How long a run will take on this machine: some steps of every stage are really trained, and timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.splits import DataSplits
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.models.trained import ModelInfo
from gsb_vit.terminal import plain_console

from .batches import EvaluationPictures, TrainingPictures
from .evaluate import model_logits
from .log import RunLog
from .loop import StageRun, StageSetting
from .precision import fast_products
from .prepare import preprocessing_of
from .recipe import STAGES, Recipe, StageRecipe
from .teacher import Teacher, build_teacher, load_teacher

_PROBE = 8  # pictures of a step that is tried first
_SLOW = 12.0  # seconds: a whole step that seems to take longer is reckoned from two small ones
_STEPS = 2  # whole steps that are timed, one where it is not quick
_QUICK = 1.0
_JUDGED = 64
_LOGGED = 1100  # bytes of an epoch's line of metrics.jsonl and its TensorBoard scalars


@dataclass(frozen=True)
class StageCost:
    """What a stage costs here: seconds a training step, seconds a picture to judge, and bytes on the disk."""

    step: float
    judge: float
    parameters: int
    disk: int


def measure(recipe: Recipe, data: DataSplits, accelerator: Accelerator, threads: int) -> dict[str, StageCost]:
    """Train a few steps of every stage of the recipe, with random weights, and time them: stage → cost.

    One process measures. PyTorch takes ``threads`` meanwhile. Views are not kept: a stage that keeps what its teacher
    says (``teacher.cache_views``) takes less than this.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory(prefix="gsb-vit-plan-") as folder:
            return _Trial(recipe, data, accelerator, Path(folder)).costs()
    finally:
        torch.set_num_threads(before)


class _Trial:
    def __init__(self, recipe: Recipe, data: DataSplits, accelerator: Accelerator, folder: Path) -> None:
        self.recipe = recipe
        self.data = data
        self.accelerator = accelerator
        self.folder = folder
        self.log = RunLog(folder, plain_console(quiet=True), False)

    def costs(self) -> dict[str, StageCost]:
        recipe, costs = self.recipe, {}
        teachers: dict[str | None, Teacher] = {}
        if (found := self._teacher()) is not None:
            teachers["teacher"] = found[0]
            if found[1] is not None:
                costs["teacher"] = self._cost("teacher", found[0].model, None, found[1])
        for name in STAGES[1:]:
            stage: StageRecipe = getattr(recipe, name)
            if not stage.epochs:
                continue
            info = self._info(stage)
            model = build_model(info.architecture, info.model_args, len(info.class_names), info.quantization)
            costs[name] = self._cost(name, model, teachers.get(recipe.learns_from(name)), info)
            if name == "twin":
                teachers[name] = Teacher(name, model, info.preprocessing)
        return costs

    def _teacher(self) -> tuple[Teacher, ModelInfo | None] | None:
        """The untrained teacher and its description, None for one that is not trained here."""
        recipe, source = self.recipe, self.recipe.teacher.source
        if not recipe.has_teacher:
            return None
        fast = recipe.teacher.precision == "fast"
        if source != "twin" and not source.startswith("timm:"):
            teacher = load_teacher(source, self.data.class_names)
            return replace(teacher, model=teacher.model.to(self.accelerator.device), fast=fast), None
        plain = replace(recipe, teacher=replace(recipe.teacher, pretrained=False))
        model, info = build_teacher(plain, self._info(recipe.teacher), self.log.say, load=False)
        return Teacher("teacher", model, info.preprocessing, fast), info if recipe.teacher.epochs else None

    def _info(self, stage: StageRecipe) -> ModelInfo:
        model, read_as = self.recipe.model, preprocessing_of(self.recipe)
        names = self.data.class_names
        return ModelInfo(model.architecture, model.arguments(), stage.quantization, names, read_as, "trial", {})

    def _cost(self, name: str, model: nn.Module, teacher: Teacher | None, info: ModelInfo) -> StageCost:
        stage: StageRecipe = getattr(self.recipe, name)
        batch = min(stage.batch_size, len(self.data.train))
        probe = min(_PROBE, batch)
        run = self._stage(name, model, teacher, info, probe, 1)
        small = _seconds(run)
        step = small * batch / probe
        if batch > probe and step < _SLOW:
            run = self._stage(name, model, teacher, info, batch, _STEPS if step < _QUICK else 1)
            step = _seconds(run) / run.steps
        elif batch > 2 * probe:
            run = self._stage(name, model, teacher, info, 2 * probe, 1)
            a_picture = max(_seconds(run) - small, 0) / probe
            step = min(step, small + a_picture * (batch - probe))
        shown = EvaluationPictures(_some(self.data.train, _JUDGED), info.preprocessing)
        model_logits(run.averaged, shown, self.accelerator)
        started = time.perf_counter()
        model_logits(run.averaged, shown, self.accelerator)
        judge = (time.perf_counter() - started) / len(shown)
        model.train()
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        known = 4 * len(self.data.train) * (len(info.class_names) + 1)
        # Best and last; the state and the one before it hold the model, its average and two moments of the optimiser.
        disk = 2 * size + 2 * ((3 + (stage.ema_decay > 0)) * size + known) + known // 2
        return StageCost(step, judge, sum(p.numel() for p in model.parameters()), disk)

    def _stage(
        self, name: str, model: nn.Module, teacher: Teacher | None, info: ModelInfo, batch: int, steps: int
    ) -> StageRun:
        stage: StageRecipe = getattr(self.recipe, name)
        distillation = self.recipe.distillation_of(name)
        teacher = None if distillation.kind == "none" else teacher
        pictures = _some(self.data.train, batch * steps)
        read_as = info.preprocessing if teacher is None else teacher.preprocessing
        device, limit = self.accelerator.device, self.recipe.data.memory_limit_mb
        setting = StageSetting(
            name=name,
            recipe=replace(stage, batch_size=batch),
            distillation=distillation,
            seed=self.recipe.seed,
            validate_every=1,
            compile=False,
            folder=self.folder,
            info=info,
            training=TrainingPictures(pictures, info.preprocessing, self.recipe.augment, limit, device, read_as),
            validation=EvaluationPictures(_some(pictures, 0), info.preprocessing),
            validation_labels=torch.zeros(0, dtype=torch.int64),
        )
        run = StageRun(setting, model, teacher, self.accelerator, self.log, 0)
        images, _ = next(setting.training.epoch(setting.epoch_seed(0), batch))
        initialize_scales(model, images)
        run.begin()
        return run


class _NoBar:
    def step(self, total: Tensor) -> None:
        """Show nothing."""


def _seconds(run: StageRun) -> float:
    """Seconds of an epoch, after one in which pictures are decoded and PyTorch finds its way."""
    epoch = run.setting.recipe.epochs - 1
    with fast_products(run.accelerator.device):
        run._epoch(run.task, run.optimizer, epoch, _NoBar())
        started = time.perf_counter()
        run._epoch(run.task, run.optimizer, epoch, _NoBar())
    return time.perf_counter() - started


def _some(pictures: LabelledPictures, count: int) -> LabelledPictures:
    """At most so many pictures, from all over the data."""
    return pictures.take(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(np.int64))


@dataclass(frozen=True)
class Costs:
    """Seconds of a whole run: of an epoch of every stage, and of what does not depend on the epochs."""

    epoch: Mapping[str, float]
    fixed: float
    disk: int

    def total(self, recipe: Recipe) -> float:
        """Seconds of a run of the recipe's epochs."""
        return self.fixed + sum(getattr(recipe, name).epochs * seconds for name, seconds in self.epoch.items())


def reckon(recipe: Recipe, data: DataSplits, costs: Mapping[str, StageCost], decode: float) -> Costs:
    """What a run costs by what its stages cost; ``decode``: seconds to decode a picture."""
    every = len(data.training(any(map(recipe.shows_unlabelled, costs))))
    judged, tested = len(data.validation), len(data.test)
    epoch = {}
    for name, cost in costs.items():
        trained = len(data.training(recipe.shows_unlabelled(name)))
        steps = max(1, trained // getattr(recipe, name).batch_size)
        epoch[name] = steps * cost.step + judged * cost.judge / recipe.validate_every
        if not _kept(recipe, trained):
            epoch[name] += trained * decode
    ends = sum((judged + tested) * cost.judge for cost in costs.values())
    fixed = (every + judged + tested) * decode + ends
    logs = _LOGGED * sum(getattr(recipe, name).epochs for name in costs)
    return Costs(epoch, fixed, sum(cost.disk for cost in costs.values()) + logs)


def _kept(recipe: Recipe, pictures: int) -> bool:
    """Whether decoded pictures stay in memory."""
    side = max(recipe.model.img_size, recipe.teacher.img_size or 0) * 1.25
    return recipe.augment.policy != "timm" and pictures * side * side * 3 <= recipe.data.memory_limit_mb * 2**20
