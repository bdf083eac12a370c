"""A run: teacher, twin, stage 1, stage 2, and the final test that is touched once."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from torch import nn

from gsb_vit import __version__
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.splits import DataSplits, load_data
from gsb_vit.decision import Decision
from gsb_vit.errors import InputError
from gsb_vit.files import write_json
from gsb_vit.metrics import classification_metrics, confusion_matrix
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.models.packable import obstacles
from gsb_vit.models.trained import ModelInfo, find_model, read_tensors
from gsb_vit.terminal import plain_console, show

from .batches import EvaluationPictures, TrainingPictures
from .checkpoint import is_finished, start_from
from .evaluate import model_logits
from .folder import prepare_folder, run_threads
from .log import RunLog, summary_table
from .loop import StageRun, StageSetting
from .precision import emulates_bfloat16
from .recipe import SEED_NUMBERS, STAGES, Recipe, StageRecipe, TwinRecipe
from .results import calibration_of, show_results
from .seeds import seed_everything
from .teacher import Teacher, build_teacher, load_teacher, require_teacher

_BEFORE_FIRST_EPOCH = 2**31 - 1


@dataclass(frozen=True)
class RunSummary:
    """What a finished run measured; ``stages`` maps a stage to its test metrics, chosen epoch and seconds.

    ``packable``: whether the last stage can be exported.
    """

    out: Path
    final_stage: str
    stages: dict[str, dict[str, Any]]
    packable: bool = True

    @property
    def test(self) -> dict[str, float]:
        """Test metrics of the last stage."""
        return self.stages[self.final_stage]["test"]


def train(
    recipe: Recipe, data_spec: str, out: str | Path, *, resume: bool = False, console: Console | None = None
) -> RunSummary:
    """Train a teacher and a one-bit student as the recipe says, test every stage's chosen model, write the run folder.

    Under ``accelerate launch`` or ``torchrun`` every process calls this. With ``resume`` a run that was stopped goes on
    at its last saved epoch; on a CPU it ends with the weights of a run that was never stopped.

    Raises:
        InputError: data or recipe cannot be used; ``out`` is not empty and ``resume`` is off, or holds another recipe.
        TrainingError: the loss or a parameter is not finite, or a quantizer's scale collapsed.
    """
    folder = Path(out)
    AcceleratorState._reset_state()  # accelerate keeps the precision of a process's first run for good
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
    data = load_data(data_spec, recipe.data)
    require_validation(recipe, data)
    unpackable = require_models(recipe, data, folder)
    if accelerator.is_main_process:
        prepare_folder(folder, recipe, data_spec, resume)
    accelerator.wait_for_everyone()
    log = RunLog(folder, console or plain_console(), accelerator.is_main_process)
    torch.set_num_threads(run_threads(folder, recipe, accelerator))
    log.say(
        f"{data_spec}: {len(data.class_names)} classes, {len(data.train)} pictures for training, "
        f"{len(data.validation)} for validation, {len(data.test)} for the final test"
    )
    if recipe.mixed_precision == "bf16" and emulates_bfloat16(accelerator.device):
        log.say(
            'mixed_precision = "bf16": this processor has no instructions for bfloat16, which then takes about ten '
            "times as long as float32; stop and train with --set mixed_precision=no"
        )
    if unpackable:
        log.say(f"stage 2 will train and evaluate, but `gsb-vit export` will refuse it: {unpackable}")
    summary = _Run(recipe, data, folder, accelerator, log).run()
    return replace(summary, packable=unpackable is None and summary.final_stage == "stage2")


class _Run:
    def __init__(self, recipe: Recipe, data: DataSplits, folder: Path, accelerator: Accelerator, log: RunLog) -> None:
        self.recipe = recipe
        self.data = data
        self.folder = folder
        self.accelerator = accelerator
        self.log = log
        self.preprocessing = preprocessing_of(recipe)
        self.validation: dict[Preprocessing, EvaluationPictures] = {}
        self.training: dict[tuple[Preprocessing, Preprocessing], TrainingPictures] = {}
        self.read_as: dict[str, Preprocessing] = {}
        self.log_bytes = 0
        self.seconds: dict[str, float] = {}

    def run(self) -> RunSummary:
        models: dict[str, nn.Module] = {}
        teachers: dict[str | None, Teacher] = {}
        if (teacher := self._teacher()) is not None:
            models["teacher"], teachers["teacher"] = teacher.model, teacher
        for name in ("twin", "stage1", "stage2"):
            if getattr(self.recipe, name).epochs:
                models[name] = self._student(name, models, teachers.get(self.recipe.learns_from(name)))
            if name == "twin" and name in models:
                teachers[name] = Teacher(name, models[name], self.preprocessing)
        return self._test(models)

    def _teacher(self) -> Teacher | None:
        """The teacher in its chosen epoch, or None where the recipe has none."""
        recipe, source = self.recipe.teacher, self.recipe.teacher.source
        if not self.recipe.has_teacher:
            return None
        fast = recipe.precision == "fast"
        if source != "twin" and not source.startswith("timm:"):
            teacher = load_teacher(source, self.data.class_names)
            return replace(teacher, model=teacher.model.to(self.accelerator.device), fast=fast)
        self._seed("teacher")
        load = not is_finished(self.folder / "teacher", recipe.epochs)
        model, info = build_teacher(self.recipe, self._info("teacher", recipe), self.log.say, load=load)
        return Teacher("teacher", self._train("teacher", model, None, info), info.preprocessing, fast)

    def _student(self, name: str, models: dict[str, nn.Module], teacher: Teacher | None) -> nn.Module:
        """A student that starts from the model its recipe names, where names and shapes match."""
        stage: StageRecipe = getattr(self.recipe, name)
        self._seed(name)
        info = self._info(name, stage)
        model = build_model(info.architecture, info.model_args, len(info.class_names), info.quantization)
        source = list(models)[-1] if stage.initialize == "previous" and models else stage.initialize
        if source in models:
            carried, fresh = start_from(model, models[source])
            text = ", ".join(fresh[:4]) + (", …" if len(fresh) > 4 else "")
            self.log.say(
                f"{name}: {len(carried)} tensors from {source}; {len(fresh)} start fresh" + f" ({text})" * bool(fresh)
            )
        return self._train(name, model, teacher, info)

    def _train(self, name: str, model: nn.Module, teacher: Teacher | None, info: ModelInfo) -> nn.Module:
        stage: StageRecipe = getattr(self.recipe, name)
        self.read_as[name] = info.preprocessing
        distillation = stage.distillation if isinstance(stage, TwinRecipe) else self.recipe.distillation
        teacher = None if distillation.kind == "none" else teacher
        if stage.epochs == 0:
            return model.to(self.accelerator.device)
        setting = StageSetting(
            name=name,
            recipe=stage,
            distillation=distillation,
            seed=self.recipe.seed,
            validate_every=self.recipe.validate_every,
            compile=self.recipe.compile,
            folder=self.folder / name,
            info=info,
            training=self._training(
                info.preprocessing, info.preprocessing if teacher is None else teacher.preprocessing
            ),
            validation=self._validation(info.preprocessing),
            validation_labels=torch.from_numpy(self.data.validation.labels),
            cache_views=self.recipe.teacher.cache_views,
        )
        setting.folder.mkdir(exist_ok=True)
        run = StageRun(setting, model, teacher, self.accelerator, self.log, self.log_bytes)
        if not run.restore():
            self._initialize(model, setting)
            run.begin()
        run.run()
        self.log_bytes, self.seconds[name] = run.progress.log_bytes, run.progress.seconds
        return model

    def _training(self, own: Preprocessing, teacher: Preprocessing) -> TrainingPictures:
        """The training pictures as a model and its teacher read them; stages that read alike share the decoded ones."""
        if (own, teacher) not in self.training:
            limit, device = self.recipe.data.memory_limit_mb, self.accelerator.device
            self.training[own, teacher] = TrainingPictures(
                self.data.train, own, self.recipe.augment, limit, device, teacher
            )
        return self.training[own, teacher]

    def _validation(self, own: Preprocessing) -> EvaluationPictures:
        """The validation pictures as a model reads them."""
        limit = self.recipe.data.memory_limit_mb
        return self.validation.setdefault(own, EvaluationPictures(self.data.validation, own, limit))

    def _initialize(self, model: nn.Module, setting: StageSetting) -> None:
        """Set the scales that start fresh from the first batch, the whole of it in every process."""
        images, _ = next(setting.training.epoch(setting.epoch_seed(0), setting.recipe.batch_size))
        initialize_scales(model, images)

    def _seed(self, name: str) -> None:
        seed_everything(self.recipe.seed, SEED_NUMBERS[name], _BEFORE_FIRST_EPOCH)

    def _info(self, name: str, stage: StageRecipe) -> ModelInfo:
        return ModelInfo(
            architecture=self.recipe.model.architecture,
            model_args=self.recipe.model.arguments(),
            quantization=stage.quantization,
            class_names=self.data.class_names,
            preprocessing=self.preprocessing,
            stage=name,
            provenance={
                "data": self.data.spec.partition(":")[0] if ":" in self.data.spec else Path(self.data.spec).name,
                "training_pictures": len(self.data.train),
                "seed": self.recipe.seed,
                "gsb_vit": __version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
        )

    def _test(self, models: dict[str, nn.Module]) -> RunSummary:
        """The only look at the test split."""
        pictures: dict[Preprocessing, EvaluationPictures] = {}
        labels, stages = self.data.test.labels, {}
        final = list(models)[-1]
        for name, model in models.items():
            if not (self.folder / name).is_dir():
                continue
            own, limit = self.read_as[name], self.recipe.data.memory_limit_mb
            shown = pictures.setdefault(own, EvaluationPictures(self.data.test, own, limit))
            logits = model_logits(model, shown, self.accelerator)
            provenance = read_tensors(find_model(self.folder / name))[1]["provenance"]
            stages[name] = {
                "test": classification_metrics(logits, labels),
                "chosen_epoch": provenance["epoch"],
                "validation_top1": provenance.get("validation_top1"),
                "seconds": self.seconds[name],
            }
        confusion = confusion_matrix(logits.argmax(1), labels, len(self.data.class_names))
        decision, measured = calibration_of(self._validation_logits(final, model), (logits, labels))
        summary = RunSummary(self.folder, final, stages)
        if self.accelerator.is_main_process:
            self._write_summary(summary, confusion, decision, measured)
        self.accelerator.wait_for_everyone()
        return summary

    def _validation_logits(self, name: str, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of the validation pictures, which took no part in training."""
        shown = self._validation(self.read_as[name])
        if len(shown) == 0:
            return np.zeros((0, len(self.data.class_names)), np.float32), self.data.validation.labels
        return model_logits(model, shown, self.accelerator), self.data.validation.labels

    def _write_summary(
        self, summary: RunSummary, confusion: np.ndarray, decision: Decision, measured: dict[str, Any]
    ) -> None:
        values = {
            "data": self.data.spec,
            "seed": self.recipe.seed,
            "final_stage": summary.final_stage,
            "test": summary.test,
            "stages": summary.stages,
            "class_names": list(self.data.class_names),
            "confusion_matrix": confusion.tolist(),
            "decision": decision.to_json(),
            "calibration": measured,
        }
        write_json(self.folder / "summary.json", values)
        run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        write_json(self.folder / "run.json", {**run, "status": "finished"})
        show(summary_table(summary.stages), console=self.log.console)
        show_results(self.log.console, self.data.class_names, confusion, decision, measured)


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """How the recipe's pictures become the model's input."""
    data = recipe.data
    return Preprocessing(
        size=(recipe.model.img_size, recipe.model.img_size),
        resize=data.resize,
        crop_ratio=data.crop_ratio,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
    )


