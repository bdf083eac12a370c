"""Hold an engine to an older instruction set, so that equals are compared on one machine.

Every library but one has a switch, read once when it is first loaded; so it must stand in the environment of a new
process. ONNX Runtime has none (its kernels ask the CPU itself): it runs from a copy of its library in which the
instruction that asks which vector registers the operating system saves (XGETBV) answers with the older set.
"""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from gsb_vit.errors import InputError

# Each library's own name for the set. https://oneapi-src.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html,
# OpenVINO's plugin kernels beside oneDNN's: https://github.com/openvinotoolkit/openvino/pull/38257
ISAS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OV_CPU_MAX_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "GSB_VIT_BACKEND": "avx2",
    },
    "sse4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OV_CPU_MAX_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "GSB_VIT_BACKEND": "portable",
    },
}
# XGETBV reads register 0 into eax (low half) and edx. Only eax's low byte says which vector state exists: bits 1 and 2
# SSE and AVX, bits 5 to 7 AVX-512. The two ways compilers set the call up tell the instruction from chance bytes.
_XGETBV = re.compile(rb"(?<=\x31\xc9)\x0f\x01\xd0|\x0f\x01\xd0(?=\x89\xc0\x48\xc1\xe2\x20)")
_MOVE_TO_AL = {"avx2": b"\xb0\x06\x90", "sse4": b"\xb0\x00\x90"}  # mov al, state; nop


def environment(isa: str | None) -> dict[str, str]:
    """Return the environment variables that hold every engine but ONNX Runtime to ``isa`` (None: no limit).

    Raises:
        InputError: for a set that is not one of ``ISAS``.
    """
    if isa is None:
        return {}
    if isa not in ISAS:
        raise InputError(f"instruction set {isa!r} is unknown: use {', '.join(ISAS)}, or none for all the CPU has")
    return dict(ISAS[isa])


def hold_onnxruntime(isa: str, folder: Path) -> Path:
    """Write a copy of the installed ONNX Runtime held to ``isa`` and return the folder to put on ``PYTHONPATH``.

    All files but the changed library are links to the installed ones. VEX-encoded AVX-VNNI stays in use under ``avx2``
    on CPUs that have it: the CPU announces it beside AVX2.

    Raises:
        InputError: where ONNX Runtime is not installed, or its library does not hold the instruction as expected.
    """
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise InputError("onnxruntime is not installed: pip install 'gsb-vit[bench]'")
    installed, copy = Path(spec.origin).parent, folder / f"onnxruntime_{isa}" / "onnxruntime"
    if copy.exists():
        return copy.parent
    (copy / "capi").mkdir(parents=True)
    for source in (*installed.iterdir(), *(installed / "capi").iterdir()):
        target = copy / source.relative_to(installed)
        if source.name.startswith("onnxruntime_pybind11_state"):
            target.write_bytes(_without_newer_registers(source, isa))
        elif not target.exists():
            os.symlink(source, target)
    return copy.parent


def _without_newer_registers(library: Path, isa: str) -> bytes:
    changed, count = _XGETBV.subn(_MOVE_TO_AL[isa], library.read_bytes())
    if not count:
        raise InputError(f"{library.name} of this onnxruntime cannot be held to {isa}: measure it without a limit")
    return changed
