"""Every engine that can take part in a benchmark, and how its file becomes a function of pixels.

``load`` runs inside a worker process: an engine's libraries are imported there and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gsb_vit.errors import InputError

# uint8 pixels (B, H, W, 3) → float32 logits (B, K)
Forward = Callable[[NDArray[Any]], NDArray[Any]]
# Peer → its precisions, the packages it needs. The twin itself is always built by torch and timm.
PEERS = {
    "torch": (("fp32", "bf16"), ("torch", "timm")),
    "onnxruntime": (
        ("fp32", "int8-dynamic", "int8-static"),
        ("torch", "timm", "onnx", "onnxscript", "onnxruntime"),
    ),
    "openvino": (("fp32", "bf16", "int8+bf16"), ("torch", "timm", "openvino", "nncf")),
}
# Precisions that only a request by name gets: what an engine computes where the CPU lacks another's instructions.
BY_NAME = {"openvino": ("int8+fp32",)}


@dataclass(frozen=True)
class Engine:
    """One engine at one precision and the file it runs, with how far its logits may be from the float twin's.

    ``error_limit`` bounds ``‖y − ŷ‖ / ‖ŷ − mean_k ŷ‖`` over the check pictures; None: nothing to compare with.
    """

    name: str
    precision: str
    path: Path
    error_limit: float | None = None

    @property
    def file_mb(self) -> float:
        """Size of the model's files in 10⁶ bytes (OpenVINO keeps the weights in a second file)."""
        files = {self.path, self.path.with_suffix(".bin")} if self.path.suffix == ".xml" else {self.path}
        return sum(file.stat().st_size for file in files) / 1e6


def precisions_of(engine: str) -> tuple[str, ...]:
    """Return every precision that a peer can be asked for."""
    return (*PEERS[engine][0], *BY_NAME.get(engine, ()))


def choose(against: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return (engine, precision) for ``"torch,openvino"`` or ``"openvino:int8+bf16"``; an engine alone means all.

    Both names of OpenVINO's int8 are taken, that of a CPU with bfloat16 instructions and that of one without.

    Raises:
        InputError: for an unknown engine or precision, or an engine that is not installed.
    """
    names = against.split(",") if isinstance(against, str) else against
    chosen: list[tuple[str, str]] = []
    for name in names:
        engine, _, precision = name.strip().partition(":")
        if engine not in PEERS:
            raise InputError(f"engine {engine!r} is unknown: use {', '.join(PEERS)}")
        precisions, packages = PEERS[engine]
        if precision and precision not in precisions_of(engine):
            raise InputError(f"{engine} has no precision {precision!r}: use {', '.join(precisions_of(engine))}")
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            raise InputError(f"{engine} cannot run without {', '.join(missing)}: pip install 'gsb-vit[bench]'")
        chosen += [(engine, one) for one in ([precision] if precision else precisions)]
    return list(dict.fromkeys(chosen))


def load(engine: str, precision: str, path: str, threads: int, batch: int) -> tuple[Forward, str]:
    """Load a file and return its forward function and the precision that is really computed on this CPU."""
    if engine == "gsb-vit":
        import gsb_vit

        return gsb_vit.load(path, threads=threads).logits, precision
    return {"torch": _torch, "onnxruntime": _onnxruntime, "openvino": _openvino}[engine](
        precision, path, threads, batch
    )


def _torch(precision: str, path: str, threads: int, batch: int) -> tuple[Forward, str]:
    import json

    import torch
    from safetensors import safe_open
    from safetensors.torch import load_model

    from .twin import Twin, build

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    with safe_open(path, "pt") as file:
        twin = Twin.from_json(json.loads(file.metadata()["twin"]))
    model = build(twin, precision)
    load_model(model, path)

    @torch.inference_mode()
    def forward(pixels: NDArray[Any]) -> NDArray[Any]:
        return model(torch.from_numpy(pixels)).numpy()

    return forward, precision


def _onnxruntime(precision: str, path: str, threads: int, batch: int) -> tuple[Forward, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_free_dimension_override_by_name("batch", batch)  # fixed shapes fold the graph further
    # Threads may spin inside a call, as by default, but must let go of the core when it is another engine's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0], precision


def _openvino(precision: str, path: str, threads: int, batch: int) -> tuple[Forward, str]:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([batch, *list(model.inputs[0].partial_shape)[1:]])
    hint = "f32" if precision.endswith("fp32") else "bf16"
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": hint,
        "ENABLE_CPU_PINNING": "NO",  # the worker is pinned already; OpenVINO would choose other cores
    }
    compiled = core.compile_model(model, "CPU", settings)
    if hint == "bf16" and compiled.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        if precision == "bf16":
            raise InputError("without bfloat16 instructions OpenVINO computes in float32, as in its row fp32")
        precision = "int8+fp32"
    request = compiled.create_infer_request()
    return lambda pixels: request.infer([pixels], share_inputs=True)[0], precision
