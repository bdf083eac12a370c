"""Turn the twin into every peer's file.

Conversion takes gigabytes and many threads, so it runs in a process of its own and leaves nothing but files.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsb_vit.errors import InputError

from .twin import Twin

if TYPE_CHECKING:
    from torch import Tensor, nn


def _convert(folder: Path) -> None:
    """Write every file that ``twin.json`` names, and ``expected.npy``."""
    import torch

    from .twin import build

    order = json.loads((folder / "twin.json").read_text())
    twin, files = Twin.from_json(order["twin"]), set(order["files"])
    model = build(twin)
    with torch.inference_mode():
        pictures = np.load(folder / "pictures.npy")
        expected = [model(torch.from_numpy(pictures[i : i + 1])).numpy() for i in range(len(pictures))]
    np.save(folder / "expected.npy", np.concatenate(expected))
    for precision in ("fp32", "bf16"):
        if f"torch_{precision}.safetensors" in files:
            _write_torch(twin, precision, folder)
    if any(file.endswith(".onnx") for file in files):
        _write_onnx(model, files, folder, order["seven_bits"])
    if any(file.endswith(".xml") for file in files):
        _write_openvino(model, files, folder)


def _write_torch(twin: Twin, precision: str, folder: Path) -> None:
    from safetensors.torch import save_model

    from .twin import build

    bare = {**twin.to_json(), "weights": None}  # the file holds them; normalisation is folded in already
    model = build(twin, precision)
    save_model(model, str(folder / f"torch_{precision}.safetensors"), metadata={"twin": json.dumps(bare)})


def export_onnx(model: "nn.Module", example: "Tensor", path: Path) -> None:
    """Write a model of ``pixels`` (B, …) → ``logits`` (B, K) as ONNX, for batches of any size."""
    import torch

    torch.onnx.export(
        model,
        (example,),
        str(path),
        dynamo=True,
        external_data=False,
        opset_version=18,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        verbose=False,
    )


def _write_onnx(model: "nn.Module", files: set[str], folder: Path, seven_bits: bool) -> None:
    import torch
    from onnxruntime import quantization

    example = torch.from_numpy(np.load(folder / "pictures.npy")[[0, 0]])
    export_onnx(model, example, folder / "fp32.onnx")
    if "int8_dynamic.onnx" in files:
        quantization.quantize_dynamic(
            folder / "fp32.onnx",
            folder / "int8_dynamic.onnx",
            per_channel=True,
            reduce_range=seven_bits,
            weight_type=quantization.QuantType.QInt8,
        )
    if "int8_static.onnx" in files:
        _quantize_onnx(folder, seven_bits)


def _quantize_onnx(folder: Path, seven_bits: bool) -> None:
    """Static QDQ: products and the convolution only; LayerNorm and softmax in int8 would ruin the predictions."""
    from onnxruntime import quantization

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(np.load(folder / "calibration.npy"))

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.rest, None)
            return None if picture is None else {"pixels": picture[None]}

    quantization.quantize_static(
        folder / "fp32.onnx",
        folder / "int8_static.onnx",
        Pictures(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=seven_bits,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        extra_options={"ActivationSymmetric": True, "MatMulConstBOnly": True},
    )


def _write_openvino(model: "nn.Module", files: set[str], folder: Path) -> None:
    import openvino
    import torch

    pictures = np.load(folder / "calibration.npy")
    converted = openvino.convert_model(
        model, example_input=torch.from_numpy(pictures[:1]), input=[-1, *pictures.shape[1:]]
    )
    openvino.save_model(converted, folder / "fp32.xml", compress_to_fp16=False)
    if "int8.xml" not in files:
        return
    import nncf

    quantized = nncf.quantize(
        converted,
        nncf.Dataset([picture[None] for picture in pictures]),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(pictures),
    )
    openvino.save_model(quantized, folder / "int8.xml")


if __name__ == "__main__":
    try:
        _convert(Path(sys.argv[1]))
    except InputError as error:
        print(error)
        sys.exit(2)
