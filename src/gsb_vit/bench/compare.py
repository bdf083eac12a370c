"""``gsb-vit bench``: how fast a packed model runs, beside its full-precision twin in other engines.

Every engine lives in a process of its own (its threads, its memory) and they take turns (:mod:`gsb_vit.bench.peers`),
so a machine that slows down for a while slows every engine, and ``peak_mb`` is one engine's alone.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.errors import InputError
from gsb_vit.runtime.packed_file import PackedModel, read
from gsb_vit.runtime.shipped import locate_model

from .densities import measure_densities
from .peers.against import measure_against
from .peers.engines import PEERS, Engine, choose
from .peers.isa import ISAS
from .peers.prepare import CALIBRATION_PICTURES, CHECK_PICTURES
from .peers.timing import ROUNDS, Measurement, measure
from .peers.worker import Setting, WorkerError

TRIES = 3


def default_peers() -> list[str]:
    """Return the peers to measure against unless told: the twin in PyTorch float32, where PyTorch is installed."""
    return ["torch:fp32"] if all(find_spec(package) for package in PEERS["torch"][1]) else []


def benchmark(
    model: str | os.PathLike[str],
    *,
    against: str | Sequence[str] | None = None,
    threads: int = 1,
    batch: int = 1,
    isa: str | None = None,
    pictures: NDArray[np.uint8] | None = None,
    rounds: int = ROUNDS,
    tries: int = TRIES,
) -> list[Measurement]:
    """Time a packed model and its full-precision twin in turn; the packed model's row (engine ``gsb-vit``) comes first.

    ``median_ms`` is the time of one call on ``batch`` pictures. Where an engine's calls scatter too much to be a
    figure, everything is measured again, up to ``tries`` times; a row that is still none has a ``problem``, no median.

    Args:
        against: peers as in ``"torch,onnxruntime,openvino:int8+bf16"``; by default :func:`default_peers`.
        isa: ``"avx2"`` or ``"sse4"`` holds every engine to that instruction set; by default all that the CPU has.
        pictures: uint8 (n, H, W, 3) as :func:`choose_pictures` reads them: the first 16 are run in turn, all calibrate
            int8, and the packed model's row tells its ``densities`` on them; by default smooth random ones.

    Raises:
        InputError: a model that cannot be read, tries below 1, a peer that is unknown, missing or not convertible, an
            instruction set that this machine lacks, no native extension.
    """
    if tries < 1:
        raise InputError(f"tries {tries} must be at least 1")
    path, setting = locate_model(model), Setting(threads, batch, isa)
    packed = read(path)
    _require_backend(path, isa)
    chosen = [f"{engine}:{precision}" for engine, precision in choose(default_peers() if against is None else against)]
    if not chosen:
        rows = _measure_alone(path, setting, packed, pictures, rounds, tries)
    else:
        try:
            rows = measure_against(path, chosen, [setting], pictures=pictures, rounds=rounds, tries=tries)
        except WorkerError as error:
            raise InputError(f"{error}; leave the peer out, or install other versions of its libraries") from error
    if pictures is None:
        return rows
    densities = measure_densities(packed, pictures[:CHECK_PICTURES]).to_json()
    return [replace(row, densities=densities) if row.engine == "gsb-vit" else row for row in rows]


def _require_backend(model: Path, isa: str | None) -> None:
    """Raise InputError, listing what there is, where the packed model cannot run as the run asks for."""
    from gsb_vit.runtime.classifier import load

    load(model, threads=1, backend=None if isa is None else ISAS[isa]["GSB_VIT_BACKEND"])


def _measure_alone(
    path: Path, setting: Setting, packed: PackedModel, pictures: NDArray[np.uint8] | None, rounds: int, tries: int
) -> list[Measurement]:
    if pictures is None:
        pictures = smooth_pictures(CHECK_PICTURES, packed.architecture.image_size)
    with tempfile.TemporaryDirectory(prefix="gsb-vit-bench-") as folder:
        file = Path(folder) / "pictures.npy"
        np.save(file, pictures[:CHECK_PICTURES])
        return measure([Engine("gsb-vit", "1-bit", path)], setting, file, rounds=rounds, tries=tries)


def choose_pictures(model: PackedModel, spec: str, most: int = CALIBRATION_PICTURES) -> NDArray[np.uint8]:
    """Return up to ``most`` held-out pictures of a data SPEC, in a seeded random order, as the model reads them.

    Raises:
        InputError: the data cannot be read, or has no held-out pictures.
    """
    from gsb_vit.data.held_out import held_out_pictures

    _, found = held_out_pictures(spec, model.provenance)
    order = np.random.default_rng(0).permutation(len(found.sources))[:most]
    return np.stack([model.preprocessing(found.sources[index]) for index in order])
