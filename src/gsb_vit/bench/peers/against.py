"""A packed model and the peers of its full-precision twin, in one run for each setting."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsb_vit.errors import InputError
from gsb_vit.runtime.packed_file import read

from .engines import Engine, choose
from .prepare import prepare
from .timing import ROUNDS, TURN_SECONDS, Measurement, measure
from .twin import Twin
from .worker import Setting


def measure_against(
    model: Path,
    against: str | Sequence[str],
    settings: Sequence[Setting],
    *,
    pictures: NDArray[np.uint8] | None = None,
    weights: Path | None = None,
    rounds: int = ROUNDS,
    turn_seconds: float = TURN_SECONDS,
    tries: int = 1,
) -> list[Measurement]:
    """Measure a packed model beside its twin in other engines; for each setting the packed model comes first.

    Args:
        against: as in :func:`~gsb_vit.bench.peers.engines.choose`, ``"torch,onnxruntime,openvino"`` for all.
        settings: all with the same instruction set, since int8 files are made for one.
        pictures: uint8 (n, H, W, 3) to calibrate int8 on and to run; by default smooth random ones.
        weights: a safetensors file of the twin's parameters (a teacher); by default random ones.

    Raises:
        InputError: a model that cannot be read, an unknown or missing engine, settings that do not fit together.
        WorkerError: where the twin cannot be converted. What goes wrong later is a measurement's ``problem``.
    """
    isas = {setting.isa for setting in settings}
    if len(isas) != 1:
        raise InputError(f"settings {list(settings)} must be at least one and share an instruction set")
    packed, chosen = read(model), choose(against)
    twin = Twin.of(packed.architecture, packed.preprocessing, None if weights is None else str(weights))
    with tempfile.TemporaryDirectory(prefix="gsb-vit-peers-") as folder:
        prepared = prepare(twin, chosen, Path(folder), pictures, isas.pop())
        engines = [Engine("gsb-vit", "1-bit", Path(model)), *prepared.engines]
        return [
            measurement
            for setting in settings
            for measurement in measure(
                engines,
                setting,
                prepared.pictures,
                expected=prepared.expected,
                rounds=rounds,
                turn_seconds=turn_seconds,
                tries=tries,
            )
        ]
