"""The command line: thin commands. Importing this module imports neither PyTorch nor anything built on it."""

import contextlib
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from gsb_vit import __version__
from gsb_vit.data.datasets import SPECS
from gsb_vit.errors import InputError, ModelError, shown
from gsb_vit.limits import MAX_MEMORY_VARIABLE
from gsb_vit.terminal import as_json, printable

app = typer.Typer(
    name="gsb-vit",
    help="Train one-bit vision transformers on few pictures, pack them, and run them on packed bits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

TRAINING_LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "sklearn", "scipy", "tensorboard")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_DATA = typer.Option(
    "--data",
    metavar="SPEC",
    help="A folder of class folders (perhaps with train/ and val/ or test/), or "
    f"{' or '.join(', '.join(SPECS).rsplit(', ', 1))}.",
)
Data = Annotated[str, _DATA]
DataOrNone = Annotated[str | None, _DATA]
_PACKED = "a packed model, or the name of one that comes with gsb-vit (gsb-vit models lists them)"
_MODEL = f"{_PACKED.capitalize()}."
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads of the engine; 0 takes all cores.")]


def _allow_memory(wanted: float | None) -> float | None:
    """Set the limit for this process and for those it starts."""
    if wanted is not None:
        if not 0 < wanted <= 1e6:
            raise InputError(f"--max-gigabytes {wanted} must be above 0 and at most 1,000,000")
        os.environ[MAX_MEMORY_VARIABLE] = str(max(int(wanted * 1e9), 1))
    return wanted


