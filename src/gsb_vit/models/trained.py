"""Trained models and their files: safetensors that describe themselves, no pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.files import as_path, open_regular, write_atomically
from gsb_vit.models.arguments import check_arguments, require_architecture
from gsb_vit.models.binarize import set_pixel_scaling
from gsb_vit.models.build import build_model
from gsb_vit.quantization import Quantization

from . import zoo  # noqa: F401  (registers the models with timm)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a model file says about itself."""

    architecture: str
    model_args: dict[str, Any]
    quantization: Quantization
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    stage: str
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **{f: getattr(self, f) for f in ("architecture", "model_args", "stage", "provenance")},
            "quantization": self.quantization.to_dict(),
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelInfo:
        """Read what ``to_json`` wrote. Raises InputError for anything of another form, naming it."""
        kinds = {
            "architecture": str,
            "model_args": Mapping,
            "quantization": Mapping,
            "class_names": list,
            "preprocessing": Mapping,
            "stage": str,
            "provenance": Mapping,
        }
        if not isinstance(values, Mapping):
            raise InputError(f"the metadata is a {type(values).__name__}, not an object")
        for name, kind in kinds.items():
            if not isinstance(values.get(name), kind):
                raise InputError(f"{name} is missing or a {type(values.get(name)).__name__}")
        if not all(isinstance(name, str) for name in values["class_names"]):
            raise InputError("class_names holds something other than text")
        try:
            quantization = Quantization.create(dict(values["quantization"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"quantization: {error}") from error
        return cls(
            architecture=values["architecture"],
            model_args=dict(values["model_args"]),
            quantization=quantization,
            class_names=tuple(values["class_names"]),
            preprocessing=Preprocessing.from_json(values["preprocessing"]),
            stage=values["stage"],
            provenance=dict(values["provenance"]),
        )


METADATA_KEY = "gsb_vit"
CHECKSUM_KEY = "sha256"
BEST = "best.safetensors"
LAST = "last.safetensors"
STAGE_ORDER = ("stage2", "stage1", "twin", "teacher")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in evaluation mode, with what is needed to use it."""

    model: nn.Module
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    info: ModelInfo


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors, and JSON under the metadata key ``gsb_vit``, atomically; a checksum of both goes with them."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    # One key only: safetensors writes several in an order of chance, and equal models shall be equal files.
    text = json.dumps({**metadata, CHECKSUM_KEY: checksum(plain, json.dumps(metadata))})
    write_atomically(path, save(plain, metadata={METADATA_KEY: text}))


def checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of the metadata's text and of every tensor, by name: type, shape, bytes."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON that ``write_tensors`` wrote.

    Raises InputError for a missing, truncated or foreign file, and where the checksum is another (files of before have
    none).
    """
    open_regular(path, "a model file that gsb-vit train wrote").close()  # a pipe would wait for a writer
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
            if not isinstance(metadata, dict):
                raise ValueError("its metadata is no JSON object")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError as error:
        raise InputError(f"{path} was not written by gsb-vit train; give a .safetensors file of a run") from error
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} ({error}); it is truncated or not a safetensors file") from error
    told = metadata.pop(CHECKSUM_KEY, None)
    if told not in (None, checksum(tensors, json.dumps(metadata))):
        raise InputError(f"{path} is damaged: its checksum differs; bring it back from a copy, or train it again")
    return tensors, metadata


def save_model(path: Path, model: nn.Module, info: ModelInfo) -> None:
    """Write a model file that ``load_model`` reads."""
    write_tensors(path, model.state_dict(), info.to_json())


def find_model(path: Path) -> Path:
    """The model file a path names: the file itself, or in a run or stage folder the chosen one of the last stage.

    A stage that selects the best epoch has best.safetensors, one that selects the last has last.safetensors only.
    """
    if not path.is_dir():
        return path
    for folder in (path, *(path / stage for stage in STAGE_ORDER)):
        for name in (BEST, LAST):
            if (folder / name).is_file():
                return folder / name
    raise InputError(f"{path} holds no trained model; give a run folder that gsb-vit train wrote, or a model file")


def load_model(path_or_run: str | Path) -> TrainedModel:
    """Load a trained model, in evaluation mode, on the CPU.

    ``path_or_run`` is a model file, a run folder (its last stage) or a stage folder.
    Raises InputError for a missing, truncated or foreign file, and for weights that do not fit its architecture.
    """
    path = find_model(as_path(path_or_run, "a run folder or a trained model file"))
    tensors, metadata = read_tensors(path)
    try:
        info = ModelInfo.from_json(metadata)
        require_architecture(info.architecture)
        check_arguments(info.architecture, info.model_args, len(info.class_names))
    except InputError as error:
        raise InputError(f"{path} does not describe a model ({error}); give best.safetensors of a run") from error
    _require_fit(path, tensors, info)
    model = build_model(info.architecture, info.model_args, len(info.class_names), info.quantization)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"the weights in {path} do not fit {info.architecture}: {first}") from error
    set_pixel_scaling(model, info.preprocessing)
    return TrainedModel(model.eval(), info.class_names, info.preprocessing, info)


def _require_fit(path: Path, tensors: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Raise InputError where the weights do not fit the model, built without memory: a small file asks for little."""
    with torch.device("meta"):
        skeleton = build_model(info.architecture, info.model_args, len(info.class_names), info.quantization)
    wanted = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise InputError(
                f"the weights in {path} do not fit {info.architecture}: {name} is {found.get(name, 'missing')}, "
                f"the model has {wanted.get(name, 'none')}"
            )
