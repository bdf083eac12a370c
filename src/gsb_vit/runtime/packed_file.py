"""The packed model file: reader and writer (``docs/packed-format.md``; what it must hold: ``schema.py``)."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.files import write_atomically

from .keys import check_names, check_object
from .safetensors_file import parse_json, read_safetensors
from .schema import (
    FORMAT,
    MAX_HEADER_BYTES,
    METADATA_KEYS,
    MODEL_KEYS,
    PREPROCESSING,
    VERSION,
    Architecture,
    check_specs,
    check_values,
    expected_tensors,
)

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class PackedModel:
    """A packed model in memory: what the file's metadata says, and its arrays by name (read-only by convention)."""

    architecture: Architecture
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    provenance: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.tensors[name]

    def block(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of block ``index`` without their ``blocks.i.`` prefix."""
        prefix = f"blocks.{index}."
        return {name[len(prefix) :]: array for name, array in self.tensors.items() if name.startswith(prefix)}


def read(path: PathLike) -> PackedModel:
    """Read and check a packed file.

    The file is read whole and may be replaced afterwards.

    Raises:
        InputError: for a missing, truncated or foreign file, an unknown version, and a tensor that is missing,
            unknown, of the wrong type or shape, or out of range, naming it.
    """
    path = Path(path)
    try:
        with _naming(path):
            file = read_safetensors(path)
            architecture, class_names, preprocessing, provenance = _read_metadata(file.metadata)
            specs = expected_tensors(architecture)
            check_specs(specs, file.specs)
            tensors = {name: file.tensor(name) for name in specs}
            model = PackedModel(architecture, class_names, preprocessing, provenance, tensors)
            _check_header(model)
            check_values(architecture, tensors)
            return model
    except OSError as error:
        reason = "is a folder" if path.is_dir() else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); give a packed model file") from error


def write(path: PathLike, model: PackedModel) -> None:
    """Check ``model`` and write it whole or not at all: a temporary file beside ``path`` replaces it when complete.

    Raises:
        InputError: for what :func:`read` would refuse, and where the folder cannot be written.
    """
    path = Path(path)
    with _naming(path):
        check(model)
    header = {
        "architecture": model.architecture.to_json(),
        "class_names": list(model.class_names),
        "preprocessing": model.preprocessing.to_json(),
        "provenance": dict(model.provenance),
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: provenance is not plain JSON ({error}); give text and finite numbers") from error
    metadata = {"format": FORMAT, "version": VERSION, "model": text}
    with _naming(path):
        parse_json(text, "the metadata")
    data = save({name: np.ascontiguousarray(array) for name, array in model.tensors.items()}, metadata)
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise InputError(f"{path}: class names and provenance take more than {MAX_HEADER_BYTES} bytes; shorten them")
    try:
        write_atomically(path, data)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be written ({reason}); give a file in a folder that exists") from error


def check(model: PackedModel) -> None:
    """Check names, types, shapes and values of a model in memory. Raises InputError naming the first that is wrong."""
    _check_header(model)
    found = {name: (array.dtype.name, array.shape) for name, array in model.tensors.items()}
    check_specs(expected_tensors(model.architecture), found)
    check_values(model.architecture, model.tensors)


def _check_header(model: PackedModel) -> None:
    names = model.class_names
    if len(names) != model.architecture.num_classes or not all(isinstance(name, str) for name in names):
        raise InputError(f"class_names has {len(names)} names for {model.architecture.num_classes} classes; name each")
    if model.preprocessing.size != model.architecture.image_size:
        raise InputError(
            f"preprocessing gives pictures of {model.preprocessing.size}, "
            f"the model reads {model.architecture.image_size}; make them equal"
        )


def _read_metadata(metadata: Mapping[str, str]) -> tuple[Architecture, tuple[str, ...], Preprocessing, dict[str, Any]]:
    if metadata.get("format") != FORMAT:
        raise InputError("not a packed model; make one with `gsb-vit export RUN -o MODEL.safetensors`")
    if metadata.get("version") != VERSION:
        raise InputError(
            f"version {metadata.get('version')!r} is unknown to this gsb-vit (it reads {VERSION}); update it"
        )
    try:
        check_names("the metadata", metadata, METADATA_KEYS)
        header = parse_json(metadata["model"], "the metadata")
        check_names("the metadata", header, MODEL_KEYS)
        names, provenance = header["class_names"], header["provenance"]
        if not isinstance(names, list) or not isinstance(provenance, dict):
            raise InputError("class_names must be a list and provenance an object")
        architecture = Architecture.from_json(header["architecture"])
        preprocessing = Preprocessing(**check_object("preprocessing", header["preprocessing"], PREPROCESSING))
    except InputError as error:
        raise InputError(f"{error}; export the model again") from error
    return architecture, tuple(names), preprocessing, provenance


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
