"""One stage of training: optimiser, schedule, epochs, guards, checkpoints, resume."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from gsb_vit.errors import InputError
from gsb_vit.models.trained import BEST, LAST, ModelInfo, find_model, save_model, write_tensors

from .augment import Mixing
from .batches import EvaluationPictures, TrainingPictures
from .checkpoint import STATE, keep_previous, optimizer_tensors, read_stage_file, read_state, restore_optimizer
from .confidence import CONFIDENCE, Confidence
from .distill import DistillationTask
from .evaluate import model_logits, validation_score
from .guards import ScaleFloor, check_loss, check_parameters
from .log import RunLog
from .optimize import make_optimizer, scale_factors
from .precision import fast_attention, fast_products
from .recipe import SEED_NUMBERS, DistillationRecipe, StageRecipe
from .seeds import seed_everything
from .teacher import HeadFirst, Teacher
from .views import CachedViews, LiveViews, views_key

Views = LiveViews | CachedViews

SAVING_SHARE = 0.05  # of the time of training: epochs shorter than 20 times a save are not saved one by one


@dataclass(frozen=True)
class StageSetting:
    """What a stage trains, on what, where it writes and how its randomness is seeded."""

    name: str
    recipe: StageRecipe
    distillation: DistillationRecipe
    seed: int
    validate_every: int
    compile: bool
    folder: Path
    info: ModelInfo
    training: TrainingPictures
    validation: EvaluationPictures
    validation_labels: Tensor
    cache_views: int = 0
    shared_views: str | None = None

    @property
    def index(self) -> int:
        """The stage's number, part of every seed."""
        return SEED_NUMBERS[self.name]

    def epoch_seed(self, epoch: int) -> tuple[int, ...]:
        """Seed of the order and variation of one epoch's pictures."""
        return (self.seed, self.index, epoch)

    def views(self, task: DistillationTask, teacher: Teacher | None, accelerator: Accelerator) -> Views:
        """Where the stage's batches come from: new views in every epoch, or those drawn once.

        Stages that mix alike under one teacher share what it said of their views; runs do where all that decides it is
        equal and the recipe names a folder for it.
        """
        mixing = Mixing(self.recipe.mixup, self.recipe.cutmix, len(self.info.class_names))
        if not (self.cache_views and teacher is not None and task.has_teacher):
            return LiveViews(self.training, mixing, task)
        mixes, seed = (self.recipe.mixup, self.recipe.cutmix), (self.seed, SEED_NUMBERS["views"])
        stem = self.folder.parent / "views" / f"{teacher.name}-{mixes[0]:g}-{mixes[1]:g}"
        if self.shared_views is not None:
            stem = Path(self.shared_views) / views_key(self.training, mixes, teacher.model, seed)
        shared = accelerator.wait_for_everyone
        return CachedViews(self.training, mixing, task, self.cache_views, seed, stem, accelerator.autocast, shared)


@dataclass
class Progress:
    """Where a stage stands at the end of an epoch; all that resuming needs besides tensors."""

    epoch: int = 0
    log_bytes: int = 0
    seconds: float = 0.0


