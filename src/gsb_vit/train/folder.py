"""A run's folder: created once, continued only with its own recipe and data; and the threads a run was started with."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import timm
import torch
from accelerate import Accelerator

from gsb_vit import __version__
from gsb_vit.data.stored_split import SPLIT_FILE
from gsb_vit.errors import InputError
from gsb_vit.files import LOCK, is_utf8, read_json, write_atomically, write_json

from .provenance import commit, machine
from .recipe import Recipe
from .recipe_io import dump_recipe, load_recipe

RECIPE_FILE, RUN_FILE = "recipe.toml", "run.json"
MOST_THREADS = 1024


def create_folder(folder: Path) -> None:
    """Make a run's folder and those above it, where they are not there. Raises InputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {folder} ({error.strerror}); give a folder you may write to") from error


def check_folder(folder: Path, recipe: Recipe, data_spec: str, resume: bool) -> None:
    """Raise InputError where a run may not begin or go on in a folder. Writes nothing."""
    if not is_utf8(str(folder)):
        raise InputError(f"the name of {folder} is not UTF-8, and TensorBoard takes no other; give another folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, and a run is a folder; give a folder")
    if folder.exists() and not resume and any(p.name != LOCK for p in folder.iterdir()):
        raise InputError(
            f"{folder} exists and is not empty; add --resume to go on with that run, or give another folder"
        )
    recipe_path = folder / RECIPE_FILE
    if recipe_path.is_file():
        try:
            own = load_recipe(recipe_path)
        except InputError as error:
            raise InputError(
                f"{recipe_path} is damaged ({error}); mend it, or remove it and resume with the run's own recipe"
            ) from error
        if not _same(own, recipe):
            raise InputError(f"{recipe_path} differs from the recipe given; resume with the run's own recipe")
    if (folder / RUN_FILE).is_file():
        run = read_run(folder)
        # A run that keeps its split knows its pictures by their bytes, wherever they lie now.
        if not (folder / SPLIT_FILE).is_file() and run["data"].removesuffix(":") != data_spec.removesuffix(":"):
            raise InputError(
                f"the run in {folder} was trained on {run['data']!r}, not {data_spec!r}; give its own data"
            )


def _same(own: Recipe, other: Recipe) -> bool:
    """Whether two recipes train the same; pictures without labels are known by their bytes, wherever they lie now."""
    if own.data.unlabelled and other.data.unlabelled:
        other = replace(other, data=replace(other.data, unlabelled=own.data.unlabelled))
    return own == other


def read_run(folder: Path) -> dict[str, Any]:
    """What a run's run.json holds. Raises InputError, naming the file, where it is missing or damaged."""
    path = folder / RUN_FILE
    run = read_json(path, _RUN_KEYS, _WAY)
    if not 1 <= (1 if run["threads"] is None else run["threads"]) <= MOST_THREADS:
        raise InputError(
            f"{path} is damaged (threads = {run['threads']:,}, and 1 to {MOST_THREADS:,} are allowed); {_WAY}"
        )
    return run


_RUN_KEYS: dict[str, Any] = {"data": str, "status": str, "commit": str, "threads": (int, type(None))}
_WAY = "mend it, or remove it and add --resume to the command that began the run"


def prepare_folder(folder: Path, recipe: Recipe, data_spec: str, resume: bool) -> None:
    """Create a run folder, or check that an existing one may be continued. Raises InputError where it may not.

    A run that another commit goes on with names both in run.json, the first one first; of its data the last place.
    """
    check_folder(folder, recipe, data_spec, resume)
    recipe_path, run_path = folder / RECIPE_FILE, folder / RUN_FILE
    create_folder(folder)
    if run_path.is_file():
        run = read_run(folder)
        now = {**run, "data": data_spec}
        if run["status"] != "finished" and commit() not in run["commit"].split(", "):
            now["commit"] = f"{run['commit']}, {commit()}"
        if now != run:
            write_json(run_path, now)
        if recipe_path.is_file() and load_recipe(recipe_path) == recipe:
            return
    write_atomically(recipe_path, dump_recipe(recipe).encode())
    if run_path.is_file():
        return
    versions = {
        "gsb_vit": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    seeds = {"seed": recipe.seed, "split_seed": recipe.data.split_seed}
    values = {"data": data_spec, **seeds, "versions": versions, "commit": commit(), "machine": machine()}
    write_json(run_path, {**values, "threads": recipe.threads, "status": "running"})


def require_threads(threads: int) -> None:
    """Raise InputError for a number of threads that no machine has."""
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads = {threads:,} is out of range; it must be from 1 to {MOST_THREADS:,}")


def run_threads(folder: Path, recipe: Recipe, accelerator: Accelerator) -> int:
    """Threads for this process: the recipe's, else OMP_NUM_THREADS, else as many as the step is worth.

    The number changes the order of floating-point sums, so a resumed run takes the one it started with.
    """
    run = read_run(folder)
    threads = run["threads"] or recipe.threads or sensible_threads(recipe, accelerator.num_processes)
    require_threads(threads)
    if accelerator.is_main_process and run["threads"] != threads:
        write_json(folder / RUN_FILE, {**run, "threads": threads})
    accelerator.wait_for_everyone()
    return threads


def sensible_threads(recipe: Recipe, processes: int) -> int:
    """One thread for every 2^20 numbers of a step's widest activations, at least 1, at most this process's cores."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = recipe.model
    tokens = (model.img_size // model.patch_size) ** 2
    work = max(recipe.stage2.batch_size, 1) * tokens * 4 * (model.embed_dim or 192)
    return max(1, min(cores // processes, round(work / 2**20)))