MaxGigabytes = Annotated[
    float | None,
    typer.Option(
        "--max-gigabytes",
        metavar="N",
        callback=_allow_memory,
        help="Refuse models that take more memory (default: 1.07 packed, 16 trained).",
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", metavar="native|reference", help="What runs a packed model (reference: slow NumPy).")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0: done; 1: some pictures or runs failed and the others did not; 2: refused, with one line on the error output and,
    after ``--json``, the object ``{"error": ...}`` on the standard output; 130: interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is strictly ASCII shows escapes
    limit = os.environ.get(MAX_MEMORY_VARIABLE)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        status, message = _outcome(words)
        if message and not _write_refusal(message, _wants_json(words)):
            status = 2
    if not _flush(sys.stdout):
        status = status or 1
    os.environ.pop(MAX_MEMORY_VARIABLE, None)  # a program that calls this again starts with its own limit
    os.environ.update({} if limit is None else {MAX_MEMORY_VARIABLE: limit})
    sys.exit(status)


def _outcome(words: list[str]) -> tuple[int, str]:
    """Run a command: → exit status, and the line to say where it was refused."""
    try:
        status = app(args=words, prog_name="gsb-vit", standalone_mode=False)
        sys.stdout.flush()
        return (status if isinstance(status, int) else 0), ""
    except InputError as error:
        return 2, str(error)
    except ModuleNotFoundError as error:
        # Some data sets are read by libraries of the training extra.
        if (error.name or "").partition(".")[0] not in TRAINING_LIBRARIES:
            raise
        return 2, f"this needs {error.name}: pip install 'gsb-vit[train]'"
    except BrokenPipeError:
        return 1, ""
    except OSError as error:
        reason = error.strerror or str(error)
        return 2, f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else f"output: {reason}"
    except KeyboardInterrupt:
        return 130, ""
    except MemoryError:
        return 2, "there is not enough memory for this; give smaller pictures, a smaller model or fewer at a time"
    except Exception as error:
        # Wrong usage. Typer raises click's errors, or its own copies of them, depending on its version.
        if type(error).__name__ == "Abort":
            return 130, ""
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2, ""
        return 2, f"{error.format_message()} (gsb-vit --help lists what there is)"


def _write_refusal(message: str, to_json: bool) -> bool:
    """Say why a command was refused; → whether anyone could be told."""
    try:
        print(f"gsb-vit: {printable(message)}", file=sys.stderr, flush=True)
        if to_json:
            _print_json({"error": message})
    except OSError:
        return False
    return True


def _wants_json(words: Sequence[str]) -> bool:
    """Whether programs read the output, as JSON or JSON Lines."""
    formats = [second for first, second in pairwise(words) if first == "--format"]
    formats += [word.partition("=")[2] for word in words if word.startswith("--format=")]
    return "--json" in words or any(one in ("json", "jsonl") for one in formats)


def _flush(stream: Any) -> bool:
    """Write out what a stream holds; where that fails, let go of it, so that Python does not try again at its end."""
    try:
        stream.flush()
        return True
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    with contextlib.suppress(OSError):
        print(f"gsb-vit: warning: {printable(str(message))}", file=sys.stderr, flush=True)


def _tell(line: str) -> None:
    """Say what the user should know, beside the output, which may be JSON."""
    print(printable(line), file=sys.stderr)


def _require_training(what: str) -> None:
    missing = [name for name in TRAINING_LIBRARIES if find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install 'gsb-vit[train]'")


def _print_json(values: Any) -> None:
    print(as_json(values))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gsb-vit {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
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
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Train a teacher, then the one-bit student in two stages: gsb-vit train FOLDER."""
    _require_training("training")
    from gsb_vit.runs import free_folder
    from gsb_vit.train.folder import RECIPE_FILE, RUN_FILE, read_run
    from gsb_vit.train.recipe_io import load_recipe
    from gsb_vit.train.run import train as train_run

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
    }
    settings = [*(settings or []), *(f"{key}={value}" for key, value in short.items() if value is not None)]
    chosen = load_recipe(recipe, settings)
    try:
        found = train_run(chosen, data, out, resume=resume, skip_bad=skip_bad, allow_missing=allow_missing)
    except KeyboardInterrupt:
        if (out / RECIPE_FILE).is_file():
            _tell(f"stopped; go on with: gsb-vit train --resume {shlex.quote(str(out))}")
        raise
    _say_next(out, data, found.packable)


def _say_next(run: Path, data: str, packable: bool) -> None:
    """Print what to do with a finished run."""
    if os.environ.get("RANK", "0") != "0":  # another process of torchrun says it
        return
    folder, packed = shlex.quote(str(run)), shlex.quote(f"{run.resolve().name}.safetensors")
    commands = [f"gsb-vit report {folder}"]
    if packable:
        commands = [
            f"gsb-vit export {folder} -o {packed}",
            *commands,
            f"gsb-vit predict {packed} PHOTO.jpg --unknown",
        ]
    else:
        commands.append(f"gsb-vit evaluate {folder} --data {shlex.quote(data)}")
    print("\nNext:", *(f"  {printable(command)}" for command in commands), sep="\n")


@app.command()
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
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Train a grid of recipes and seeds, and write its table, CSV and plot."""
    _require_training("a study")
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
    )
    for name, error in errors.items():
        print(f"gsb-vit: {printable(f'{name}: {error}')}", file=sys.stderr)
    if errors:
        raise typer.Exit(1)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Where everything goes.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the whole run.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a tour that was stopped.")] = False,
    engine: Engine = "native",
) -> None:
    """Train, pack, check, time and show a one-bit model on scikit-learn's scanned digits, in minutes."""
    _require_training("quickstart")
    from gsb_vit.quickstart import quickstart as tour

    tour(out, seed=seed, resume=resume, engine=engine)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or a trained model file of stage 2.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="The packed file.")],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="Pictures for the check (default: the run's validation part)."),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Check on at most so many of them.")] = 1000,
    digests: Annotated[
        bool, typer.Option(help="Keep digests of the training pictures in the file, so that evaluate knows them.")
    ] = True,
    engine: Engine = "native",
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Pack a trained model into bits, and refuse if the packed model disagrees with it."""
    _require_training("export")
    from gsb_vit.export.run import export_run

    packed, parity = export_run(run, output, data_spec=data, engine=engine, most=most, keep_digests=digests)
    flipped = ", ".join(f"{kind} {share:.1e}" for kind, share in parity.flipped.items() if share) or "none"
    print(f"{printable(str(output))}: {output.stat().st_size / 1e6:.3f} MB")
    print(
        f"same answer as the trained model on {parity.top1_agreement:.2%} of {parity.n} pictures, "
        f"{parity.logits_line}; share of flipped bits on {parity.traced} of them: {flipped}"
    )
    if (unknown := packed.decision.unknown) is not None:
        print(
            f"temperature {packed.decision.temperature:.3g} for probabilities, and a threshold that calls "
            f"{unknown.false_alarm_rate:.1%} of known pictures unknown, fitted on validation pictures"
        )
    else:
        print("there are no validation pictures: probabilities are not calibrated, and no picture is called unknown")


@app.command()
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL",
            help=f"A run's folder, a trained model, or {_PACKED}.",
        ),
    ],
    data: Data,
    everything: Annotated[
        bool, typer.Option("--all", help="Judge on all pictures given, those seen in training, too.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out pictures that cannot be decoded.")] = False,
    to_json: Json = False,
    engine: Engine = "native",
    threads: Threads = 0,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Classify the held-out pictures of a data set and print top-1, top-5, precision, recall and F1."""
    from gsb_vit.export.architecture import is_trained_model
    from gsb_vit.runtime.shipped import find_model

    model = find_model(model)
    if model.is_dir() or is_trained_model(model):
        _require_training("evaluating a run")
        from gsb_vit.train.evaluate import evaluate_run

        found = evaluate_run(model, data, everything=everything, skip_bad=skip_bad, say=_tell)
    else:
        import gsb_vit
        from gsb_vit.runtime.evaluate import evaluate_packed
        from gsb_vit.runtime.packed_file import read

        provenance = read(model).provenance
        classifier = gsb_vit.load(model, threads=threads, engine=engine)
        found = evaluate_packed(classifier, data, provenance, everything=everything, skip_bad=skip_bad, say=_tell)
    if to_json:
        _print_json(found)
        return
    from gsb_vit.report.tables import classes_table, metrics_table
    from gsb_vit.terminal import show

    show(metrics_table(found, data), classes_table(found["classes"]))


