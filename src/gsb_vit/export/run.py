"""From a run to a packed file, checked on the run's validation pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gsb_vit.data.digests import digest, digests, pack_seen, unpack_seen
from gsb_vit.data.held_out import SPLIT_OPTIONS, require_same_classes
from gsb_vit.data.splits import DataSplits
from gsb_vit.data.stored_split import run_data
from gsb_vit.errors import InputError
from gsb_vit.models.trained import find_model, load_model
from gsb_vit.runtime.packed_file import PackedModel, refuse_other_model
from gsb_vit.train.evaluate import run_data_options, run_decision
from gsb_vit.train.folder import RUN_FILE, read_run

from .parity import Parity, export_and_verify

MOST_PICTURES = 1000
MOST_DIGESTS = 300_000  # 3.2 MB; a packed file's header has room for 8


def export_run(
    run: str | Path,
    output: str | Path,
    *,
    data_spec: str | None = None,
    engine: str = "native",
    most: int = MOST_PICTURES,
    keep_digests: bool = True,
) -> tuple[PackedModel, Parity]:
    """Pack the last stage of a run (or one trained model file) into ``output`` and compare both on pictures.

    The pictures are the run's validation pictures (its test pictures if it has none), of more than ``most`` every n-th;
    ``data_spec`` names the data if it has moved. ``engine`` runs the packed model; bits are always compared with those
    of the NumPy reference, on the first pictures. Digests of the training pictures go into the packed file's provenance
    (10.7 kB a thousand pictures), so that the packed model, too, is judged on pictures that it has not seen. Who has a
    picture can find out from them whether it was used: ``keep_digests`` off leaves them out. Temperature and threshold
    for unknown pictures are those that the run fitted at its end; those of an older run, or of a single model file, are
    fitted on these validation pictures. Without validation pictures there are none.

    Raises:
        InputError: the run, its data or ``output`` cannot be used, or the packed model disagrees with the trained one,
            with the figures; then nothing is written.
    """
    run = Path(run)
    refuse_other_model(Path(output))
    trained = load_model(run)
    spec = data_spec or _data_of(run)
    options = run_data_options(run)
    if most < 1:
        raise InputError(f"{most} pictures compare nothing; give at least 1")
    splits = run_data(run, spec, options)
    require_same_classes(trained.class_names, splits.class_names, spec)
    held_out = splits.validation if len(splits.validation) else splits.test
    step = -(-len(held_out) // most)
    sources = held_out.sources[::step]
    split = {name: value for name, value in asdict(options).items() if name in SPLIT_OPTIONS}
    provenance = _seen(trained.info.provenance, splits, keep_digests)
    return export_and_verify(
        trained.model,
        output,
        np.stack([trained.preprocessing(source) for source in sources]),
        class_names=trained.class_names,
        preprocessing=trained.preprocessing,
        provenance={
            **provenance,
            "stage": trained.info.stage,
            "split": split,
            "trained": digest(find_model(run)),
        },
        engine=engine,
        labels=held_out.labels[::step] if len(splits.validation) else None,
        decision=run_decision(run),
    )


def _seen(provenance: dict[str, Any], splits: DataSplits, keep_digests: bool) -> dict[str, Any]:
    """The run's provenance with the digests of its training pictures, or without.

    A run of before they were kept gets those of the split that its recipe draws now, if that has as many pictures. More
    than ``MOST_DIGESTS`` are left out.
    """
    others = {key: value for key, value in provenance.items() if key != "seen"}
    known = unpack_seen(provenance) if keep_digests else frozenset()
    if known is None and provenance.get("training_pictures") == len(splits.train):
        known = frozenset(digests(splits.train.sources + splits.validation.sources))
    return {**others, "seen": pack_seen(known)} if known and len(known) <= MOST_DIGESTS else others


def _data_of(run: Path) -> str:
    """The data SPEC that the run a path lies in was trained on."""
    for folder in (run, *list(run.parents)[:2]):
        if (folder / RUN_FILE).is_file():
            return read_run(folder)["data"]
    raise InputError(f"{run} lies in no run that says what data to check on; give it as --data SPEC")
