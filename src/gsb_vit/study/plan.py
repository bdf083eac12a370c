"""A study: recipes × seeds from one TOML file, and the runs that answer it, with what they share trained once."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError
from gsb_vit.files import as_path, read_text
from gsb_vit.train.recipe import DistillationRecipe, ModelRecipe, Recipe, StageRecipe, TwinRecipe
from gsb_vit.train.recipe_io import build_recipe, dump_recipe, flatten, load_recipe, overlay, parse_toml, read_values

KEYS = ("title", "data", "recipe", "seeds", "seeded", "reference", "set", "variants", "grid", "plot", "int8")
INT8 = ("onnxruntime",)
PLOT_KEYS = ("x", "log")
NAME = re.compile(r"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class Cell:
    """One variant at one point of the grid with one seed: the unit a table averages over seeds."""

    variant: str
    title: str
    point: tuple[tuple[str, Any], ...]
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """A file name: variant, the grid's point, seed."""
        axes = "".join(f"-{key.rpartition('.')[2]}={value}" for key, value in self.point)
        return f"{self.variant}{axes}-s{self.seed}"


@dataclass(frozen=True)
class Study:
    """A grid of cells, the seeds' outermost, and how to show it.

    ``int8`` names the engine that makes the models int8 that end in full precision; None: they stay as they are.
    """

    name: str
    title: str
    data: str | None
    seeds: tuple[int, ...]
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    reference: str | None
    plot_x: str | None
    plot_log: bool
    int8: str | None = None


@dataclass(frozen=True)
class Job:
    """One run folder to fill. ``needs`` is the job whose result this one starts from."""

    name: str
    kind: str
    recipe: Recipe
    seed: int
    needs: str | None = None

    @property
    def epochs(self) -> int:
        """How many epochs this job itself trains, at most."""
        stages = {"teacher": ("teacher",), "stage1": ("stage1",), "student": ("twin", "stage1", "stage2")}[self.kind]
        done = self.recipe.stage1.epochs if self.kind == "student" and (self.needs or "").startswith("stage1") else 0
        return sum(getattr(self.recipe, stage).epochs for stage in stages) - done


@dataclass(frozen=True)
class Plan:
    """The jobs in an order in which each comes after what it needs, and each cell's (student's, teacher's) job."""

    jobs: tuple[Job, ...]
    of_cell: Mapping[str, tuple[str, str | None]]

    def without(self, cells: Container[str]) -> Plan:
        """Only the jobs that other cells than these need."""
        wanted = {student for name, (student, _) in self.of_cell.items() if name not in cells}
        kept: list[Job] = []
        for job in reversed(self.jobs):
            if job.name in wanted:
                kept.append(job)
                if job.needs is not None:
                    wanted.add(job.needs)
        return dataclasses.replace(self, jobs=tuple(reversed(kept)))


