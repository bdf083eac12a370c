"""Commands that answer with a model: predict, evaluate, report."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from gsb_vit.errors import InputError, ModelError
from gsb_vit.terminal import printable

from .base import (
    MODEL,
    PACKED,
    Data,
    Engine,
    Json,
    MaxGigabytes,
    Threads,
    app,
    print_json,
    require_training,
    tell,
    write_refusal,
)

PANEL = "Answer"


@app.command(rich_help_panel=PANEL)
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL)],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Pictures, folders, zip archives.")],
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
                    write_refusal(f"{model}: {error}", False)
                    write.send((picture, f"{model}: {error}"))
                    raise typer.Exit(2) from error
                except InputError as error:
                    problem = str(error)
            failed += 1
            write.send((picture, problem))
    finally:
        write.close()
    if failed:
        write_refusal(f"{failed:,} of {len(pictures):,} pictures could not be read", False)
        raise typer.Exit(1)


def _find_each(paths: Sequence[Path]) -> list[tuple[Any, str | None]]:
    """Pictures that paths name, and what is wrong with a path. Raises InputError where no path gives a picture."""
    from gsb_vit.data.held_out import find_pictures

    found: list[tuple[Any, str | None]] = []
    for path in paths:
        try:
            found += [(picture, None) for picture in find_pictures([path], tell)]
        except InputError as error:
            found.append((path, str(error)))
    if found and all(problem is not None for _, problem in found):
        raise InputError(str(found[0][1]))
    return found


@app.command(rich_help_panel=PANEL)
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL",
            help=f"A run's folder, a trained model, or {PACKED}.",
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
    from gsb_vit.runtime.shipped import locate_model

    model = locate_model(model)
    if model.is_dir() or is_trained_model(model):
        require_training("evaluating a run")
        from gsb_vit.train.evaluate import evaluate_run

        found = evaluate_run(model, data, everything=everything, skip_bad=skip_bad, say=tell)
    else:
        import gsb_vit
        from gsb_vit.runtime.evaluate import evaluate_packed
        from gsb_vit.runtime.packed_file import read

        provenance = read(model).provenance
        classifier = gsb_vit.load(model, threads=threads, engine=engine)
        found = evaluate_packed(classifier, data, provenance, everything=everything, skip_bad=skip_bad, say=tell)
    if to_json:
        print_json(found)
        return
    from gsb_vit.report.tables import classes_table, metrics_table
    from gsb_vit.terminal import show

    show(metrics_table(found, data), classes_table(found["classes"]))


@app.command(rich_help_panel=PANEL)
def report(
    model: Annotated[
        Path,
        typer.Argument(metavar="RUN|MODEL", help=f"A run's folder, or {PACKED}."),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="The pictures, as for evaluate (default: those of the run)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Default: RUN/report.html, or MODEL with .html."),
    ] = None,
    to_json: Json = False,
    engine: Engine = "native",
) -> None:
    """Write one HTML file: how good, every mistake, class by class, training pictures that may have a wrong label."""
    if find_spec("jinja2") is None:
        raise InputError("a report needs jinja2: pip install 'gsb-vit[train]'")
    from gsb_vit.runtime.shipped import locate_model

    given, model = model, locate_model(model)
    if model.is_dir():
        require_training("the report of a run")
        from gsb_vit.runs import Run

        path = Run(model).report(engine=engine, data=data, out=output)
    else:
        model = locate_model(model)
        if data is None:
            raise InputError("a packed model holds no pictures; say where they are with --data SPEC, or give a run")
        from gsb_vit.data.held_out import judged_pictures, require_same_classes
        from gsb_vit.report.page import write_report
        from gsb_vit.runtime.packed_file import read

        packed = read(model)
        judged = judged_pictures(data, packed.provenance, packed.class_names)
        require_same_classes(packed.class_names, judged.class_names, data)
        for line in judged.lines:
            tell(line)
        out = output or given.with_name(f"{model.stem}.html")  # of a shipped model, here
        path = write_report(None, packed=model, test=judged.pictures, out=out, engine=engine)
    if to_json:
        print_json({"report": str(path)})
    else:
        print(f"report: {printable(path.resolve().as_uri())}")
