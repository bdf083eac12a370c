"""Commands that write what a device gets: export, add-class, push, app."""

import contextlib
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gsb_vit.errors import InputError
from gsb_vit.files import staged
from gsb_vit.terminal import printable

from .base import Engine, Json, MaxGigabytes, Threads, app, print_json, print_prose, require_training, tell

if TYPE_CHECKING:
    from gsb_vit.export.c_source import CSource


PANEL = "Ship"


@app.command(rich_help_panel=PANEL)
def export(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|MODEL", help="A run's folder, a trained model file of stage 2; for --c also a packed one."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="MODEL.safetensors", help="The packed file.")
    ] = None,
    c_folder: Annotated[
        Path | None,
        typer.Option("--c", metavar="OUT/", help="A folder for model.c and model.h: the packed model in portable C99."),
    ] = None,
    c_name: Annotated[
        str,
        typer.Option("--c-name", metavar="NAME", help="What its files and functions are called: NAME.c, NAME_logits."),
    ] = "model",
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="SPEC", help="Pictures for the check (default: the run's validation part)."),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Check on at most so many of them.")] = 1000,
    digests: Annotated[
        bool, typer.Option(help="Keep digests of the training pictures in the file, so that evaluate knows them.")
    ] = True,
    to_json: Json = False,
    engine: Engine = "native",
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Pack a trained model into bits, and refuse if the packed model disagrees with it; or write it as one C file."""
    from gsb_vit.export.architecture import is_trained_model
    from gsb_vit.export.c_source import check_place, write_c

    if output is None and c_folder is None:
        raise InputError("name what to write: -o MODEL.safetensors, a folder for C with --c OUT/, or both")
    if c_folder is not None and not run.is_dir() and not is_trained_model(run):
        if output is not None or data is not None:
            raise InputError(f"{run} is packed already, or no model: give --c OUT/ alone, or a run")
        source = write_c(run, c_folder, engine, c_name)
        if to_json:
            print_json(_c_json(source, c_folder / c_name))
        else:
            _tell_c(source, c_folder / c_name)
        return
    require_training("export")
    from gsb_vit.export.run import export_run

    made: CSource | None = None
    if c_folder is not None:
        check_place(c_folder, c_name, output)
    with _packed_file(output, c_folder and c_folder / f"{c_name}.c") as path:
        packed, parity = export_run(run, path, data_spec=data, engine=engine, most=most, keep_digests=digests)
        if c_folder is not None:
            made = write_c(path, c_folder, engine, c_name)
    if to_json:
        values = {
            "pictures": parity.n,
            "same_answer": parity.top1_agreement,
            "traced": parity.traced,
            "flipped": parity.flipped,
            "decision": packed.decision.to_json(),
        }
        if output is not None:
            values |= {"model": str(output), "bytes": output.stat().st_size}
        if made is not None and c_folder is not None:
            values |= _c_json(made, c_folder / c_name)
        print_json(values)
        return
    if output is not None:
        print(f"{printable(str(output))}: {output.stat().st_size / 1e6:.3f} MB")
    flipped = ", ".join(f"{kind} {share:.1e}" for kind, share in parity.flipped.items() if share) or "none"
    print_prose(
        f"same answer as the trained model on {parity.top1_agreement:.2%} of {parity.n} pictures, "
        f"{parity.logits_line}; share of flipped bits on {parity.traced} of them: {flipped}"
    )
    if (unknown := packed.decision.unknown) is not None:
        print_prose(
            f"fitted on validation pictures: temperature {packed.decision.temperature:,.2f} for probabilities, and a "
            f"threshold that calls {unknown.false_alarm_rate:.1%} of known pictures unknown"
        )
    else:
        print_prose(
            "there are no validation pictures: probabilities are not calibrated, and no picture is called unknown"
        )
    if made is not None and c_folder is not None:
        _tell_c(made, c_folder / c_name)


@contextlib.contextmanager
def _packed_file(output: Path | None, c_file: Path | None) -> Iterator[Path]:
    """Give where to pack: ``output``, or, for a C file alone, a temporary file.

    For both it is a file that gets the name ``output`` when the block, which writes the C file, ends well: so there are
    both or none. What is said of it names the files that were asked for.
    """
    if output is not None and c_file is None:
        yield output
        return
    asked = output or c_file
    with contextlib.ExitStack() as stack:
        try:
            if output is None:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model.safetensors"
            else:
                path = stack.enter_context(staged(output))
        except OSError as error:
            raise InputError(f"{asked}: cannot be written ({error}); give a file in a folder that exists") from error
        try:
            yield path
        except InputError as error:
            raise type(error)(str(error).replace(str(path), str(asked))) from error
        try:
            stack.close()
        except OSError as error:
            raise InputError(f"{asked}: cannot be written ({error}); make room there, or give another file") from error


def _c_json(made: "CSource", stem: Path) -> dict[str, Any]:
    return {
        "c": {
            "source": f"{stem}.c",
            "header": f"{stem}.h",
            "flash_bytes": made.flash_bytes,
            "arena_bytes": made.arena_bytes,
            "run_bytes": made.run_bytes,
            "resize_bytes": made.resize_bytes,
            "max_picture_width": made.max_picture_width,
            "stack_bytes": made.stack_bytes,
        }
    }


def _tell_c(made: "CSource", path: Path) -> None:
    """Print what a device needs for the C files, whose path is given without an ending."""
    source = printable(f"{path}.c")
    print(f"{source} and {path.name}.h: C99, the same logits to the last bit")
    print(f"flash {made.flash_bytes:,} bytes of weights, tables and names, and the code on top")
    print_prose(
        f"RAM   {made.arena_bytes:,} bytes, the arena: {made.run_bytes:,} to classify, {made.resize_bytes:,} to "
        f"resize pictures of up to {made.max_picture_width} columns (-D{path.name.upper()}_MAX_PICTURE_WIDTH)"
    )
    print(f"stack at most {made.stack_bytes:,} bytes")
    print(f"compile it with  cc -std=c99 -O2 -ffp-contract=off -c {shlex.quote(source)}")


@app.command(name="add-class", rich_help_panel=PANEL)
def add_class(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A packed model.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new class.")],
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE...", help="Its pictures, two or more, and folders of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="NEW.safetensors", help="The new packed file.")],
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out",
            metavar="DIR",
            help="A folder of pictures for each old class, not trained on: they set the new class's bias, and refit "
            "temperature and threshold.",
        ),
    ] = None,
    to_json: Json = False,
    engine: Engine = "native",
    threads: Threads = 0,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Add a class to a packed model from a few pictures, without training, and write a new packed file."""
    import gsb_vit
    from gsb_vit.data.held_out import find_pictures

    if output.exists() and model.exists() and output.samefile(model):
        raise InputError(f"{output} is the model itself; name another file with -o")
    loaded = gsb_vit.load(model, threads=threads, engine=engine)
    found = find_pictures(pictures, tell)
    kept = None if held_out is None else _class_folders(held_out)
    made = loaded.add_class(name, found, output, held_out=kept)
    aside = 0 if kept is None else sum(len(one) for one in kept.values())
    if to_json:
        values = {"model": str(output), "bytes": output.stat().st_size, "class": made.class_names[-1]}
        values |= {"pictures": len(found), "held_out": aside, "decision": made.decision.to_json()}
        print_json({**values, "classes": list(made.class_names)})
        return
    classes, added = len(made.class_names), printable(made.class_names[-1])
    print(f"{printable(str(output))}: {classes} classes, {added} from {len(found)} pictures")
    if kept is not None:
        print_prose(
            f"refitted on {aside} held-out pictures and the new ones: the new class's bias, the temperature and the "
            "threshold"
        )
    else:
        print_prose(
            "not refitted, for lack of --held-out pictures: temperature and threshold are still those of the old "
            "classes, and the new class may take pictures from them"
        )


