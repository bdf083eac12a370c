"""Commands that train: train, quickstart, study, sensitivity."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gsb_vit.errors import InputError
from gsb_vit.terminal import plain_console, printable

from .base import DataOrNone, Engine, Json, MaxGigabytes, RunJson, app, print_json, require_training, tell

PANEL = "Train"


@app.command(rich_help_panel=PANEL)
def train(
    place: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", show_default=False, help="The data, as --data; with --resume a run's folder."),
    ] = None,
    data: DataOrNone = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="The run's folder, new or empty (default: runs/NAME-N)."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE.toml", help="A recipe, or the name of a shipped one."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value of the recipe, as in stage2.epochs=50."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", metavar="K", help="Train on K pictures a class: --set data.shots=K.")
    ] = None,
    label_noise: Annotated[
        float | None,
        typer.Option("--label-noise", metavar="P", help="Give this share of training pictures a wrong class."),
    ] = None,
    unlabelled: Annotated[
        str | None,
        typer.Option("--unlabelled", metavar="DIR", help="More pictures, without labels: the teacher names them."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="fast|good|best", help="Choose the rest from the data (folders: good)."),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="30m", help="Fit the epochs to what the whole run may take: 90s, 30m, 2h."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="Epochs of the student: --set stage2.epochs=N.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option("--image-size", metavar="PX", help="Side of the student's pictures: --set model.img_size=PX."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run that was stopped: gsb-vit train --resume RUN.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be decoded, and keep a list of them.")
    ] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="With --resume: go on though training pictures are gone.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", metavar="NAME", help="Tell a tracker: tensorboard, wandb, mlflow, …; may be repeated."),
    ] = None,
    report: Annotated[
        bool, typer.Option(help="At the end write report.html and, packed, model.safetensors into the run's folder.")
    ] = True,
    to_json: RunJson = False,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Train a teacher, then the one-bit student in two stages: gsb-vit train FOLDER."""
    require_training("training")
    from gsb_vit.data.splits import is_own
    from gsb_vit.runs import free_folder
    from gsb_vit.train.folder import RECIPE_FILE, RUN_FILE, read_run
    from gsb_vit.train.plan import parse_time, plan_for
    from gsb_vit.train.recipe import Recipe
    from gsb_vit.train.recipe_io import load_recipe, toml_value
    from gsb_vit.train.run import train as train_run

    seconds = None if time is None else parse_time(time)
    if epochs is not None and epochs < 1:
        raise InputError(
            f"--epochs {epochs} trains no student; give 1 or more (--set stage2.epochs=0 leaves only stage 2 out)"
        )
    if resume and (preset or time):
        raise InputError("--preset and --time are for a new run; --resume goes on with the run's own plan")
    if resume and place is not None and out is None:
        out, place = Path(place), None
        if data is None and not (out / RUN_FILE).is_file():
            raise InputError(f"{out} holds no {RUN_FILE}; give the run's folder: gsb-vit train --resume runs/NAME-N")
    if place is not None and data is not None:
        raise InputError(f"the data is given twice, {place!r} and --data {data!r}; give it once")
    data = place if data is None else data
    if resume and out is not None:
        run_file = read_run(out) if data is None else None
        data = data if run_file is None else run_file["data"]
        if recipe is None and (out / RECIPE_FILE).is_file():
            recipe = str(out / RECIPE_FILE)
    if data is None:
        raise InputError("no data is given; say where the pictures are: gsb-vit train FOLDER (or digits)")
    if out is None:
        if resume:
            raise InputError("--resume needs the run's folder: gsb-vit train --resume RUN")
        out = free_folder(data)
    short = {
        "data.shots": shots,
        "data.label_noise": label_noise,
        "stage2.epochs": epochs,
        "model.img_size": image_size,
        "data.unlabelled": None if unlabelled is None else json.dumps(unlabelled),  # text, whatever it looks like
    }
    settings = [*(settings or []), *(f"{key}={value}" for key, value in short.items() if value is not None)]

    def load(name: str | None, under: Mapping[str, Any] | None = None) -> Recipe:
        return load_recipe(name, settings, under=under)

    if resume and (out / RECIPE_FILE).is_file():
        chosen, choose = load(recipe), None
    else:
        fixed = {key.strip(): toml_value(text) for key, _, text in (one.partition("=") for one in settings)}
        chosen, choose = plan_for(load, fixed, own=is_own(data), recipe=recipe, preset=preset, seconds=seconds)
    ways: dict[str, Any] = {
        "resume": resume,
        "skip_bad": skip_bad,
        "allow_missing": allow_missing,
        "track": track or (),
    }
    try:
        found = train_run(chosen, data, out, **ways, choose=choose, console=_progress_console(to_json))
    except KeyboardInterrupt:
        if (out / RECIPE_FILE).is_file():
            tell(f"stopped; go on with: gsb-vit train --resume {shlex.quote(str(out))}")
        raise
    if os.environ.get("RANK", "0") != "0":  # another process of torchrun goes on
        return
    written = _finish(out, data) if report else {}
    if to_json:
        _print_run(found, written)
    else:
        _say_next(out, data, written, found.packable)


