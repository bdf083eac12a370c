"""A run: teacher, twin, stage 1, stage 2, and the final test that is touched once."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
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
from gsb_vit.data.digests import pack_seen
from gsb_vit.data.held_out import data_name
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.splits import DataSplits
from gsb_vit.data.stored_split import StoredSplit
from gsb_vit.decision import Decision
from gsb_vit.errors import InputError
from gsb_vit.files import write_json
from gsb_vit.metrics import classification_metrics, confusion_matrix
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.models.trained import ModelInfo, find_model
from gsb_vit.terminal import plain_console, show, told

from .batches import EvaluationPictures, TrainingPictures
from .checkpoint import is_finished, read_stage_file, start_from
from .evaluate import model_logits
from .folder import RUN_FILE, read_run, require_threads, run_threads
from .log import RunLog, RunTime, summary_table
from .loop import StageRun, StageSetting
from .memory import kept_memory
from .precision import bfloat16_cost
from .prepare import Choose, Request, prepare, preprocessing_of
from .recipe import SEED_NUMBERS, STAGES, Recipe, StageRecipe
from .results import calibration_of, show_results
from .seeds import seed_everything
from .teacher import Teacher, build_teacher, load_teacher
from .track import Tracker, Tracking, check_trackers

SLOW_BFLOAT16 = 1.2  # times as long as float32, from where on a run says so; below it may be noise
_BEFORE_FIRST_EPOCH = 2**31 - 1
# What a full, vanished or write-protected disk answers; EIO and ESTALE come from disks and servers that fail.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
_STORAGE |= {errno.ENOTDIR, errno.ENODEV, errno.EFBIG}


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
    recipe: Recipe,
    data_spec: str,
    out: str | Path,
    *,
    resume: bool = False,
    skip_bad: bool = False,
    allow_missing: bool = False,
    choose: Choose | None = None,
    track: Sequence[Tracker] = (),
    console: Console | None = None,
) -> RunSummary:
    """Train a teacher and a one-bit student as the recipe says, test every stage's chosen model, write the run folder.

    Under ``accelerate launch`` or ``torchrun`` every process calls this. With ``resume`` a run that was stopped goes on
    at its last saved epoch; on a CPU it ends with the weights of a run that was never stopped. The split of the data is
    kept in ``out`` and held to, wherever the pictures lie now: those that came later are ignored, those that are gone
    stop it unless ``allow_missing``. All pictures are decoded before anything trains; ``skip_bad`` leaves out those
    that cannot be, and ``split.json`` and ``summary.json`` name them. A new run's recipe is what ``choose`` makes of
    ``recipe`` when the data is known (:class:`gsb_vit.train.plan.Planner`). ``track`` names
    trackers of accelerate, or holds some; they are told what metrics.jsonl holds.

    Raises:
        InputError: data or recipe cannot be used; ``out`` is not empty and ``resume`` is off, or holds another recipe,
            is held by another process, or cannot be written to while the run goes on.
        TrainingError: the loss or a parameter is not finite.
    """
    trackers = check_trackers(track)
    request = Request(recipe, data_spec, Path(out), resume, skip_bad, allow_missing, choose)
    with contextlib.ExitStack() as stack, _naming_the_disk(request.folder), kept_memory():
        return _train(request, console or plain_console(), stack, trackers)


@contextlib.contextmanager
def _naming_the_disk(folder: Path) -> Iterator[None]:
    """Turn what a disk answers that is full, gone or write-protected into one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        place = folder if error.filename is None else error.filename
        raise InputError(
            f"the run in {folder} stopped: {error.strerror} ({place}); make room or bring the folder back, then go on "
            "with --resume"
        ) from error