def require_validation(recipe: Recipe, data: DataSplits) -> None:
    """Raise InputError where a stage is to select its best epoch and there is nothing to select on."""
    for name in STAGES:
        stage: StageRecipe = getattr(recipe, name)
        if stage.epochs and stage.select == "best" and len(data.validation) == 0:
            raise InputError(
                f'{name}.select = "best" needs validation pictures and there are none; set data.validation_fraction '
                f'higher or {name}.select = "last"'
            )


def require_models(recipe: Recipe, data: DataSplits, folder: Path | None = None) -> str | None:
    """Raise InputError, before anything is written, where a stage's model cannot be built or the teacher not be had.

    A teacher that the run in ``folder`` has trained already needs its first weights no more.

    Returns why the last student, which may be trained all the same, cannot be packed; None where it can.
    """
    source, students = recipe.teacher.source, [n for n in ("twin", "stage1", "stage2") if getattr(recipe, n).epochs]
    if recipe.has_teacher and source == "twin":
        students.append("teacher")
    models: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for name in students:
            stage: StageRecipe = getattr(recipe, name)
            args = recipe.model.arguments()
            models[name] = build_model(recipe.model.architecture, args, len(data.class_names), stage.quantization)
    for name in students:
        start = getattr(recipe, name).initialize
        if (start == "teacher" and not recipe.has_teacher) or (start == "twin" and not recipe.twin.epochs):
            raise InputError(f'{name}.initialize = "{start}", but the recipe has no {start}; use "fresh" or "previous"')
    if source.startswith("timm:"):
        trained = folder is not None and is_finished(folder / "teacher", recipe.teacher.epochs)
        require_teacher(recipe, len(data.class_names), preprocessing_of(recipe), weights=not trained)
    elif recipe.has_teacher and source != "twin":
        load_teacher(source, data.class_names)
    return next(obstacles(models["stage2"]), None) if "stage2" in models else None