def _finish(run: Path, data: str) -> dict[str, str]:
    """Write a run's report and, where it can be packed, its packed model: → what was written, by its name in JSON."""
    from gsb_vit.runs import MODEL_FILE, Run

    written = {"report": str(Run(run).report(data=data))}
    if (run / MODEL_FILE).is_file():
        written["model"] = str(run / MODEL_FILE)
    return written


def _progress_console(to_json: bool) -> Any:
    """Where progress goes: the error output where the output is JSON, else None, the usual place."""
    return plain_console(sys.stderr) if to_json else None


def _print_run(found: Any, written: dict[str, str] | None = None) -> None:
    """Print a finished run as JSON, and the files that were made of it."""
    fields = {"final_stage": found.final_stage, "test": found.test, "stages": found.stages}
    print_json({"run": str(found.out), **fields, "packable": found.packable, **(written or {})})


def _say_next(run: Path, data: str, written: dict[str, str], packable: bool) -> None:
    """Print where the report and the packed model of a finished run are, and what to do with them."""
    folder = shlex.quote(str(run))
    if "report" in written:
        print(f"\nreport: {printable(Path(written['report']).resolve().as_uri())}")
        commands = []
    else:
        commands = [f"gsb-vit report {folder}"]
    if "model" in written:
        model = shlex.quote(written["model"])
        print(f"packed model: {printable(written['model'])}, {Path(written['model']).stat().st_size / 1e6:.3f} MB")
        commands += [
            f"gsb-vit predict {model} PHOTO.jpg --unknown",
            f"gsb-vit app {model} -o app.html",
            f"gsb-vit summary {model}",
        ]
    elif packable:
        packed = shlex.quote(f"{run.resolve().name}.safetensors")
        commands = [
            f"gsb-vit export {folder} -o {packed}",
            *commands,
            f"gsb-vit predict {packed} PHOTO.jpg --unknown",
        ]
    else:
        commands.append(f"gsb-vit evaluate {folder} --data {shlex.quote(data)}")
    print("\nNext:", *(f"  {printable(command)}" for command in commands), sep="\n")


@app.command(rich_help_panel=PANEL)
def quickstart(
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Where everything goes.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the whole run.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a tour that was stopped.")] = False,
    to_json: RunJson = False,
    engine: Engine = "native",
) -> None:
    """Train, pack, check, time and show a one-bit model on scikit-learn's scanned digits, in minutes."""
    require_training("quickstart")
    from gsb_vit.quickstart import quickstart as tour

    found = tour(out, seed=seed, resume=resume, engine=engine, console=_progress_console(to_json))
    if to_json:
        _print_run(found)


@app.command(rich_help_panel=PANEL)
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="Recipes × seeds, as in recipes/studies/.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Runs, tables and plots; goes on where it stopped.")
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="SPEC", help="The data, as for train (default: the study's).")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=0, metavar="N", help="Runs at a time (default: one a core; 0: tables only)."),
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", metavar="local|submitit", help="Where runs go: this machine, or a cluster.")
    ] = "local",
    cluster_set: Annotated[
        list[str] | None,
        typer.Option("--cluster-set", metavar="KEY=VALUE", help="A parameter of submitit, as in timeout_min=600."),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE.md", help="Put the table between its markers; keep its rows."),
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Time the packed models when all runs are done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the study, list its runs, start none.")] = False,
    to_json: RunJson = False,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Train a grid of recipes and seeds, and write its table, CSV and plot."""
    require_training("a study")
    from gsb_vit.study.command import parse_options, run_study

    options = parse_options(cluster_set or [])
    errors = run_study(
        file,
        out,
        data=data,
        jobs=jobs,
        executor=executor,
        cluster_options=options,
        document=write,
        latency=latency,
        dry_run=dry_run,
        console=_progress_console(to_json),
    )
    if to_json:
        print_json({"study": str(out), "errors": errors})
    for name, error in errors.items():
        print(f"gsb-vit: {printable(f'{name}: {error}')}", file=sys.stderr)
    if errors:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
def sensitivity(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a trained model file.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Other pictures, those seen in training left out (default: the run's validation part).",
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option("--budget", metavar="BYTES", help="Choose what to keep in more bits for so many more bytes."),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Measure on at most so many pictures.")] = 1000,
    to_json: Json = False,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Tell what each layer's binarization costs: the trained model with one part at a time in more bits."""
    require_training("sensitivity")
    from gsb_vit.train.sensitivity import run_sensitivity

    found = run_sensitivity(run, data, budget=budget, most=most, say=tell)
    if to_json:
        print_json(found.to_json())
        return
    from gsb_vit.report.tables import sensitivity_tables
    from gsb_vit.terminal import show

    show(*sensitivity_tables(found.to_json()))