def load_study(path: str | Path) -> Study:
    """Read a study file and build every recipe of its grid.

    ``recipe`` (a path relative to the file, or a shipped name) is the base; ``[set]``, a variant's own keys, a point of
    ``[grid]`` and the seed are laid over it in this order, each as ``--set`` would. ``seeded`` names the keys that take
    the seed (default ``["seed"]``; add ``"data.split_seed"`` where each seed shall draw its own pictures).

    Raises:
        InputError: for a file that cannot be read and for an unknown key or a wrong value anywhere in the grid.
    """
    path = as_path(path, "a study, a TOML file")
    values = parse_toml(read_text(path, "a study, a TOML file"), str(path))
    _check_keys(values, KEYS, "study key")
    variants = _table(values, "variants") or {"main": {}}
    seeds = _list(values, "seeds", int, [0])
    grid = flatten(_table(values, "grid"))
    for axis, points in grid.items():
        if not isinstance(points, list) or not points:
            raise InputError(f"study grid.{axis} = {points!r} must be a list of values, such as [2, 5, 10]")
    seeded = _list(values, "seeded", str, ["seed"])
    common = _table(values, "set")
    combinations = [dict(zip(grid, point, strict=True)) for point in itertools.product(*grid.values())]
    cells = [
        _cell(path, values.get("recipe"), name, changes, common, point, dict.fromkeys(seeded, seed), seed)
        for seed in seeds
        for point in combinations
        for name, changes in variants.items()
    ]
    reference = values.get("reference")
    if reference is not None and reference not in variants:
        near = difflib.get_close_matches(str(reference), variants, n=1, cutoff=0.0)
        raise InputError(f"study reference = {reference!r} is no variant; the nearest is {near[0]!r}")
    plot = _table(values, "plot")
    _check_keys(plot, PLOT_KEYS, "study key", "plot.")
    plot_x = plot.get("x", next(iter(grid), None))
    if plot_x not in (None, "bytes", *grid):
        raise InputError(f'study plot.x = {plot_x!r} must be "bytes" or an axis of [grid]: {", ".join(grid) or "none"}')
    int8 = values.get("int8")
    if int8 not in (None, *INT8):
        raise InputError(f"study int8 = {int8!r} must be {' or '.join(map(repr, INT8))}, or left out")
    return Study(
        name=path.stem,
        title=str(values.get("title", path.stem)),
        data=values.get("data"),
        seeds=tuple(seeds),
        axes=tuple(grid),
        cells=tuple(cells),
        reference=reference,
        plot_x=plot_x,
        plot_log=bool(plot.get("log", False)),
        int8=int8,
    )


def _cell(
    path: Path,
    base: str | None,
    name: str,
    changes: Any,
    common: Mapping[str, Any],
    point: Mapping[str, Any],
    seeds: Mapping[str, int],
    seed: int,
) -> Cell:
    if not NAME.fullmatch(name) or name.startswith(("teacher-", "stage1-")):
        raise InputError(f"study variant {name!r}: a name is of letters, digits, . _ + -, and no teacher- or stage1-")
    if not isinstance(changes, Mapping):
        raise InputError(f"study variants.{name} = {changes!r} must be a table: [variants.{name}]")
    own = {key: value for key, value in changes.items() if key not in ("title", "recipe")}
    source = changes.get("recipe", base)
    values = read_values(_beside(path, source))
    try:
        for layer in (common, own, point, seeds):
            overlay(values, flatten(layer))
        recipe = build_recipe(values)
    except InputError as error:
        raise InputError(f"study {path.name}, variant {name}: {error}") from error
    return Cell(name, str(changes.get("title", name)), tuple(point.items()), seed, recipe)


def _beside(path: Path, recipe: Any) -> str | None:
    """A recipe file relative to the study's folder; a shipped name stays as it is."""
    if recipe is not None and not isinstance(recipe, str):
        raise InputError(f"study recipe = {recipe!r} must be a text: a TOML file or the name of a shipped recipe")
    return str(path.parent / recipe) if recipe is not None and recipe.endswith(".toml") else recipe


def _check_keys(values: Mapping[str, Any], known: Sequence[str], what: str, prefix: str = "") -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise InputError(f"unknown {what} {prefix + key!r}; the nearest valid key is {prefix + near[0]!r}")


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, Mapping):
        raise InputError(f"study key {key} = {found!r} must be a table: [{key}]")
    return found


def _list(values: Mapping[str, Any], key: str, kind: type, default: list[Any]) -> list[Any]:
    found = values.get(key, default)
    if not isinstance(found, list) or not found or any(type(value) is not kind for value in found):
        raise InputError(f"study key {key} = {found!r} must be a list of {kind.__name__}, such as {default!r}")
    if len(set(found)) != len(found):
        raise InputError(f"study key {key} = {found!r} names a value twice")
    return found


