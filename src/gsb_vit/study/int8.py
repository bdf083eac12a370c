"""Full-precision models of a study in eight bits: exported to ONNX, quantized and run by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gsb_vit.bench.peers.conversion import export_onnx
from gsb_vit.bench.peers.prepare import CALIBRATION_PICTURES, has_vnni
from gsb_vit.bench.peers.timing import similarity
from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.files import write_atomically

FORMS = ("all", "products")  # which operations are in eight bits: all that can be, or convolutions and products
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CALIBRATIONS = ("MinMax", "Percentile")
_BATCH = 64


@dataclass(frozen=True)
class Int8:
    """A model in eight bits: its form, bytes of its file, share of test pictures right, how its ranges were chosen."""

    form: str
    bytes: int
    top1: float
    calibration: str


def int8_file(run: Path, form: str) -> Path:
    """Where a run keeps its model in eight bits, of one of the ``FORMS``."""
    return run / f"int8-{form}.onnx"


def require_onnxruntime() -> None:
    """Raise InputError, naming the extra, where what makes int8 models is not installed."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"int8 models need {', '.join(missing)}: pip install 'gsb-vit[train,bench]'")


def make_int8(
    model: nn.Module, preprocessing: Preprocessing, train: LabelledPictures, test: LabelledPictures, run: Path
) -> list[Int8]:
    """Write a full-precision model as int8 ONNX, uint8 pixels (B, H, W, 3) → logits (B, K), and judge it on ``test``.

    Static quantization in the QDQ form: 8-bit weights with a scale per channel, 8-bit activations with ranges from 128
    training pictures. Ranges are taken by minimum and maximum and by percentiles, and those are kept whose logits on
    these training pictures are nearer to the float model's. A convolutional network is made in both ``FORMS``: which
    one is faster depends on its operations. A transformer has its products in eight bits alone: softmax and LayerNorm
    in eight bits would ruin it. Text that runs nothing is left out of the files.

    Raises:
        InputError: ONNX Runtime is not installed.
    """
    require_onnxruntime()
    order = np.random.default_rng(0).permutation(len(train))[:CALIBRATION_PICTURES]
    pictures = np.stack([preprocessing(train.sources[index]) for index in order])
    whole = FromPixels(model, preprocessing).eval()
    with torch.inference_mode():
        expected = whole(torch.from_numpy(pictures)).numpy()
    result = []
    with tempfile.TemporaryDirectory(prefix="gsb-vit-int8-") as folder, contextlib.redirect_stdout(io.StringIO()):
        floats = Path(folder) / "float.onnx"
        _export(whole, pictures[:2], floats)
        for form in FORMS[1:] if isinstance(model, VisionTransformer) else FORMS:
            tried = []
            for method in CALIBRATIONS:
                path = Path(folder) / f"{form}-{method}.onnx"
                _quantize(floats, path, pictures, method, form)
                tried.append((similarity(run_onnx(path, pictures), expected)[0], method, path))
            _, method, best = min(tried)
            out = int8_file(run, form)
            write_atomically(out, best.read_bytes())
            result.append(Int8(form, out.stat().st_size, _top1(out, preprocessing, test), method))
    return result


def _top1(path: Path, preprocessing: Preprocessing, test: LabelledPictures) -> float:
    """Share of pictures that an ONNX model is right about."""
    ask, hits = _session(path), 0
    for start in range(0, len(test), _BATCH):
        shown = np.stack([preprocessing(source) for source in test.sources[start : start + _BATCH]])
        hits += int((ask(shown).argmax(1) == test.labels[start : start + _BATCH]).sum())
    return hits / len(test)


class FromPixels(nn.Module):
    """A model that is given pictures as files hold them: uint8 (B, H, W, 3) → float32 logits (B, K)."""

    gain: Tensor
    offset: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (preprocessing.mean, preprocessing.std))
        self.register_buffer("gain", 1 / (255 * std))
        self.register_buffer("offset", -mean / std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise, then ask the model."""
        logits: Tensor = self.model(pixels.permute(0, 3, 1, 2).to(torch.float32) * self.gain + self.offset)
        return logits


def _export(model: nn.Module, example: NDArray[np.uint8], out: Path) -> None:
    """Write ONNX with BatchNorm folded into convolutions and every shape that is known."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    raw = out.with_name("exported.onnx")
    export_onnx(model, torch.from_numpy(example), raw)
    quant_pre_process(str(raw), str(out), skip_symbolic_shape=True)


def _quantize(floats: Path, out: Path, pictures: NDArray[np.uint8], method: str, form: str) -> None:
    import onnx
    from onnxruntime import quantization

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Any] = iter(pictures)

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.rest, None)
            return None if picture is None else {"pixels": picture[None]}

    quantization.quantize_static(
        str(floats),
        str(out),
        Pictures(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=not has_vnni(),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=getattr(quantization.CalibrationMethod, method),
        op_types_to_quantize=["MatMul", "Gemm", "Conv"] if form == "products" else None,
        extra_options={"MatMulConstBOnly": True},
    )
    model = onnx.load(str(out))
    _strip(model)
    onnx.save(model, str(out))


def _strip(model: Any) -> None:
    """Leave out of an ONNX model what runs nothing: notes on nodes, shapes in between, where it came from."""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string, node.name = "", ""
        del node.metadata_props[:]


def run_onnx(path: Path, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits (n, K) of an ONNX model for pictures uint8 (n, H, W, 3), on one thread."""
    logits: NDArray[np.float32] = _session(path)(pictures)
    return logits


def _session(path: Path) -> Callable[[NDArray[np.uint8]], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"pixels": pictures})[0]
