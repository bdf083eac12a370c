"""Before anything trains: the folder is taken, the models are tried, the pictures are split and verified."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from torch import nn

from gsb_vit.bars import Bars
from gsb_vit.data.datasets import RawData
from gsb_vit.data.digests import pack_seen, unpack_seen
from gsb_vit.data.folder import is_read
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.splits import DataSplits, is_own, read_raw, split_raw
from gsb_vit.data.stored_split import Drawn, StoredSplit, draw_split, find_split, read_split
from gsb_vit.errors import InputError
from gsb_vit.files import locked, remove_leftovers, write_json
from gsb_vit.models.build import build_model
from gsb_vit.models.packable import obstacles
from gsb_vit.models.trained import find_model, load_model, read_tensors
from gsb_vit.terminal import filled

from .checkpoint import is_finished
from .folder import RECIPE_FILE, RUN_FILE, check_folder, create_folder, prepare_folder, read_run
from .recipe import STAGES, Recipe, StageRecipe
from .recipe_io import load_recipe
from .teacher import load_teacher, require_teacher


@dataclass(frozen=True)
class Chosen:
    """A recipe that was chosen for data, what to say of it, and what run.json keeps as ``plan``."""

    recipe: Recipe
    lines: tuple[str, ...] = ()
    planned: dict[str, Any] | None = None


# Recipe asked for, data, accelerator, seconds to decode a picture, folder of the run → what is trained.
Choose = Callable[[Recipe, Drawn, Accelerator, float, Path], Chosen]


@dataclass(frozen=True)
class Request:
    """What a run is asked to do: recipe, data, folder, and how it treats what it finds there."""

    recipe: Recipe
    data_spec: str
    folder: Path
    resume: bool = False
    skip_bad: bool = False
    allow_missing: bool = False
    choose: Choose | None = None


@dataclass(frozen=True)
class Prepared:
    """The recipe and split of a run, and whether the last student can be packed."""

    recipe: Recipe
    drawn: Drawn
    packable: bool = True


def prepare(request: Request, accelerator: Accelerator, console: Console, stack: contextlib.ExitStack) -> Prepared:
    """Take the run's folder, split and verify its data, and write its split, recipe and run.json.

    The folder stays locked until ``stack`` ends. Nothing is written before all of this is known to work. Only the main
    process does it; the others read the split that it wrote.

    Raises:
        InputError: as :func:`gsb_vit.train.run.train`.
    """
    raw = None
    if accelerator.is_main_process:
        prepared = _prepare_main(request, accelerator, console, stack)
    else:
        raw = read_raw(request.data_spec)
    accelerator.wait_for_everyone()
    if raw is None:
        return prepared
    stored = read_split(request.folder)
    if stored is None:
        raise InputError(f"{request.folder} is not shared by all processes; give a folder that all of them see")
    recipe = load_recipe(request.folder / RECIPE_FILE) if request.choose is not None else request.recipe
    return Prepared(recipe, _find(request, recipe, raw, stored))


def _prepare_main(
    request: Request, accelerator: Accelerator, console: Console, stack: contextlib.ExitStack
) -> Prepared:
    recipe, spec, folder = request.recipe, request.data_spec, request.folder
    held = False
    if (folder / RUN_FILE).is_file():
        stack.enter_context(locked(folder, "gsb-vit train"))
        held = True
    check_folder(folder, recipe, spec, request.resume)
    if not request.resume:
        _require_outside(folder, spec)
    stored = read_split(folder) if request.resume else None
    moved = _moved(folder, spec) if stored is not None else []

    def say(*lines: str) -> None:
        for line in lines:
            console.print(line)

    raw = read_raw(spec)
    if stored is not None:
        drawn = _find(request, recipe, raw, stored)
    rough = split_raw(spec, raw, recipe.data) if stored is None else drawn.data
    require_validation(recipe, rough)
    if request.choose is None:
        require_unlabelled(recipe)
    unpackable = require_models(recipe, rough, folder)
    chosen = None
    if stored is None:
        drawn, decode = _draw(request, raw, console)
        say(*raw.contents.lines() if raw.contents is not None else (), *drawn.lines)
        if request.choose is not None:
            if not console.is_terminal:
                say("timing some steps of every stage")
            with console.status("timing some steps of every stage"):
                chosen = request.choose(recipe, drawn, accelerator, decode, folder)
            recipe = chosen.recipe
            require_unlabelled(recipe)
            unpackable = require_models(recipe, drawn.data, folder)
        require_validation(recipe, drawn.data)
        _require_the_split_of_its_models(folder, drawn)
    if not held:
        create_folder(folder)
        stack.enter_context(locked(folder, "gsb-vit train"))
        check_folder(folder, recipe, spec, request.resume)  # another process may have been faster
    remove_leftovers(folder)
    drawn.stored.write(folder)
    prepare_folder(folder, recipe, spec, resume=True)
    if chosen is not None and chosen.planned is not None:
        write_json(folder / RUN_FILE, {**read_run(folder), "plan": chosen.planned})
    say(f"run: {folder}")
    if stored is not None:
        say(*moved, *raw.contents.lines() if raw.contents is not None else (), *drawn.lines)
    say(*chosen.lines if chosen is not None else ())
    if idle := recipe.model.idle():
        text = (
            f"{recipe.model.architecture} is built for no picture size and of no blocks: model.{', model.'.join(idle)} "
            f"{'is' if len(idle) == 1 else 'are'} not used, but for the size of the pictures"
        )
        say(*filled(text))
    if unpackable:
        say(*filled(f"stage 2 will train and evaluate, but `gsb-vit export` will refuse it: {unpackable}"))
    return Prepared(recipe, drawn, not unpackable)


def _require_outside(folder: Path, spec: str) -> None:
    """Raise InputError where a run's folder would be read as a class, or as pictures of one, of the run's own data."""
    data = Path(spec)
    if is_own(spec) and data.is_dir() and is_read(data, folder):
        outside = os.path.relpath(data.resolve().parent / "runs" / folder.name)
        raise InputError(
            f"the run's folder {folder} lies among the classes of {spec}, and would be read as one; give one outside, "
            f"as in --out {shlex.quote(outside)}"
        )


def _find(request: Request, recipe: Recipe, raw: RawData, stored: StoredSplit) -> Drawn:
    """The run's split in its data, and its pictures without labels in their folder."""
    folder = recipe.data.unlabelled
    return find_split(request.data_spec, raw, stored, allow_missing=request.allow_missing, unlabelled=folder)