def plan(study: Study, out: Path) -> Plan:
    """Divide the cells into jobs: each distinct teacher, each distinct stage 1 under its teacher, then the students.

    What a teacher says of views that are drawn once lies in ``OUT/views``, for all students that read alike.
    A student with a twin of its own trains its stage 1 itself.

    What seeds a stage does not depend on the stages before it, so a student that finds its teacher and stage 1 ready
    ends with the weights of one that trained them itself.
    """
    jobs: dict[str, Job] = {}
    students: dict[str, str] = {}
    of_cell = {}
    for cell in study.cells:
        needed: str | None = None
        recipe, teacher = cell.recipe, None
        if _trains_teacher(recipe):
            alone = _teacher_only(recipe)
            needed = teacher = _add(jobs, "teacher", alone, cell.seed, None)
            source = str(run_folder(out, teacher) / "teacher")
            file = dataclasses.replace(recipe.teacher, source=source, weights=None, img_size=None, mean=None, std=None)
            if file.cache_views and file.views is None:
                file = dataclasses.replace(file, views=str(out / "views"))
            recipe = dataclasses.replace(recipe, teacher=file)
        if recipe.stage1.epochs and not recipe.twin.epochs:
            alone = _without_stage2(recipe)
            needed = _add(jobs, "stage1", alone, cell.seed, needed)
        if recipe.stage2.epochs or recipe.twin.epochs:
            key = dump_recipe(recipe)
            if key not in students:
                students[key] = cell.name
                jobs[cell.name] = Job(cell.name, "student", recipe, cell.seed, needed)
            needed = students[key]
        assert needed is not None  # a recipe trains at least one stage: check_recipe
        of_cell[cell.name] = (needed, teacher)
    return Plan(tuple(jobs.values()), of_cell)


def _add(jobs: dict[str, Job], kind: str, recipe: Recipe, seed: int, needs: str | None) -> str:
    # A study may be moved: the name follows from the teacher's name, not from its path.
    source = needs or recipe.teacher.source
    named = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, source=source))
    digest = hashlib.sha256(dump_recipe(named).encode()).hexdigest()[:8]
    name = f"{kind}-{digest}-s{seed}"
    jobs.setdefault(name, Job(name, kind, recipe, seed, needs))
    return name


def _trains_teacher(recipe: Recipe) -> bool:
    source = recipe.teacher.source
    return (source == "twin" or source.startswith("timm:")) and recipe.teacher.epochs > 0


def _teacher_only(recipe: Recipe) -> Recipe:
    """The recipe without students; what only they read is set to the defaults, so that equal teachers are equal."""
    nothing, model = StageRecipe(epochs=0), recipe.model
    teacher = dataclasses.replace(recipe.teacher, cache_views=0, views=None, precision="same")
    if teacher.source.startswith("timm:"):
        size = model.img_size
        model = ModelRecipe(img_size=size, patch_size=size, drop_path_rate=model.drop_path_rate)
    return dataclasses.replace(
        recipe,
        model=model,
        distillation=DistillationRecipe(),
        teacher=teacher,
        twin=TwinRecipe(),
        stage1=nothing,
        stage2=nothing,
    )


def _without_stage2(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, stage2=StageRecipe(epochs=0))


def run_folder(out: Path, name: str) -> Path:
    """Where a job's run lies."""
    return out / "runs" / name


def is_finished(job: Job, out: Path) -> bool:
    """Whether a job's run has its final test.

    Raises:
        InputError: the folder holds a run of another recipe, with the first key that differs.
    """
    folder = run_folder(out, job.name)
    if not (folder / "recipe.toml").is_file():
        return False
    found = load_recipe(folder / "recipe.toml")
    for key in ("source", "views"):  # the study's folder was moved: what is finished stays so
        here, there = getattr(job.recipe.teacher, key), getattr(found.teacher, key)
        if here != there and here and there and Path(there).is_absolute():
            found = dataclasses.replace(found, teacher=dataclasses.replace(found.teacher, **{key: here}))
    if found != job.recipe:
        key, old, new = next(_differences(found, job.recipe))
        raise InputError(
            f"{folder} holds a run with {key} = {old!r}, the study says {new!r}; delete that folder, give the variant "
            "another name, or give another --out"
        )
    return (folder / "summary.json").is_file()


def _differences(a: Any, b: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in dataclasses.fields(a):
        old, new = getattr(a, field.name), getattr(b, field.name)
        if dataclasses.is_dataclass(old):
            yield from _differences(old, new, f"{prefix}{field.name}.")
        elif old != new:
            yield prefix + field.name, old, new
