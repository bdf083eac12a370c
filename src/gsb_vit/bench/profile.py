"""``gsb-vit bench --profile``: where the native engine's time goes, against what the core could do at most."""

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.errors import InputError, shown
from gsb_vit.runtime.packed_file import read

from .densities import Densities, measure_densities
from .peers.isa import environment
from .peers.prepare import CHECK_PICTURES
from .peers.session import batches
from .peers.worker import MOST_PICTURES

# One-bit products that a vector instruction of the product kernels is worth at most: bits of a register × words that a
# round of the inner loop takes, over the instructions of that round (docs/performance.md, "The ceiling").
BITS_PER_INSTRUCTION = {
    "avx512": 2 * 512 / 5,  # 2 xor, carry, count, addition for two words
    "avx2": 3 * 256 / 20,  # 3 xor, 3 for the carry, 2 counts of 7 for three words
}


@dataclass(frozen=True)
class Stage:
    """One stage of the native forward pass; times are of one core, summed over threads, a picture.

    ``share`` is that of all stages. ``bit_macs_per_ns`` and ``byte_macs_per_ns`` are billions of multiply-accumulates a
    second; ``of_ceiling`` is the share of what the core could do at most of either, None where there are no products or
    no ceiling is known.
    """

    name: str
    us: float
    cycles: float
    share: float
    bit_macs_per_ns: float
    byte_macs_per_ns: float
    of_ceiling: float | None


@dataclass(frozen=True)
class Profile:
    """Stages in order, the core's clock in the same run, and ceilings in multiply-accumulates a cycle (None: unknown).

    ``densities`` are those of the pictures that were run.
    """

    backend: str
    threads: int
    batch: int
    ghz: float
    bit_ceiling: float | None
    byte_ceiling: float | None
    stages: tuple[Stage, ...]
    densities: Densities

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {
            **asdict(self),
            "stages": [asdict(stage) for stage in self.stages],
            "densities": self.densities.to_json(),
        }


def profile(
    model: str | os.PathLike[str],
    *,
    threads: int = 1,
    batch: int = 1,
    isa: str | None = None,
    pictures: NDArray[np.uint8] | None = None,
    seconds: float = 2.0,
) -> Profile:
    """Time the stages of the native engine over calls on ``batch`` pictures for ``seconds``.

    Args:
        isa: ``"avx2"`` or ``"sse4"`` holds the engine to that instruction set.
        pictures: uint8 (n, H, W, 3), taken in turn; by default smooth random ones.

    Raises:
        InputError: a model that cannot be read, batch out of range, pictures that do not fit, an instruction set that
            is unknown or that this machine lacks, or no native extension.
    """
    from gsb_vit.runtime.classifier import load

    if not 1 <= batch <= MOST_PICTURES:
        raise InputError(f"batch {shown(batch)} must be from 1 to {MOST_PICTURES:,}")
    backend = environment(isa).get("GSB_VIT_BACKEND")
    classifier = load(model, threads=threads, backend=backend)
    from gsb_vit import _native

    if pictures is None:
        pictures = smooth_pictures(4, classifier.architecture.image_size)
    pictures = pictures[:CHECK_PICTURES]
    densities = measure_densities(read(model), pictures)
    turns = batches(pictures, batch)
    classifier.logits(turns[0])
    clocks = [_native.core_hz()]
    classifier.set_profiling(True)
    calls, end = 0, time.perf_counter() + seconds
    while calls < len(turns) or time.perf_counter() < end:
        classifier.logits(turns[calls % len(turns)])
        calls += 1
        if len(clocks) < 100 * (1 - (end - time.perf_counter()) / seconds):  # a hundred times, evenly spread
            clocks.append(_native.core_hz())
    times = classifier.profile()
    clock, (_, vector_instructions, byte_ceiling) = statistics.median(clocks), _native.core_speed(classifier.backend)
    bits = BITS_PER_INSTRUCTION.get(classifier.backend)
    bit_ceiling = bits * vector_instructions if bits else None
    total = sum(stage.seconds for stage in times)
    stages = []
    for stage in times:
        cycles = stage.seconds * clock
        done, ceiling = (stage.bit_macs, bit_ceiling) if stage.bit_macs else (stage.byte_macs, byte_ceiling or None)
        stages.append(
            Stage(
                stage.name,
                stage.seconds / (calls * batch) * 1e6,
                cycles / (calls * batch),
                stage.seconds / total,
                stage.bit_macs / stage.seconds / 1e9 if stage.seconds else 0.0,
                stage.byte_macs / stage.seconds / 1e9 if stage.seconds else 0.0,
                done / cycles / ceiling if done and ceiling and cycles else None,
            )
        )
    return Profile(
        classifier.backend,
        classifier.threads,
        batch,
        clock / 1e9,
        bit_ceiling,
        byte_ceiling or None,
        tuple(stages),
        densities,
    )