def require_unlabelled(recipe: Recipe) -> None:
    """Raise InputError where there are pictures without labels, and no student that learns from a teacher alone."""
    if recipe.data.unlabelled and not any(recipe.shows_unlabelled(name) for name in STAGES):
        raise InputError(
            "data.unlabelled is for students that learn from a teacher alone, and none does; add --set "
            "distillation.kind=match and a teacher, or leave it out"
        )


def _moved(folder: Path, spec: str) -> list[str]:
    """What to say where the run's data is looked for at another place than before."""
    before = read_run(folder)["data"] if (folder / RUN_FILE).is_file() else spec
    if before.removesuffix(":") == spec.removesuffix(":"):
        return []
    return [f"the run began with {before}; its pictures are found in {spec} by their digests"]


def _draw(request: Request, raw: RawData, console: Console) -> tuple[Drawn, float]:
    """The split, drawn now, and the seconds a picture took; a bar tells how many pictures have been decoded."""
    columns = (TextColumn("pictures verified"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
    looked_at, started = 0, time.perf_counter()
    with Bars(*columns, console=console, transient=True) as bar:

        def watch(count: int) -> Callable[[], None]:
            nonlocal looked_at
            looked_at += count
            task = bar.add_task("", total=count)
            return lambda: bar.advance(task)

        taught, data = seen_by_teacher(request.recipe.teacher.source), request.recipe.data
        drawn = draw_split(request.data_spec, raw, data, skip_bad=request.skip_bad, taught=taught, watch=watch)
    return drawn, (time.perf_counter() - started) / max(looked_at, 1)


def seen_by_teacher(source: str) -> frozenset[str]:
    """Digests of the pictures that a teacher from a file or run was trained on, where it says."""
    if source in ("twin", "none") or source.startswith("timm:"):
        return frozenset()
    return unpack_seen(load_model(source).info.provenance) or frozenset()


def _require_the_split_of_its_models(folder: Path, drawn: Drawn) -> None:
    """Raise InputError where a run has lost its split and the one drawn anew is not that of its models."""
    for stage in STAGES:
        try:
            path = find_model(folder / stage) if (folder / stage).is_dir() else None
            provenance = read_tensors(path)[1]["provenance"] if path is not None else {}
        except InputError:  # damaged, or nothing saved yet: what reads it later says so
            continue
        if provenance.get("seen", told := pack_seen(drawn.stored.seen)) != told:
            raise InputError(
                f"{folder} has lost its split.json, and its data has changed since {stage} was trained; bring either "
                "back from a copy, or start a new run"
            )


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
