"""The twin written once for every peer: float files, int8 files calibrated on pictures, and the logits to reproduce."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.errors import InputError

from .engines import PEERS, Engine
from .twin import Twin
from .worker import WorkerError

CALIBRATION_PICTURES, CHECK_PICTURES = 128, 16
# How far the logits may be from PyTorch's in float32, relative to their size: rounding errors of a sound conversion
# stay well below, one that quantizes what it should not (a LayerNorm, say) does not.
_INT8 = ("int8-dynamic", "int8-static", "int8+bf16", "int8+fp32")
ERROR_LIMITS = {"fp32": 1e-3, "bf16": 0.1, **dict.fromkeys(_INT8, 0.25)}
_FILES = {
    ("torch", "fp32"): "torch_fp32.safetensors",
    ("torch", "bf16"): "torch_bf16.safetensors",
    ("onnxruntime", "fp32"): "fp32.onnx",
    ("onnxruntime", "int8-dynamic"): "int8_dynamic.onnx",
    ("onnxruntime", "int8-static"): "int8_static.onnx",
    ("openvino", "fp32"): "fp32.xml",
    ("openvino", "bf16"): "fp32.xml",
    ("openvino", "int8+bf16"): "int8.xml",
    ("openvino", "int8+fp32"): "int8.xml",
}


@dataclass(frozen=True)
class Prepared:
    """The peers' files, the pictures to check them with (.npy) and the float twin's logits of these (.npy)."""

    engines: list[Engine]
    pictures: Path
    expected: Path


def prepare(
    twin: Twin,
    chosen: Sequence[tuple[str, str]],
    folder: Path,
    pictures: NDArray[np.uint8] | None = None,
    isa: str | None = None,
) -> Prepared:
    """Write the files of the chosen (engine, precision) pairs under ``folder``.

    Args:
        pictures: uint8 (n, H, W, 3) to calibrate int8 with and to check every peer on; by default smooth random ones.
        isa: the instruction set that the peers will be held to. Without VNNI, x86 adds pairs of 8-bit products in 16
            bits and saturates, so ONNX Runtime's weights are then kept to 7 bits, as its manual advises.

    Raises:
        InputError: pictures of another size or type, or a pair that does not exist.
        WorkerError: where a library fails to convert the twin.
    """
    for engine, precision in chosen:
        if (engine, precision) not in _FILES:
            raise InputError(f"there is no peer {engine} {precision}: use {', '.join(PEERS)} with their precisions")
    if pictures is None:
        pictures = smooth_pictures(CHECK_PICTURES, twin.image_size)
    shape = (*twin.image_size, 3)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != shape or not len(pictures):
        raise InputError(f"pictures are {pictures.dtype} {pictures.shape}: they must be uint8 and (n, *{shape}), n ≥ 1")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "calibration.npy", pictures[:CALIBRATION_PICTURES])
    np.save(folder / "pictures.npy", pictures[:CHECK_PICTURES])
    files = [_FILES[pair] for pair in chosen]
    (folder / "twin.json").write_text(
        json.dumps({"twin": twin.to_json(), "files": files, "seven_bits": isa is not None or not has_vnni()})
    )
    _run_in_own_process(folder)
    engines = [
        Engine(engine, precision, folder / file, ERROR_LIMITS[precision])
        for (engine, precision), file in zip(chosen, files, strict=True)
    ]
    return Prepared(engines, folder / "pictures.npy", folder / "expected.npy")


def has_vnni() -> bool:
    """Return whether this CPU multiplies and adds 8-bit numbers in one step, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    return info.exists() and bool({"avx512_vnni", "avx_vnni"} & set(info.read_text().split()))


def _run_in_own_process(folder: Path) -> None:
    paths = [str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "gsb_vit.bench.peers.conversion", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if done.returncode == 2:
        raise InputError(done.stdout.strip().splitlines()[-1])
    if done.returncode:
        raise WorkerError(
            f"the full-precision twin cannot be converted: {(done.stdout.strip() or '?').splitlines()[-1]}"
        )
