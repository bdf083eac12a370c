"""``gsb-vit bench``: how fast a packed model runs, beside its full-precision twin in other engines.

Every engine lives in a process of its own (its threads, its memory) and they take turns (:mod:`gsb_vit.peers`), so a
machine that slows down for a while slows every engine, and ``peak_mb`` is one engine's alone.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
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
    isa: str | None = None,
    rounds: int = ROUNDS,
    tries: int = TRIES,
) -> list[Measurement]:
    """Time a packed model and its full-precision twin in turn; the packed model's row (engine ``gsb-vit``) comes first.

    ``median_ms`` is the time of one call on ``batch`` pictures. Where an engine's calls scatter too much to be a
    figure, everything is measured again, up to ``tries`` times; a row that is still none has a ``problem``, no median.

    Args:
        against: peers as in ``"torch,onnxruntime,openvino:int8+bf16"``; by default :func:`default_peers`.
        isa: ``"avx2"`` or ``"sse4"`` holds every engine to that instruction set; by default all that the CPU has.

    Raises:
        InputError: a model that cannot be read, tries below 1, a peer that is unknown, missing or not convertible.
    """
    if tries < 1:
        raise InputError(f"tries {tries} must be at least 1")
    path, setting = Path(model), Setting(threads, batch, isa)
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


@dataclass(frozen=True)
class Stage:
    """One stage of the native forward pass: microseconds a picture, share of the whole, products of bits and bytes.

    ``bit_macs_per_ns`` and ``byte_macs_per_ns`` are billions of multiply-accumulates a second.
    """

    name: str
    us: float
    share: float
    bit_macs_per_ns: float
    byte_macs_per_ns: float


def profile(model: str | os.PathLike[str], *, threads: int = 1, batch: int = 1, seconds: float = 2.0) -> list[Stage]:
    """Time the stages of the native engine over calls on ``batch`` smooth random pictures for ``seconds``.

    Raises:
        InputError: a model that cannot be read, batch below 1, or no native extension.
    """
    from gsb_vit.runtime import load

    if batch < 1:
        raise InputError(f"batch {batch} must be at least 1")
    classifier = load(model, threads=threads)
    pictures = smooth_pictures(batch, classifier.architecture.image_size)
    classifier.logits(pictures)
    classifier.set_profiling(True)
    calls, end = 0, time.perf_counter() + seconds
    while calls == 0 or time.perf_counter() < end:
        classifier.logits(pictures)
        calls += 1
    stages = classifier.profile()
    total = sum(stage.seconds for stage in stages)
    return [
        Stage(
            stage.name,
            stage.seconds / (calls * batch) * 1e6,
            stage.seconds / total,
            stage.bit_macs / stage.seconds / 1e9 if stage.seconds else 0.0,
            stage.byte_macs / stage.seconds / 1e9 if stage.seconds else 0.0,
        )
        for stage in stages
    ]


def pack_untrained(architecture: str, path: Path) -> None:
    """Write a packed model of a registered architecture with random weights, scales set on smooth random pictures.

    Its speed tells what to expect of a trained one up to the densities of the upper groups; its answers mean nothing.

    Raises:
        InputError: PyTorch is missing, or no architecture of this package has the name.
    """
    missing = [package for package in PEERS["torch"][1] if find_spec(package) is None]
    if missing:
        raise InputError(f"--arch builds the model with {', '.join(missing)}: pip install 'gsb-vit[train]'")
    import timm
    import torch

    import gsb_vit.models  # noqa: F401 - registers the architectures
    from gsb_vit.convert import initialize_scales
    from gsb_vit.export import architecture_of, export_model
    from gsb_vit.parity import normalize
    from gsb_vit.preprocess import Preprocessing

    names = timm.list_models("gsb_vit_*")
    if architecture not in names:
        raise InputError(f"unknown architecture {architecture!r}; --arch takes {', '.join(names)}")
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=1000).eval()
    preprocessing = Preprocessing(size=architecture_of(model).image_size)
    initialize_scales(model, normalize(smooth_pictures(8, preprocessing.size), preprocessing))
    export_model(
        model,
        path,
        class_names=[f"class {index}" for index in range(1000)],
        preprocessing=preprocessing,
        provenance={"untrained": True},
    )
