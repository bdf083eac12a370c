"""``gsb-vit bench``: how fast a packed model runs, beside its full-precision twin in other engines.

Every engine lives in a process of its own (its threads, its memory) and they take turns (:mod:`gsb_vit.peers`), so a
machine that slows down for a while slows every engine, and ``peak_mb`` is one engine's alone.
"""

import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.packed import read
from gsb_vit.peers.against import measure_against
from gsb_vit.peers.engines import PEERS, Engine, choose
from gsb_vit.peers.prepare import smooth_pictures
from gsb_vit.peers.timing import ROUNDS, Measurement, measure
from gsb_vit.peers.worker import Setting, WorkerError

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
    rounds: int = ROUNDS,
    tries: int = TRIES,
) -> list[Measurement]:
    """Time a packed model and its full-precision twin in turn; the packed model's row (engine ``gsb-vit``) comes first.

    ``median_ms`` is the time of one call on ``batch`` pictures. Where an engine's calls scatter too much to be a
    figure, everything is measured again, up to ``tries`` times; a row that is still none has a ``problem``, no median.

    Args:
        against: peers as in ``"torch,onnxruntime,openvino:int8+bf16"``; by default :func:`default_peers`.

    Raises:
        InputError: a model that cannot be read, tries below 1, a peer that is unknown, missing or not convertible.
    """
    if tries < 1:
        raise InputError(f"tries {tries} must be at least 1")
    path, setting = Path(model), Setting(threads, batch)
    image_size = read(path).architecture.image_size
    chosen = [f"{engine}:{precision}" for engine, precision in choose(default_peers() if against is None else against)]
    if not chosen:
        return _measure_alone(path, setting, image_size, rounds, tries)
    try:
        return measure_against(path, chosen, [setting], rounds=rounds, tries=tries)
    except WorkerError as error:
        raise InputError(f"{error}; leave the peer out, or install other versions of its libraries") from error


def _measure_alone(
    path: Path, setting: Setting, image_size: tuple[int, int], rounds: int, tries: int
) -> list[Measurement]:
    with tempfile.TemporaryDirectory(prefix="gsb-vit-bench-") as folder:
        pictures = Path(folder) / "pictures.npy"
        np.save(pictures, smooth_pictures(setting.batch, image_size))
        return measure([Engine("gsb-vit", "1-bit", path)], setting, pictures, rounds=rounds, tries=tries)