def _class_folders(root: Path) -> dict[str, list[Any]]:
    """The pictures of each folder in ``root``, under its name."""
    from gsb_vit.data.held_out import find_pictures

    if not root.is_dir():
        raise InputError(f"{root} is no folder; give one with a folder of pictures for each old class")
    folders = sorted(one for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))
    return {folder.name: find_pictures([folder], tell) for folder in folders}


@app.command(rich_help_panel=PANEL)
def push(
    model: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run's folder, or a packed model.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="The model's name on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Where it is made: for you only.")] = False,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="NAME", help="The hub's name of a licence, as in mit.")
    ] = None,
    to_json: Json = False,
) -> None:
    """Put a packed model on the Hugging Face hub, with a model card; gsb_vit.load("hf:USER/NAME") gets it back."""
    if model.is_dir():
        from gsb_vit.runs import Run

        address = Run(model).push_to_hub(repository, private=private, license=license_)
    else:
        from gsb_vit.runtime.hub import push_to_hub

        address = push_to_hub(model, repository, private=private, license=license_)
    if to_json:
        print_json({"address": address})
    else:
        print(printable(address))


@app.command(name="app", rich_help_panel=PANEL)
def offline_page(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Packed models, or names as for predict; the page offers a choice."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="APP.html", help="The page, one file.")
    ] = None,
    pwa: Annotated[
        Path | None, typer.Option("--pwa", metavar="DIR", help="A folder for a web server: an app to install.")
    ] = None,
    to_json: Json = False,
) -> None:
    """Write a page that names what is in pictures: one file, opened from disk in any browser, offline."""
    from gsb_vit.app.page import write_app
    from gsb_vit.app.pwa import write_pwa

    if output is None and pwa is None:
        raise InputError("name the page with -o APP.html, or a folder for a web server with --pwa DIR")
    found: dict[str, Any] = {}
    if output is not None:
        found |= {"page": str(output), "bytes": write_app(models, output)}
    if pwa is not None:
        found |= {"pwa": str(pwa), "pwa_bytes": write_pwa(models, pwa)}
    if to_json:
        print_json(found)
        return
    if output is not None:
        megabytes = f"{found['bytes'] / 1e6:.2f} MB"
        print(f"{printable(str(output))}: {megabytes}")
        print("open it in a browser, also on a phone and offline")
    if pwa is not None:
        megabytes = f"{found['pwa_bytes'] / 1e6:.2f} MB"
        print(f"{printable(str(pwa))}: {megabytes}; serve it over https, and browsers offer to install it")