class StageRun:
    """Trains one model through one stage: ``restore()`` or ``begin()``; ``run()`` leaves the chosen weights in it."""

    def __init__(
        self,
        setting: StageSetting,
        model: nn.Module,
        teacher: Teacher | None,
        accelerator: Accelerator,
        log: RunLog,
        log_bytes: int,
    ) -> None:
        self.setting = setting
        self.model = model
        self.accelerator = accelerator
        self.log = log
        self.progress = Progress(log_bytes=log_bytes)
        recipe = setting.recipe
        if recipe.batch_size % accelerator.num_processes:
            raise InputError(
                f"{setting.name}.batch_size = {recipe.batch_size} cannot be shared by {accelerator.num_processes} "
                "processes; use a multiple of their number"
            )
        model.to(accelerator.device)
        taught_by = (teacher.model, teacher.fast) if teacher is not None else (None, False)
        self.task = DistillationTask(model, taught_by[0], setting.distillation, recipe.label_smoothing, taught_by[1])
        self.views = setting.views(self.task, teacher, accelerator)
        self.head_first = HeadFirst(model, recipe)
        self.floor = ScaleFloor(model)
        self.steps = setting.training.steps(recipe.batch_size)
        self.confidence = Confidence(setting.training.labelled, len(setting.info.class_names))
        self.best: tuple[float, float] | None = None
        self.best_epoch, self.stopped = 0, False
        self.saved_at, self.save_seconds = float("-inf"), 0.0

    def begin(self) -> None:
        """Make the optimiser; the model's scales are initialised."""
        self._make_optimizer(scale_factors(self.model, self.setting.recipe))
        self._start_average()

    def _make_optimizer(self, factors: dict[str, float]) -> None:
        self.factors = factors
        recipe = replace(self.setting.recipe, epochs=self.head_first.epochs_of_all)
        self.optimizer, self.schedule = make_optimizer(self.model, recipe, factors, self.steps)

    def _start_average(self) -> None:
        """Begin the running average of the weights, where the recipe wants one, at the model as it is."""
        decay = self.setting.recipe.ema_decay
        self.average = ModelEmaV3(self.model, decay) if decay else None

    @property
    def averaged(self) -> nn.Module:
        """The model that is validated and saved: the running average of the weights where there is one."""
        return self.model if self.average is None else self.average.module

    def restore(self) -> bool:
        """Go back to the last saved epoch; False where there is none."""
        if (found := read_state(self.setting.folder, self.log.say)) is None:
            return False
        path, tensors, state = found
        self.stopped = bool(state.pop("stopped", False))
        if state.keys() != {*vars(self.progress), "scale_factors"}:
            raise InputError(
                f"{path} was written by another version of gsb-vit; start a new run, or resume it with that"
            )
        try:
            self.model.load_state_dict(_named(tensors, "model."))
            self._make_optimizer(state.pop("scale_factors"))
            restore_optimizer(self.optimizer, tensors)
            self.confidence.restore(tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} is the state of another model than the recipe's; resume with the run's own recipe"
            ) from error
        self._start_average()
        if self.average is not None:
            self.averaged.load_state_dict(_named(tensors, "average."))
        self.progress = Progress(**state)
        # A best file newer than the state is a true result of the epoch that is about to be repeated.
        best = self.setting.folder / BEST
        if best.is_file():
            provenance = read_stage_file(best)[1]["provenance"]
            self.best = (provenance["validation_top1"], -provenance["validation_loss"])
            self.best_epoch = provenance["epoch"]
        return True

    def run(self) -> None:
        """Train from the current epoch to the last, or to where patience ends; then load the chosen weights."""
        setting, accelerator = self.setting, self.accelerator
        if self.stopped or self.progress.epoch >= setting.recipe.epochs:
            if (
                accelerator.is_main_process and not (setting.folder / CONFIDENCE).is_file()
            ):  # killed before it was there
                self.confidence.write(setting.folder)
            self._load_chosen()
            return
        check_parameters(self.model, f"{setting.name}, before epoch {self.progress.epoch + 1}")
        for model in self.task.models if setting.compile else ():
            model.compile()
        task, optimizer = accelerator.prepare(self.task, self.optimizer)
        with self.log.stage(setting.name, setting.recipe.epochs, self.steps, self.progress) as bar:
            for epoch in range(self.progress.epoch, setting.recipe.epochs):
                started = time.perf_counter()
                with fast_products(accelerator.device):
                    record = self._epoch(task, optimizer, epoch, bar)
                check_parameters(self.model, f"{setting.name}, epoch {epoch + 1}")
                if (news := self.floor.news()) is not None:
                    self.log.say_prose(f"{setting.name}, epoch {epoch + 1}: {news}")
                if (epoch + 1) % setting.validate_every == 0 or epoch + 1 == setting.recipe.epochs:
                    record |= self._validate(epoch)
                    self.stopped = self._out_of_patience(epoch)
                self._finish_epoch(epoch, record, time.perf_counter() - started, bar)
                if self.stopped:
                    break
        if self.stopped:
            self.log.say_prose(
                f"{setting.name}: no epoch was better than {self.best_epoch} in {setting.recipe.patience}; "
                f"stopped after epoch {self.progress.epoch} of {setting.recipe.epochs}"
            )
        self._load_chosen()

    def _out_of_patience(self, epoch: int) -> bool:
        """Whether no epoch was the best for so long that the stage ends before its last epoch.

        It follows from the epochs alone: a run that was resumed stops where one that was never stopped does.
        """
        patience, done = self.setting.recipe.patience, epoch + 1
        return 0 < patience <= done - self.best_epoch and self.best is not None and done < self.setting.recipe.epochs

    def _epoch(self, task: nn.Module, optimizer: Any, epoch: int, bar: Any) -> dict[str, float]:
        setting, accelerator = self.setting, self.accelerator
        seed_everything(*setting.epoch_seed(epoch), accelerator.process_index)
        task.train()
        self.head_first.prepare(epoch, alone=accelerator.num_processes == 1)
        check_every = 1 if accelerator.device.type == "cpu" else 50
        total = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
        started = time.perf_counter()
        batches = self.views.batches(
            setting.epoch_seed(epoch),
            epoch,
            setting.recipe.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
        for step in range(self.steps):
            self._set_learning_rate(epoch, step)
            batch = next(batches)
            images, labels = batch.images, batch.labels
            with accelerator.autocast(), fast_attention(self.task.models):
                out = task(images, batch.targets, self.views.lesson(batch))
            if step % check_every == 0:
                check_loss(out["loss"].detach(), self.model, images, f"{setting.name}, epoch {epoch + 1}")
            accelerator.backward(out["loss"])
            self.head_first.drop_gradients(epoch)
            if setting.recipe.clip_grad > 0:
                accelerator.clip_grad_norm_(task.parameters(), setting.recipe.clip_grad)
            optimizer.step()
            self.floor.hold()
            optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(self.model)
            hits, known = (out["output"].argmax(1) == labels).sum(), (labels >= 0).sum()
            if batch.targets is labels:  # a mixed picture shows two classes
                self.confidence.add(batch.indices, out["output"])
            total += torch.stack([out["loss"].detach() * len(labels), hits, torch.tensor(len(labels)).to(hits), known])
            bar.step(total)
        loss, hits, count, known = accelerator.reduce(total, "sum").tolist()
        self.confidence.finish_epoch(accelerator)
        elapsed = time.perf_counter() - started
        record = {
            "learning_rate": self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            "train_loss": loss / count,
            "train_top1": hits / max(known, 1),  # of the pictures with labels
            "images_per_s": count / elapsed,
            "data_wait": self.views.fetched / elapsed,
        }
        return record | ({"teacher_wait": self.views.waited / elapsed} if self.task.has_teacher else {})

    def _set_learning_rate(self, epoch: int, step: int) -> None:
        """The schedule's, or in a teacher's head epochs theirs."""
        done = (epoch - self.head_first.epochs) * self.steps + step
        if done >= 0:
            self.schedule.step_update(done)
            return
        rate = self.head_first.learning_rate((epoch * self.steps + step) / (self.head_first.epochs * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]

    def _validate(self, epoch: int) -> dict[str, float]:
        """Validation metrics; a better epoch than any before is written to best.safetensors."""
        setting = self.setting
        if len(setting.validation) == 0:
            return {}
        logits = model_logits(self.averaged, setting.validation, self.accelerator)
        top1, loss = validation_score(logits, setting.validation_labels)
        if setting.recipe.select == "best" and (self.best is None or (top1, -loss) > self.best):
            self.best, self.best_epoch = (top1, -loss), epoch + 1
            self._save_model(BEST, epoch, validation_top1=top1, validation_loss=loss)
        return {"validation_top1": top1, "validation_loss": loss}

    def _finish_epoch(self, epoch: int, record: dict[str, float], seconds: float, bar: Any) -> None:
        """Log, then save: a kill between the two leaves lines that resuming cuts off again.

        The last epoch, be it that of patience, is saved, and every other unless that would take more than
        ``SAVING_SHARE`` of the time.
        """
        self.progress = Progress(epoch + 1, 0, self.progress.seconds + seconds)
        line = {"stage": self.setting.name, "epoch": epoch + 1, **record, "seconds": self.progress.seconds}
        self.log.epoch(line, bar)
        self.progress.log_bytes = self.log.position()
        started = time.perf_counter()
        last = self.stopped or epoch + 1 == self.setting.recipe.epochs
        if last or self.save_seconds <= SAVING_SHARE * (started - self.saved_at):
            self._save(epoch)
            self.saved_at = time.perf_counter()
            self.save_seconds = self.saved_at - started
        self.accelerator.wait_for_everyone()

    def _save(self, epoch: int) -> None:
        """Write the model, then the state that resuming needs."""
        self._save_model(LAST, epoch)
        if self.accelerator.is_main_process:
            tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
            if self.average is not None:
                tensors |= {f"average.{name}": tensor for name, tensor in self.averaged.state_dict().items()}
            tensors |= {**optimizer_tensors(self.optimizer), **self.confidence.tensors()}
            state = {**vars(self.progress), "scale_factors": self.factors}
            state |= {"stopped": True} if self.stopped else {}
            keep_previous(self.setting.folder)
            write_tensors(self.setting.folder / STATE, tensors, state)
            if self.stopped or epoch + 1 == self.setting.recipe.epochs:
                self.confidence.write(self.setting.folder)

    def _save_model(self, name: str, epoch: int, **extra: float) -> None:
        if self.accelerator.is_main_process:
            provenance = {**self.setting.info.provenance, "epoch": epoch + 1, **extra}
            info = replace(self.setting.info, provenance=provenance)
            save_model(self.setting.folder / name, self.averaged, info)

    def _load_chosen(self) -> None:
        self.accelerator.wait_for_everyone()
        tensors, _ = read_stage_file(find_model(self.setting.folder))
        self.model.load_state_dict(tensors)
        self.model.eval()


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
