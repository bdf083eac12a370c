"""``gsb-vit study``: plan, run, and keep the tables up to date while it goes on."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from gsb_vit.bench.compare import TRIES
from gsb_vit.bench.peers.engines import Engine
from gsb_vit.bench.peers.prepare import CHECK_PICTURES
from gsb_vit.bench.peers.timing import measure
from gsb_vit.bench.peers.worker import Setting
from gsb_vit.data.splits import load_data
from gsb_vit.data.stored_split import run_data
from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.errors import InputError
from gsb_vit.export.pack import export_model
from gsb_vit.files import locked, read_json, write_atomically, write_json
from gsb_vit.models.footprint import footprint
from gsb_vit.models.trained import load_model
from gsb_vit.terminal import plain_console
from gsb_vit.train.evaluate import run_data_options
from gsb_vit.train.folder import read_run
from gsb_vit.train.prepare import require_models, require_validation
from gsb_vit.train.recipe_io import toml_value

from .int8 import int8_file, make_int8, require_onnxruntime
from .jobs import Executor, LocalExecutor, SubmititExecutor, run_jobs
from .plan import Job, Plan, Study, is_finished, load_study, plan, run_folder
from .plots import plot_svg
from .records import read_records, records_file, records_text
from .results import SIZE_FILE, Row, aggregate, collect
from .tables import csv_text, markdown, replace_between_markers, study_command


def run_study(
    file: Path,
    out: Path,
    *,
    data: str | None = None,
    jobs: int | None = None,
    executor: str = "local",
    cluster_options: Mapping[str, Any] | None = None,
    document: Path | None = None,
    latency: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
) -> dict[str, str]:
    """Run what is missing of a study and write ``results.csv``, ``table.md`` and ``plot.svg``; → errors by job.

    Args:
        data: instead of the study's own data SPEC.
        jobs: how many runs at a time; None for one a core of this process, 0 to run none and write what there is.
        executor: ``local``, ``submitit``, or ``submitit:CLUSTER`` (``local``, ``debug``).
        document: a Markdown file whose part between this study's markers becomes the table. All rows are kept beside
            it, in ``NAME.json``, with the plot ``NAME.svg``; what is kept there, of the same recipe, is not run again.
        latency: time the packed models at the end (one thread, one picture); only what is not timed yet. Of a study
            with ``int8`` the first finished run of every variant, packed or in int8, all in turns and always anew.
        dry_run: check everything and list the runs.

    Raises:
        InputError: anything in the study, its data or ``out`` cannot be used; then nothing has been started.
    """
    console = console or plain_console()
    study, out = load_study(file), out.resolve()
    if study.int8 and not dry_run:
        require_onnxruntime()
    spec = data or study.data
    if not isinstance(spec, str):
        raise InputError(f"{file} names no data; give it as --data SPEC")
    recorded = _recorded(study, document, console) if document is not None else {}
    _check_data(study, spec)
    planned = plan(study, out).without(recorded)
    unfinished = _announce(study, planned, recorded, out, console)
    if dry_run:
        for job in planned.jobs:
            state = "to do" if job in unfinished else "finished"
            console.print(f"{job.name}: {job.epochs} epochs, {state}" + f", after {job.needs}" * bool(job.needs))
        return {}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {out} ({error.strerror}); give a folder you may write to") from error
    results = _Results(study, planned, out, study_command(file, spec), recorded)
    errors: dict[str, str] = {}
    with contextlib.nullcontext() if jobs == 0 else locked(out, "gsb-vit study"):
        write_atomically(out / "study.toml", file.read_bytes())
        results.write()
        if jobs != 0:
            errors = run_jobs(
                planned.jobs,
                spec,
                out,
                make_executor(executor, out, cluster_options or {}),
                jobs or usable_cores(),
                console,
                results.finished,
                torch.cuda.device_count() if executor == "local" else 0,
            )
        if study.int8:
            results.make_int8(console)
        if latency and study.int8:
            results.time_in_turns(console)
        elif latency:
            results.time_packed(console)
        finished = results.write(document)
    console.print(f"{finished} of {len(study.cells)} cells have their rows; {out / 'table.md'}", highlight=False)
    return errors


def _recorded(study: Study, document: Path, console: Console) -> dict[str, list[Row]]:
    """The rows kept beside a document that has this study's markers; says which ones will go."""
    replace_between_markers(document, study.name, "")
    path = records_file(document, study)
    rows, others = read_records(path, study)
    if others:
        console.print(
            f"{path}: the rows of {', '.join(others)} will go: they are of another recipe, or of no cell of this study",
            highlight=False,
        )
    return rows


