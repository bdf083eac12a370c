"""Commands that tell of models: models, summary, bench."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from gsb_vit.errors import InputError, shown

from .base import MODEL, Json, MaxGigabytes, app, print_json

PANEL = "Look"


@app.command(rich_help_panel=PANEL)
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
        print_json([one.to_json() for one in found.values()])
        return
    from gsb_vit.report.tables import models_table
    from gsb_vit.terminal import show

    show(models_table(list(found.values())))


@app.command(rich_help_panel=PANEL)
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
        print_json(found.to_json())
        return
    from gsb_vit.report.tables import summary_tables
    from gsb_vit.terminal import show

    show(*summary_tables(found))


@app.command(rich_help_panel=PANEL)
def bench(
    model: Annotated[Path | None, typer.Argument(metavar="MODEL", help=MODEL)] = None,
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
    board: Annotated[
        str | None,
        typer.Option(
            "--board",
            metavar="NAME|all",
            help="Time nothing; print what a board needs, as pi4: RAM, flash, operations and estimated ms, for MODEL, "
            "--arch, or what a recipe would train.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="FILE.toml", help="With --board: a recipe, or a shipped one's name."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --recipe: change one value, as in model.depth=4."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PX", help="With --board: side of the pictures.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option("--classes", min=1, metavar="N", help="With --board: how many (default: 1000).")
    ] = None,
    to_json: Json = False,
    max_gigabytes: MaxGigabytes = None,
) -> None:
    """Time a packed model beside its full-precision twin, or print what a board needs for it."""
    planned = {"recipe": recipe, "settings": settings, "image_size": image_size, "num_classes": classes}
    given = {name: value for name, value in planned.items() if value is not None}
    if board is not None:
        if profile or plot or against or isa or data:
            raise InputError("--board times nothing; leave out --profile, --plot, --against, --isa and --data")
        _board(board, model, arch, given, to_json)
        return
    if given:
        raise InputError("--recipe, --set, --image-size and --classes go with --board, as in --board pi4")
    if (model is None) == (arch is None):
        raise InputError("give either MODEL, a packed file, or --arch NAME, as in --arch gsb_vit_small_patch16_224")
    if profile and (plot or against):
        raise InputError("--profile goes with --threads, --batch, --isa and --data; leave out --against and --plot")
    from gsb_vit.runtime.shipped import locate_model

    with tempfile.TemporaryDirectory(prefix="gsb-vit-arch-") as folder:
        path = Path(folder) / "model.safetensors" if model is None else locate_model(model)
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


def _board(board: str, model: Path | None, arch: str | None, planned: dict[str, Any], to_json: bool) -> None:
    from gsb_vit.bench.boards import estimates, find_boards
    from gsb_vit.export.architecture import find_architecture, planned_architecture
    from gsb_vit.report.tables import board_tables
    from gsb_vit.terminal import show

    find_boards(board)  # refused before anything is built
    if [model, arch, planned.get("recipe")].count(None) != 2:
        raise InputError("--board takes one of MODEL, --arch NAME and --recipe FILE.toml")
    if model is not None and planned:
        raise InputError("a MODEL has its size and its classes; leave out --set, --image-size and --classes")
    if "settings" in planned and "recipe" not in planned:
        raise InputError("--set changes a recipe; give --recipe, as in --recipe flowers102_64")
    size = None
    if model is not None:
        architecture, size, _ = find_architecture(str(model))
    else:
        architecture = planned_architecture(arch, **planned)
    summary, rows = estimates(architecture, board, size)
    if to_json:
        total = {"name": architecture.name, "classes": architecture.num_classes, **summary.packed.to_json()}
        print_json({"model": total, "boards": [row.to_json() for row in rows]})
    else:
        show(*board_tables(summary, rows))


def _profile(model: Path, options: dict[str, Any], to_json: bool) -> None:
    from gsb_vit.bench.profile import profile
    from gsb_vit.report.tables import profile_tables
    from gsb_vit.terminal import show

    found = profile(model, **options)
    if to_json:
        print_json(found.to_json())
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
        print_json([row.row() for row in rows])
    else:
        densities = [row.densities for row in rows if row.densities is not None]
        show(bench_table(rows), *(densities_table(one) for one in densities))
    if plot is not None:
        plots.plot(rows, plot)