def _train(request: Request, console: Console, stack: contextlib.ExitStack, trackers: list[Tracker]) -> RunSummary:
    recipe, folder = request.recipe, request.folder
    require_threads(recipe.threads or 1)
    AcceleratorState._reset_state()  # accelerate keeps the precision of a process's first run for good
    place = folder / "tracking" if trackers else None
    accelerator = Accelerator(mixed_precision=recipe.mixed_precision, log_with=trackers or None, project_dir=place)
    prepared = prepare(request, accelerator, console, stack)
    recipe, data = prepared.recipe, prepared.drawn.data
    planned = read_run(folder).get("plan", {}).get("epoch", {})
    epochs = {name: getattr(recipe, name).epochs for name in STAGES}
    log = RunLog(folder, console, accelerator.is_main_process, RunTime(epochs, planned))
    torch.set_num_threads(run_threads(folder, recipe, accelerator))
    log.say(
        f"{len(data.class_names)} classes; pictures: {len(data.train):,} for training, {len(data.validation):,} for "
        f"validation, {len(data.test):,} for the final test"
    )
    if recipe.mixed_precision == "bf16" and (cost := bfloat16_cost(accelerator.device)) > SLOW_BFLOAT16:
        slow = (
            f'mixed_precision = "bf16": on this processor products in bfloat16 take {cost:.1f} times as long as in '
            "float32; stop and train with"
        )
        for line in told(slow, "--set mixed_precision=no"):
            log.say(line)
    if trackers:
        log.tracking = Tracking(accelerator, log.say)
        log.tracking.start(recipe, folder, request.data_spec)
        stack.callback(log.tracking.end)
    summary = _Run(recipe, data, prepared.drawn.stored, folder, accelerator, log).run()
    return replace(summary, packable=prepared.packable and summary.final_stage == "stage2")


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        data: DataSplits,
        stored: StoredSplit,
        folder: Path,
        accelerator: Accelerator,
        log: RunLog,
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.stored = stored
        self.seen = pack_seen(stored.seen)
        self.folder = folder
        self.accelerator = accelerator
        self.log = log
        self.preprocessing = preprocessing_of(recipe)
        self.validation: dict[Preprocessing, EvaluationPictures] = {}
        self.training: dict[tuple[Preprocessing, Preprocessing, bool], TrainingPictures] = {}
        self.read_as: dict[str, Preprocessing] = {}
        self.log_bytes = 0
        self.seconds: dict[str, float] = {}
        self.stopped: dict[str, int] = {}

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
            first = f", as {fresh[0]}" if fresh else ""
            begins = f"{len(carried)} tensors from {source}; {len(fresh)} start fresh{first}"
            self.log.say_prose(f"{name}: {begins if carried else f'random weights, as {source} is another network'}")
        return self._train(name, model, teacher, info)

    def _train(self, name: str, model: nn.Module, teacher: Teacher | None, info: ModelInfo) -> nn.Module:
        stage: StageRecipe = getattr(self.recipe, name)
        self.read_as[name] = info.preprocessing
        distillation = self.recipe.distillation_of(name)
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
                info.preprocessing,
                info.preprocessing if teacher is None else teacher.preprocessing,
                self.recipe.shows_unlabelled(name),
            ),
            validation=self._validation(info.preprocessing),
            validation_labels=torch.from_numpy(self.data.validation.labels),
            cache_views=self.recipe.teacher.cache_views,
            shared_views=self.recipe.teacher.views,
        )
        setting.folder.mkdir(exist_ok=True)
        run = StageRun(setting, model, teacher, self.accelerator, self.log, self.log_bytes)
        if not run.restore():
            self._initialize(model, setting)
            run.begin()
        run.run()
        self.log_bytes, self.seconds[name] = run.progress.log_bytes, run.progress.seconds
        if run.stopped:
            self.stopped[name] = run.progress.epoch
        return model

    def _training(self, own: Preprocessing, teacher: Preprocessing, unlabelled: bool) -> TrainingPictures:
        """The training pictures as a model and its teacher read them; stages that read alike share the decoded ones."""
        key = (own, teacher, unlabelled)
        if key not in self.training:
            limit, device = self.recipe.data.memory_limit_mb, self.accelerator.device
            balanced = self.stored.balance == "sampling"
            pictures = self.data.training(unlabelled)
            self.training[key] = TrainingPictures(pictures, own, self.recipe.augment, limit, device, teacher, balanced)
        return self.training[key]

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
                "data": data_name(self.data.spec),
                "training_pictures": len(self.data.train),
                **({} if self.data.unlabelled is None else {"unlabelled_pictures": len(self.data.unlabelled)}),
                "seed": self.recipe.seed,
                "gsb_vit": __version__,
                "torch": torch.__version__,
                "timm": timm.__version__,
                "seen": self.seen,
            },
        )

    def _test(self, models: dict[str, nn.Module]) -> RunSummary:
        """The only look at the test split."""
        pictures: dict[Preprocessing, EvaluationPictures] = {}
        labels, stages = self.data.test.labels, {}
        final = list(models)[-1]
        for name, model in models.items():
            if name not in self.seconds:  # a teacher from elsewhere
                continue
            if not (self.folder / name).is_dir():
                raise InputError(f"{self.folder / name} is gone; go on with --resume, and {name} is trained again")
            own, limit = self.read_as[name], self.recipe.data.memory_limit_mb
            shown = pictures.setdefault(own, EvaluationPictures(self.data.test, own, limit))
            logits = model_logits(model, shown, self.accelerator)
            provenance = read_stage_file(find_model(self.folder / name))[1]["provenance"]
            stages[name] = {
                "test": classification_metrics(logits, labels),
                "chosen_epoch": provenance["epoch"],
                "validation_top1": provenance.get("validation_top1"),
                "seconds": self.seconds[name],
            }
            if name in self.stopped:
                stages[name]["stopped_after"] = self.stopped[name]
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
            "left_out": self.stored.left_out,
            "test_pictures_seen": self.stored.tested_on_seen,
        }
        write_json(self.folder / "summary.json", values)
        write_json(self.folder / RUN_FILE, {**read_run(self.folder), "status": "finished"})
        show(summary_table(summary.stages), console=self.log.console)
        show_results(self.log.console, self.data.class_names, confusion, decision, measured)
