"""What a stage starts from and resumes with: weights of another model, the state of the optimiser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gsb_vit.errors import InputError
from gsb_vit.models.trained import read_tensors
from gsb_vit.nn.input_quantizers import InitializedOnce

STATE = "state.safetensors"
PREVIOUS = "previous.safetensors"  # the state before it, for where the newest is damaged


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the state in a stage's folder is whole and that of its last epoch, or of where patience ended."""
    try:
        state = read_tensors(folder / STATE)[1]
        return bool(state.get("stopped", False) or state.get("epoch", 0) >= epochs)
    except InputError:
        return False


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


def keep_previous(folder: Path) -> None:
    """Give a stage's state a second name, which it keeps when the next one takes its own."""
    state, spare = folder / STATE, folder / f".{PREVIOUS}.tmp"
    if not state.is_file():
        return
    spare.unlink(missing_ok=True)
    try:
        os.link(state, spare)
    except OSError:  # a file system without links, or a full one
        shutil.copyfile(state, spare)
    os.replace(spare, folder / PREVIOUS)


def read_state(folder: Path, say: Callable[[str], None]) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """A stage's newest state that is whole: its file, tensors and position; None where there is none.

    Where the newest is damaged ``say`` is told and the one before is taken; where that is damaged, too, or there is
    none, the stage begins anew. On a CPU all three end with the same weights. Raises InputError for a file that the
    system does not read, since it may be whole.
    """
    problems: list[InputError] = []
    for path in (folder / STATE, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            tensors, state = read_tensors(path)
        except InputError as error:
            if isinstance(error.__cause__, OSError):
                raise
            problems.append(error)
            continue
        if problems:
            say(f"{problems[0]}: going on from the state before it, {path.name}, after epoch {state.get('epoch')}")
        return path, tensors, state
    if problems:
        say(f"{problems[0]}: there is no whole state before it, so {folder.name} begins anew")
    return None


def read_stage_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a stage's model file. Raises InputError where it is damaged, with the way to have the stage trained anew."""
    try:
        return read_tensors(path)
    except InputError as error:
        raise InputError(
            f"{error}; or remove the folder {path.parent} and resume: that stage is trained anew"
        ) from error


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
