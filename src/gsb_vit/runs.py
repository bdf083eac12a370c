"""Train from Python: ``fit`` a folder of pictures to a :class:`Run`, which exports, loads its model and reports."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsb_vit.errors import InputError
from gsb_vit.files import as_path, read_json

if TYPE_CHECKING:
    from rich.console import Console

    from gsb_vit.runtime.classifier import Classifier

MODEL_FILE = "model.safetensors"
_RUNS = Path("runs")
_TRAINED = ("best.safetensors", "last.safetensors")
_SUMMARY_KEYS: dict[str, Any] = {
    "data": str,
    "final_stage": str,
    "test": dict,
    "stages": dict,
    "class_names": list,
    "confusion_matrix": list,
}


@dataclass(frozen=True)
class Run:
    """A finished run in its folder ``out``; made by :func:`fit`, or by its folder's path.

    Raises:
        InputError: the folder holds no finished run.
    """

    out: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(self.out))
        self._summary()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the model's answers."""
        return tuple(self._summary()["class_names"])

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What each stage measured: its test metrics, chosen epoch and seconds."""
        return self._summary()["stages"]

    @property
    def test(self) -> dict[str, float]:
        """Metrics of the last stage on the test pictures, which took no part in training."""
        return self._summary()["test"]

    def export(self, path: str | os.PathLike[str] | None = None, *, engine: str = "native") -> Path:
        """Pack the last stage into ``path``, by default ``OUT/model.safetensors``, and return the path.

        The packed model is run by ``engine`` and compared with the trained one on pictures that were not trained on.

        Raises:
            InputError: as :func:`gsb_vit.export.run.export_run`; then nothing is written.
        """
        with _training_libraries("exporting"):
            from gsb_vit.export.run import export_run

            target = self._packed if path is None else Path(path)
            export_run(self.out, target, engine=engine)
            return target

    def model(self, *, engine: str = "native", threads: int = 0) -> Classifier:
        """Load the packed model, exported first where that has not been done since the run ended.

        Raises:
            InputError: as :meth:`export` and :func:`gsb_vit.load`.
        """
        from gsb_vit.runtime.classifier import load

        self._pack(engine)
        return load(self._packed, threads=threads, engine=engine)

    def push_to_hub(
        self, repository: str, *, private: bool = False, license: str | None = None, message: str | None = None
    ) -> str:
        """Put the packed model on the Hugging Face hub, with a card that has the run's test, and return its address.

        Raises:
            InputError: as :meth:`model` and :func:`gsb_vit.push_to_hub`.
        """
        from gsb_vit.runtime.hub import push_to_hub

        with _training_libraries("exporting"):
            self._pack("native")
        return push_to_hub(
            self._packed, repository, private=private, license=license, metrics=self.test, message=message
        )

    def _pack(self, engine: str, data: str | None = None) -> None:
        """Export where that has not been done since the run ended."""
        if self._is_packed():
            return
        from gsb_vit.export.run import export_run

        export_run(self.out, self._packed, engine=engine, data_spec=data)

    def _is_packed(self) -> bool:
        """Whether the packed file is of the run's model, by digest: clocks jump. Without its stages it is taken so."""
        from gsb_vit.data.digests import digest
        from gsb_vit.runtime.packed_file import read

        if not self._packed.is_file():
            return False
        stage = self.out / self._summary()["final_stage"]
        trained = next((path for name in _TRAINED if (path := stage / name).is_file()), None)
        try:
            return trained is None or read(self._packed).provenance.get("trained") == digest(trained)
        except InputError:  # damaged
            return False

    def report(self, *, engine: str = "native", data: str | None = None, out: Path | None = None) -> Path:
        """Write ``OUT/report.html``, one file that needs nothing else, and return its path.

        It has every mistake on the test pictures, class by class figures, and training pictures whose label is probably
        wrong. A run whose last stage cannot be packed is judged by its trained model; masks and costs are then left
        out. ``data`` says where the pictures lie now, if they have moved; ``out`` is another file than that.

        Raises:
            InputError: as :meth:`model`, and where the run's data has moved.
        """
        with _training_libraries("the report"):
            from gsb_vit.data.stored_split import run_data
            from gsb_vit.decision import Decision
            from gsb_vit.models.packable import obstacles
            from gsb_vit.models.trained import load_model
            from gsb_vit.report.page import Judged, Trained, write_report
            from gsb_vit.train.batches import EvaluationPictures
            from gsb_vit.train.confidence import read_confidence
            from gsb_vit.train.evaluate import model_logits, run_data_options, run_decision

            splits = run_data(self.out, data or self._summary()["data"], run_data_options(self.out))
            said = next((one for stage in self.stages if (one := read_confidence(self.out / stage)) is not None), None)
            trained = None if said is None or len(said) != len(splits.train) else Trained(splits.train, said)
            shared: dict[str, Any] = {"test": splits.test, "trained": trained, "out": out, "engine": engine}
            model = load_model(self.out)
            if next(obstacles(model.model), None) is None:
                self._pack(engine, data)
                return write_report(self.out, packed=self._packed, **shared)
            logits = model_logits(model.model, EvaluationPictures(splits.test, model.preprocessing))
            decision = run_decision(self.out) or Decision()
            judged = Judged(model.class_names, model.preprocessing, decision, logits)
            return write_report(self.out, packed=None, judged=judged, **shared)

    def __repr__(self) -> str:
        return f"<Run {self.out}: {'; '.join(text for _, text in self._facts())}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{escape(what)}</th><td>{escape(text)}</td></tr>" for what, text in self._facts())
        return f"<table><caption>Run {escape(str(self.out))}</caption>{rows}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        found = self._summary()
        pictures = sum(map(sum, found["confusion_matrix"]))
        return [
            ("classes", f"{len(found['class_names'])} classes of {found['data']}"),
            ("result", f"{found['test']['top1']:.1%} of {pictures} test pictures right"),
            ("last stage", found["final_stage"]),
        ]

    @property
    def _packed(self) -> Path:
        return self.out / MODEL_FILE

    @property
    def _results(self) -> Path:
        return self.out / "summary.json"

    def _summary(self) -> dict[str, Any]:
        if not self._results.is_file():
            raise InputError(
                f"{self.out} holds no finished run; give a run's folder, or go on with fit(data, out=..., resume=True)"
            )
        return read_json(
            self._results, _SUMMARY_KEYS, "go on with fit(data, out=..., resume=True), which writes it again"
        )


