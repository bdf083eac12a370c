"""The tour: train on scikit-learn's digits, pack, check, time, predict, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from gsb_vit.bench.compare import benchmark
from gsb_vit.data.splits import load_data
from gsb_vit.export.parity import Parity
from gsb_vit.export.run import export_run
from gsb_vit.report.page import write_report
from gsb_vit.report.tables import bench_table
from gsb_vit.runtime.classifier import load
from gsb_vit.terminal import filled, plain_console, printable, show
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import RunSummary, train

MODEL_FILE = "model.safetensors"
SHOWN = 5


def quickstart(
    out: str | Path,
    *,
    seed: int = 0,
    overrides: Sequence[str] = (),
    resume: bool = False,
    engine: str = "native",
    console: Console | None = None,
) -> RunSummary:
    """Run the whole tour into the folder ``out``: a run, its packed model ``model.safetensors`` and ``report.html``.

    The teacher and the two stages train on 70 % of the digits (a part of it for selection), everything is reported on
    the other 30 %. ``overrides`` change the recipe as ``--set`` does; ``engine`` runs the packed model: ``native``, or
    ``reference`` where the extension is not built.

    Raises:
        InputError: ``out`` is not empty (and ``resume`` is off), or the packed model disagrees with the trained one.
    """
    console = console or plain_console()
    folder = Path(out)
    recipe = load_recipe("quickstart", [f"seed={seed}", *overrides])
    summary = train(recipe, "digits", folder, resume=resume, console=console)
    packed = folder / MODEL_FILE
    _, parity = export_run(folder, packed, engine=engine)
    size = packed.stat().st_size / 1e6
    console.print(f"packed model: {packed}, {size:.3f} MB")
    for line in _parity_lines(parity):
        console.print(line)
    rows = benchmark(packed) if engine == "native" else []
    if rows:
        show(bench_table(rows), console=console)
    test = load_data("digits", recipe.data).test
    _predict(packed, engine, test.sources, test.labels, console)
    figures = {"same answer": f"{parity.top1_agreement:.2%} of {parity.n} validation pictures"}
    report = write_report(
        folder, packed=packed, test=test, bench=rows, parity=figures, title="One-bit digits", engine=engine
    )
    console.print(f"report: {report.resolve().as_uri()}")
    return summary


def _parity_lines(parity: Parity) -> list[str]:
    return filled(
        f"same answer as the trained model on {parity.top1_agreement:.2%} of {parity.n} validation pictures, "
        f"{parity.logits_line}"
    )


def _predict(packed: Path, engine: str, sources: tuple, labels: np.ndarray, console: Console) -> None:
    """Print the packed model's first answers for a few held-out pictures."""
    classifier = load(packed, engine=engine)
    for source, label in zip(sources[:SHOWN], labels[:SHOWN], strict=True):
        answers = ", ".join(
            f"{printable(p.name)} {100 * p.probability:.0f} %" for p in classifier.predict(source, top=2)
        )
        console.print(f"a held-out {printable(classifier.class_names[label])}: {answers}")