@app.command()
def report(
    model: Annotated[
        Path,
        typer.Argument(metavar="RUN|MODEL", help=f"A run's folder, or {_PACKED}."),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="The pictures, as for evaluate (default: those of the run)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Default: RUN/report.html, or MODEL with .html."),
    ] = None,
    engine: Engine = "native",
) -> None:
    """Write one HTML file: how good, every mistake, class by class, training pictures that may have a wrong label."""
    if find_spec("jinja2") is None:
        raise InputError("a report needs jinja2: pip install 'gsb-vit[train]'")
    from gsb_vit.runtime.shipped import find_model

    given, model = model, find_model(model)
    if model.is_dir():
        _require_training("the report of a run")
        from gsb_vit.runs import Run

        path = Run(model).report(engine=engine, data=data, out=output)
    else:
        if data is None:
            raise InputError("a packed model holds no pictures; say where they are with --data SPEC, or give a run")
        from gsb_vit.data.held_out import judged_pictures, require_same_classes
        from gsb_vit.report.page import write_report
        from gsb_vit.runtime.packed_file import read

        packed = read(model)
        judged = judged_pictures(data, packed.provenance, packed.class_names)
        require_same_classes(packed.class_names, judged.class_names, data)
        _tell(judged.line)
        out = output or given.with_name(f"{model.stem}.html")  # of a shipped model, here
        path = write_report(None, packed=model, test=judged.pictures, out=out, engine=engine)
    print(f"report: {printable(path.resolve().as_uri())}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=_MODEL)],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures, and folders of pictures.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")] = 5,
    max_megapixels: Annotated[
        float | None,
        typer.Option("--max-megapixels", metavar="N", help="Refuse pictures with more (default: 64)."),
    ] = None,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Give no class to a picture that looks like none of them.")
    ] = False,
    format_: Annotated[
        str,
        typer.Option("--format", metavar="text|json|jsonl|csv", help="How answers are printed (default: text)."),
    ] = "text",
    to_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    engine: Engine = "native",
    threads: Threads = 0,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Name what is in pictures; answers come one by one, and pictures that cannot be read do not stop the others."""
    import gsb_vit
    from gsb_vit.report.answers import FORMATS, answer_writer

    if max_megapixels is not None and not 0 < max_megapixels <= 1e6:
        raise InputError(f"--max-megapixels {max_megapixels} must be above 0 and at most 1,000,000")
    if format_ not in FORMATS:
        raise InputError(f"--format {format_} is unknown; use one of {', '.join(FORMATS)}")
    classifier = gsb_vit.load(model, threads=threads, engine=engine)
    if unknown:
        classifier.decision.require_unknown()
    pictures, failed = _find_each(paths), 0
    kind = "json" if to_json else format_
    write = answer_writer(kind, [picture for picture, _ in pictures], classifier.class_names, unknown)
    max_pixels = None if max_megapixels is None else max(int(max_megapixels * 1e6), 1)
    try:
        next(write)
        for picture, problem in pictures:
            if problem is None:
                try:
                    write.send((picture, classifier.predict(picture, top, unknown=unknown, max_pixels=max_pixels)))
                    continue
                except ModelError as error:
                    _write_refusal(f"{model}: {error}", False)
                    write.send((picture, f"{model}: {error}"))
                    raise typer.Exit(2) from error
                except InputError as error:
                    problem = str(error)
            failed += 1
            write.send((picture, problem))
    finally:
        write.close()
    if failed:
        _write_refusal(f"{failed:,} of {len(pictures):,} pictures could not be read", False)
        raise typer.Exit(1)


def _find_each(paths: Sequence[Path]) -> list[tuple[Path, str | None]]:
    """Pictures that paths name, and what is wrong with a path. Raises InputError where no path gives a picture."""
    from gsb_vit.data.held_out import find_pictures

    found: list[tuple[Path, str | None]] = []
    for path in paths:
        try:
            found += [(picture, None) for picture in find_pictures([path], _tell)]
        except InputError as error:
            found.append((path, str(error)))
    if found and all(problem is not None for _, problem in found):
        raise InputError(str(found[0][1]))
    return found


@app.command(name="app")
def offline_page(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Packed models, or names as for predict; the page offers a choice."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="APP.html", help="The page, one file.")],
) -> None:
    """Write a page that names what is in pictures: one file, opened from disk in any browser, offline."""
    from gsb_vit.app.page import write_app

    size = write_app(models, output)
    print(f"{printable(str(output))}: {size / 1e6:.2f} MB; open it in a browser, also on a phone and offline")


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="Print this model's card.")
    ] = None,
    to_json: Json = False,
) -> None:
    """List the models that come with gsb-vit; each name is a MODEL of the other commands."""
    from gsb_vit.runtime.shipped import shipped_models

    found = shipped_models()
    if name is not None:
        if name not in found:
            raise InputError(f"there is no shipped model {shown(name)}; there are {', '.join(found) or 'none'}")
        found = {name: found[name]}
        if not to_json:
            print(found[name].card.strip())
            return
    if to_json:
        _print_json([one.to_json() for one in found.values()])
        return
    from gsb_vit.report.tables import models_table
    from gsb_vit.terminal import show

    show(models_table(list(found.values())))


@app.command()
def summary(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|ARCH", help="A model file, a name as for predict, a run, or an architecture."),
    ],
    to_json: Json = False,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Count parameters, bytes, FLOPs, BOPs and OPs, layer by layer, against the full-precision model."""
    from gsb_vit.bench.cost import summarize
    from gsb_vit.export.architecture import find_architecture

    found = summarize(*find_architecture(model))
    if to_json:
        _print_json(found.to_json())
        return
    from gsb_vit.report.tables import summary_tables
    from gsb_vit.terminal import show

    show(*summary_tables(found))


