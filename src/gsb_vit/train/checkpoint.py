"""Model files that describe themselves, and resume states: atomic safetensors with JSON in the metadata, no pickle."""

from __future__ import annotations

import json
import os
import tempfile
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
from gsb_vit.models.binarize import set_pixel_scaling
from gsb_vit.models.build import ModelInfo, build_model
from gsb_vit.nn.input_quantizers import InitializedOnce

METADATA_KEY = "gsb_vit"
BEST, LAST, STATE = "best.safetensors", "last.safetensors", "state.safetensors"
STAGE_ORDER = ("stage2", "stage1", "teacher")


@dataclass(frozen=True)
class TrainedModel:
    """A trained model in evaluation mode, with what is needed to use it."""

    model: nn.Module
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    info: ModelInfo


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that exists in full or not at all: a temporary file beside it, flushed to disk, then renamed."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors, and JSON under the metadata key ``gsb_vit``, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, metadata={METADATA_KEY: json.dumps(metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON that ``write_tensors`` wrote. Raises InputError for a missing, truncated or foreign file."""
    if not path.is_file():
        raise InputError(f"no file {path}; give a model file that gsb-vit train wrote")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except KeyError as error:
        raise InputError(f"{path} was not written by gsb-vit train; give a .safetensors file of a run") from error
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}); it is truncated or not a safetensors file") from error


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
    path = find_model(Path(path_or_run))
    tensors, metadata = read_tensors(path)
    try:
        info = ModelInfo.from_json(metadata)
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{path} does not describe a model ({error}); give best.safetensors of a run") from error
    model = build_model(info.architecture, info.model_args, len(info.class_names), info.quantization)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(f"the weights in {path} do not fit {info.architecture}: {first}") from error
    set_pixel_scaling(model, info.preprocessing)
    return TrainedModel(model.eval(), info.class_names, info.preprocessing, info)


def start_from(model: nn.Module, source: nn.Module) -> tuple[list[str], list[str]]:
    """Copy what has the same name and shape from ``source``; return (carried names, names that start fresh).

    A scale that is carried keeps its ``initialized`` flag, one that starts fresh stays to be initialised. The scales of
    a quantizer of another kind or of other bits start fresh: a step of eight bits is far too small for one.
    """
    own, other = model.state_dict(), source.state_dict()
    changed = _scales_of_other_quantizers(model, source)
    carried = [name for name in own if name in other and other[name].shape == own[name].shape and name not in changed]
    carried = [name for name in carried if not _flag_without_scale(name, carried)]
    model.load_state_dict({name: other[name] for name in carried}, strict=False)
    return carried, [name for name in own if name not in carried]


def _scales_of_other_quantizers(model: nn.Module, source: nn.Module) -> set[str]:
    others = dict(source.named_modules())
    changed = [
        name
        for name, module in model.named_modules()
        if isinstance(module, InitializedOnce)
        and (type(module), getattr(module, "bits", None))
        != (type(others.get(name)), getattr(others.get(name), "bits", None))
    ]
    return {f"{name}.{state}" for name in changed for state in ("scale", "weight_scale", "initialized")}


def _flag_without_scale(name: str, carried: list[str]) -> bool:
    stem = name.removesuffix("initialized")
    return stem != name and not {f"{stem}scale", f"{stem}weight_scale"} & set(carried)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors named ``optimizer.PARAMETER.KEY``."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave; settings such as the learning rate are the optimiser's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            index, _, key = rest.partition(".")
            state.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