def _announce(
    study: Study, planned: Plan, recorded: Mapping[str, Sequence[Row]], out: Path, console: Console
) -> list[Job]:
    """Say how much there is to do; → the jobs that are not finished."""
    unfinished = [job for job in planned.jobs if not is_finished(job, out)]
    console.print(
        f"{study.name}: {len(study.cells)} cells" + f", {len(recorded)} of them recorded" * bool(recorded) + ", "
        f"{len(planned.jobs)} runs, {len(unfinished)} to do, {sum(job.epochs for job in unfinished)} epochs",
        highlight=False,
    )
    return unfinished


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts, each value as TOML or a bare word. Raises InputError for another form."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--cluster-set {text!r} is not of the form key=value, such as timeout_min=600")
        options[key.strip()] = toml_value(value)
    return options


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_executor(name: str, out: Path, options: Mapping[str, Any]) -> Executor:
    """The executor a name means. Raises InputError for an unknown one."""
    kind, colon, cluster = name.partition(":")
    if kind == "submitit" and (not colon or cluster):
        return SubmititExecutor(out / "submitit", cluster or None, options)
    if name != "local" or options:
        raise InputError(
            f"--executor {name!r} is not local, submitit, submitit:local or submitit:debug, or --cluster-set was given "
            "without submitit"
        )
    return LocalExecutor()


def _check_data(study: Study, spec: str) -> None:
    """Read the data once for every different split, and build every variant's models without weights, for one seed."""
    splits: dict[Any, Any] = {}
    for cell in study.cells:
        if cell.seed != study.seeds[0] and cell.recipe.data in splits:
            continue
        try:
            if cell.recipe.data not in splits:
                splits[cell.recipe.data] = load_data(spec, cell.recipe.data)
            require_validation(cell.recipe, splits[cell.recipe.data])
            require_models(cell.recipe, splits[cell.recipe.data])
        except InputError as error:
            raise InputError(f"study {study.name}, {cell.name}: {error}") from error


_MEASURED = "remove it, and the study measures it again"