@app.command()
def bench(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help=_MODEL)] = None,
    arch: Annotated[
        str | None,
        typer.Option("--arch", metavar="NAME", help="Instead of MODEL: an untrained model of this architecture."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="PEERS",
            help="What to compare with: torch, onnxruntime, openvino, separated by commas, each perhaps with one "
            "precision as in openvino:int8+bf16. By default torch:fp32, where PyTorch is installed.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of every engine.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures in one call.")] = 1,
    isa: Annotated[
        str | None, typer.Option("--isa", metavar="avx2|sse4", help="Hold every engine to an instruction set.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            help="Run held-out pictures of a data set, as for evaluate, and tell how full the groups are on them. By "
            "default smooth random pictures.",
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the packed model's time goes, and compare with nothing.")
    ] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the rows: PNG, SVG or PDF.")] = None,
    to_json: Json = False,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Time a packed model beside its full-precision twin."""
    if (model is None) == (arch is None):
        raise InputError("give either MODEL, a packed file, or --arch NAME, as in --arch gsb_vit_small_patch16_224")
    if profile and (plot or against):
        raise InputError("--profile goes with --threads, --batch, --isa and --data; leave out --against and --plot")
    from gsb_vit.runtime.shipped import find_model

    with tempfile.TemporaryDirectory(prefix="gsb-vit-arch-") as folder:
        path = Path(folder) / "model.safetensors" if model is None else find_model(model)
        if arch is not None:
            from gsb_vit.export.untrained import pack_untrained

            pack_untrained(arch, path)
        options: dict[str, Any] = {"threads": threads, "batch": batch, "isa": isa}
        if data is not None:
            from gsb_vit.bench.compare import choose_pictures
            from gsb_vit.runtime.packed_file import read

            options["pictures"] = choose_pictures(read(path), data)
        if profile:
            _profile(path, options, to_json)
        else:
            _compare(path, against, options, plot, to_json)


def _profile(model: Path, options: dict[str, Any], to_json: bool) -> None:
    from gsb_vit.bench.profile import profile
    from gsb_vit.report.tables import profile_tables
    from gsb_vit.terminal import show

    found = profile(model, **options)
    if to_json:
        _print_json(found.to_json())
    else:
        show(*profile_tables(found))


def _compare(model: Path, against: str | None, options: dict[str, Any], plot: Path | None, to_json: bool) -> None:
    from gsb_vit.bench.compare import benchmark
    from gsb_vit.bench.peers import plot as plots
    from gsb_vit.report.tables import bench_table, densities_table
    from gsb_vit.terminal import show

    if plot is not None:
        plots.check_plot(plot)
    rows = benchmark(model, against=against, **options)
    if to_json:
        _print_json([row.row() for row in rows])
    else:
        densities = [row.densities for row in rows if row.densities is not None]
        show(bench_table(rows), *(densities_table(one) for one in densities))
    if plot is not None:
        plots.plot(rows, plot)


if __name__ == "__main__":
    main()