def fit(
    data: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    unlabelled: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    time: str | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    allow_missing: bool = False,
    track: Sequence[Any] = (),
    console: Console | None = None,
) -> Run:
    """Train a teacher, then the one-bit student in two stages, and test it once: what ``gsb-vit train`` does.

    Args:
        data: a folder of class folders, perhaps with train/ and val/ or test/, or a data set's SPEC.
        out: the run's folder, new or empty; by default the first of ``runs/NAME-1``, ``runs/NAME-2``, … that is free.
        recipe: a TOML file, or the name of a recipe that comes with the package; by default that of the preset, or for
            a published set ``default``.
        settings: values of the recipe to change, by dotted key: ``{"stage2.epochs": 50, "model.img_size": 48}``.
        unlabelled: a folder of more pictures, without labels, of which the teacher says what is in them; the value
            ``data.unlabelled`` of the recipe.
        preset: ``fast``, ``good`` (folders: the default) or ``best``; picture size, batch and epochs follow the data.
        time: what the whole run may take, as ``90s``, ``30m`` or ``2h``; epochs are fitted to it.
        resume: go on with the run in ``out`` where it was stopped, with the split it began with.
        skip_bad: leave out pictures that cannot be decoded, and name them in the run.
        allow_missing: with ``resume``, go on though training pictures are gone.
        track: trackers that accelerate knows, as in ``("wandb",)``, or objects of its class ``GeneralTracker``.
        console: where progress goes; ``gsb_vit.terminal.plain_console(quiet=True)`` says nothing.

    Raises:
        InputError: the data, the recipe or ``out`` cannot be used, or a library of the extra ``train`` is missing.
        TrainingError: the loss or a parameter is not finite.
    """
    spec = os.fspath(data) if isinstance(data, (str, os.PathLike)) else data
    if not isinstance(spec, str):
        raise InputError(f"data is a {type(data).__name__}; give a folder of class folders, or use GSBClassifier")
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"settings is a {type(settings).__name__}; give a dictionary, as in {{'stage2.epochs': 50}}")
    if unlabelled is not None:
        settings = {**(settings or {}), "data.unlabelled": str(as_path(unlabelled, "a folder of pictures"))}
    if resume and out is None:
        raise InputError("resume needs the folder of the run; give it as out")
    with _training_libraries("training"):
        from gsb_vit.data.splits import is_own
        from gsb_vit.train.folder import RECIPE_FILE
        from gsb_vit.train.plan import parse_time, plan_for
        from gsb_vit.train.recipe import Recipe
        from gsb_vit.train.recipe_io import build_recipe, flatten, overlay, read_values
        from gsb_vit.train.run import train

        def load(one: str | None, under: Mapping[str, Any] | None = None) -> Recipe:
            values = read_values(one)
            overlay(values, under or {})
            overlay(values, settings or {})
            return build_recipe(values)

        name = None if recipe is None else os.fspath(recipe)
        folder = Path(out) if out is not None else free_folder(spec)
        seconds = None if time is None else parse_time(time)
        if resume and (preset is not None or seconds is not None):
            raise InputError("preset and time are for a new run; resume goes on with the run's own plan")
        if resume and name is None and (folder / RECIPE_FILE).is_file():
            name = str(folder / RECIPE_FILE)
        fixed = flatten(settings or {})
        chosen, planner = plan_for(load, fixed, own=is_own(spec), recipe=name, preset=preset, seconds=seconds)
        choose = planner if name is None or seconds is not None else None  # a recipe is taken as it is
        ways: dict[str, Any] = {"resume": resume, "skip_bad": skip_bad, "allow_missing": allow_missing}
        ways["track"] = (track,) if isinstance(track, str) else track
        train(chosen, spec, folder, **ways, choose=choose, console=console)
        return Run(folder)


def free_folder(spec: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, … that does not exist, where NAME is the data's."""
    folder = as_path(spec, "a folder of pictures")
    found = (folder if folder.exists() else Path(spec.partition(":")[0])).resolve()
    last = found.stem if found.is_file() else found.name
    name = re.sub(r"[^\w.-]+", "-", last) or "data"
    return next(path for n in itertools.count(1) if not (path := _RUNS / f"{name}-{n}").exists())


@contextmanager
def _training_libraries(what: str) -> Iterator[None]:
    """Say in one line which extra holds a library that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gsb_vit"):
            raise
        raise InputError(f"{what} needs {error.name}: pip install 'gsb-vit[train]'") from error