@dataclass(frozen=True)
class _Results:
    study: Study
    planned: Plan
    out: Path
    command: str
    recorded: Mapping[str, Sequence[Row]]

    def finished(self, job: Job) -> None:
        """After a job that ended well."""
        if job.name in {student for student, _ in self.planned.of_cell.values()}:
            measure_size(run_folder(self.out, job.name))
        self.write()

    def collect(self) -> dict[str, Sequence[Row]]:
        """The rows by cell of what is finished, here or elsewhere."""
        return collect(self.study, self.planned, self.out, self.command, self.recorded)

    def write(self, document: Path | None = None) -> int:
        """Write table, CSV and picture of what is finished, each atomically; → the number of cells that are.

        Where nothing is, the document stays as it is.
        """
        found = self.collect()
        rows = [row for own in found.values() for row in own]
        groups = aggregate(self.study, rows)
        write_atomically(self.out / "results.csv", csv_text(self.study, rows).encode())
        picture = plot_svg(self.study, groups)
        if picture is not None:
            write_atomically(self.out / "plot.svg", picture.encode())
        text = markdown(self.study, groups, "plot.svg" if picture else None)
        write_atomically(self.out / "table.md", text.encode())
        if document is not None and picture is not None:
            place = document.with_name(f"{self.study.name}.svg")
            write_atomically(place, picture.encode())
            write_atomically(records_file(document, self.study), records_text(self.study, found).encode())
            text = markdown(self.study, groups, place.name)
            write_atomically(document, replace_between_markers(document, self.study.name, text).encode())
        return len(found)

    def make_int8(self, console: Console) -> None:
        """Make int8 what ended in full precision and is not made so yet."""
        for job, folder in self._finished():
            size = read_json(folder / SIZE_FILE, {}, _MEASURED)
            trained = load_model(folder)
            if size.get("int8") or trained.info.quantization.activations != "full":
                continue
            console.print(f"{job}: int8", highlight=False)
            data = run_data(folder, read_run(folder)["data"], run_data_options(folder))
            made = make_int8(trained.model, trained.preprocessing, data.train, data.test, folder)
            write_json(folder / SIZE_FILE, {**size, "int8": [vars(one) for one in made]})

    def _finished(self) -> Iterator[tuple[str, Path]]:
        """Names and folders of the students' runs that are finished and measured."""
        for job in dict.fromkeys(student for student, _ in self.planned.of_cell.values()):
            folder = run_folder(self.out, job)
            if (folder / SIZE_FILE).is_file():
                yield job, folder

    def time_in_turns(self, console: Console) -> None:
        """Time each variant's first finished run, packed or in each form of int8, all in turns on one thread."""
        engines: dict[tuple[Path, str], Engine] = {}
        pictures: list[Path] = []  # of each engine: random ones of the size that its model reads
        with tempfile.TemporaryDirectory(prefix="gsb-vit-study-") as temporary:
            for folder in self._first_runs():
                size = read_json(folder / SIZE_FILE, {"packed_bytes": (int, type(None))}, _MEASURED)
                trained = load_model(folder)
                height, width = trained.preprocessing.size
                shown = Path(temporary) / f"pictures-{height}x{width}.npy"
                if not shown.exists():
                    np.save(shown, smooth_pictures(CHECK_PICTURES, (height, width)))
                if size["packed_bytes"]:
                    packed = Path(temporary) / folder.name
                    packed.mkdir()
                    engines[folder, "packed"] = Engine("gsb-vit", "1-bit", _pack(trained, packed))
                for one in size.get("int8") or []:
                    path = int8_file(folder, one["form"])
                    engines[folder, one["form"]] = Engine("onnxruntime", f"int8 {one['form']}", path)
                pictures += [shown] * (len(engines) - len(pictures))
            if not engines:
                return
            console.print(f"timing {len(engines)} models in turns", highlight=False)
            measured = measure(list(engines.values()), Setting(1, 1, None), pictures, tries=TRIES)
        for (folder, form), row in zip(engines, measured, strict=True):
            if row.problem:
                console.print(f"{folder.name}, {form}: no figure: {row.problem}", highlight=False)
            _keep_latency(folder, form, {"latency_ms": row.median_ms, "latency_problem": row.problem})

    def _first_runs(self) -> Iterator[Path]:
        """The first finished run of every variant at every point of the grid."""
        seen = set()
        finished = dict(self._finished())
        for cell in self.study.cells:
            job, _ = self.planned.of_cell[cell.name]
            if job in finished and (cell.variant, cell.point) not in seen:
                seen.add((cell.variant, cell.point))
                yield finished[job]

    def time_packed(self, console: Console) -> None:
        """Time each variant's first finished run that the runtime can run."""
        found = self.collect()
        timed = {name for name, own in found.items() if any(row["latency_ms"] is not None for row in own)}
        seen = {(cell.variant, cell.point) for cell in self.study.cells if cell.name in timed}
        for cell in self.study.cells:
            job, _ = self.planned.of_cell[cell.name]
            folder, key = run_folder(self.out, job), (cell.variant, cell.point)
            path = folder / SIZE_FILE
            if key in seen or not path.is_file():
                continue
            seen.add(key)
            size = read_json(path, {"packed_bytes": (int, type(None))}, _MEASURED)
            if size["packed_bytes"]:
                console.print(f"{job}: timing", highlight=False)
                write_json(path, {**size, **_latency(folder)})


def _keep_latency(folder: Path, form: str, found: Mapping[str, Any]) -> None:
    """Write what was timed into a run's size file, beside the model of that form."""
    size = read_json(folder / SIZE_FILE, {}, _MEASURED)
    if form == "packed":
        size.update(found)
    for one in size.get("int8") or []:
        if one["form"] == form:
            one.update(found)
    write_json(folder / SIZE_FILE, size)


def measure_size(folder: Path) -> None:
    """Write a run's ``size.json``: parameters, bytes at their bits, bytes of the packed file where one can be made."""
    trained = load_model(folder)
    found = footprint(trained.model)
    size: dict[str, Any] = {"parameters": found.parameters, "bytes": found.bytes}
    with tempfile.TemporaryDirectory(prefix="gsb-vit-study-") as temporary:
        try:
            size["packed_bytes"] = _pack(trained, Path(temporary)).stat().st_size
        except InputError as error:
            size |= {"packed_bytes": None, "not_packed": str(error)}
    write_json(folder / SIZE_FILE, size)


def _pack(trained: Any, folder: Path) -> Path:
    path = folder / "model.safetensors"
    export_model(trained.model, path, class_names=trained.class_names, preprocessing=trained.preprocessing)
    return path


def _latency(folder: Path) -> dict[str, Any]:
    """Milliseconds for one picture on one thread, or why there is no figure."""
    from gsb_vit.bench.compare import benchmark

    with tempfile.TemporaryDirectory(prefix="gsb-vit-study-") as temporary:
        (row,) = benchmark(_pack(load_model(folder), Path(temporary)), against=[], threads=1, batch=1)
    return {"latency_ms": row.median_ms, **({"latency_problem": row.problem} if row.problem else {})}
