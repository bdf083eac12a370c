"""The packed model file: reader and writer (``docs/packed-format.md``; what it must hold: ``schema.py``)."""

import json
import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import Decision
from gsb_vit.errors import InputError
from gsb_vit.files import open_regular, refuse_other, write_atomically
from gsb_vit.limits import memory_limit

from .checksum import xxh64
from .keys import check_names, check_object
from .safetensors_file import SafetensorsFile, parse_json, parse_safetensors, read_safetensors
from .schema import (
    CHECKSUM_KEYS,
    DECISION_KEY,
    FORMAT,
    MAX_HEADER_BYTES,
    MAX_MEMORY,
    METADATA_KEYS,
    OPTIONAL,
    PREPROCESSING,
    VERSION,
    Architecture,
    check_specs,
    check_values,
    expected_tensors,
    model_keys,
    read_decision,
)
from .shipped import locate_model, what_to_give

PathLike = Union[str, "os.PathLike[str]"]
_DIGITS = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class PackedModel:
    """A packed model in memory: what the file's metadata says, and its arrays by name (read-only by convention)."""

    architecture: Architecture
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    provenance: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)
    decision: Decision = field(default_factory=Decision)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.tensors[name]

    def block(self, index: int) -> dict[str, NDArray[Any]]:
        """Return the arrays of block ``index`` without their ``blocks.i.`` prefix."""
        prefix = f"blocks.{index}."
        return {name[len(prefix) :]: array for name, array in self.tensors.items() if name.startswith(prefix)}


def read(path: PathLike, *, max_memory: int | None = None) -> PackedModel:
    """Read and check a packed file, or by its name one that comes with the package.

    The file is read whole and may be replaced afterwards. It has at most ``max_memory`` bytes, by default those of the
    environment variable ``GSB_VIT_MAX_MEMORY`` or else 1 GiB.

    Raises:
        InputError: for a missing, truncated or foreign file, an unknown version, and a tensor that is missing,
            unknown, of the wrong type or shape, or out of range, naming it; and for a checksum that does not fit.
    """
    path, most = locate_model(_checked_path(path)), memory_limit(max_memory, MAX_MEMORY)
    try:
        with _naming(path):
            return _model(read_safetensors(path, most))
    except OSError as error:
        reason = "is a folder" if path.is_dir() else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); give {what_to_give(path)}") from error


def is_packed(path: Path) -> bool:
    """Whether a file says in its header that it is a packed model; it may be damaged behind that."""
    try:
        with open_regular(path, "a packed model file") as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER_BYTES))
        values = json.loads(header)
        return bool(values["__metadata__"]["format"] == FORMAT)
    except (InputError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def refuse_other_model(path: Path) -> None:
    """Raise InputError where a packed file would replace a file that is none."""
    refuse_other(path, "a packed model", is_packed)


def parse(data: bytes) -> PackedModel:
    """Read a packed file's bytes. Raises InputError as :func:`read`."""
    return _model(_parsed(data))


def _model(file: SafetensorsFile) -> PackedModel:
    architecture, class_names, preprocessing, provenance, decision = _read_metadata(file)
    specs = expected_tensors(architecture)
    check_specs(specs, file.specs)
    tensors = {name: file.tensor(name) for name in specs}
    model = PackedModel(architecture, class_names, preprocessing, provenance, tensors, decision)
    _check_header(model)
    check_values(architecture, tensors)
    return model


def write(path: PathLike, model: PackedModel) -> None:
    """Check ``model`` and write it whole or not at all: a temporary file beside ``path`` replaces it when complete.

    Raises:
        InputError: for what :func:`read` would refuse, and where the folder cannot be written.
    """
    path = _checked_path(path)
    with _naming(path):
        check(model)
    header = {
        "architecture": model.architecture.to_json(),
        "class_names": list(model.class_names),
        "preprocessing": model.preprocessing.to_json(),
        "provenance": dict(model.provenance),
    }
    if model.decision != Decision():
        header[DECISION_KEY] = model.decision.to_json()
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: provenance is not plain JSON ({error}); give text and finite numbers") from error
    metadata = {"format": FORMAT, "version": VERSION, "model": text}
    with _naming(path):
        parse_json(text, "the metadata")
    tensors = {name: np.ascontiguousarray(array) for name, array in model.tensors.items()}
    metadata |= checksums(_parsed(save(tensors, metadata)))
    data = save(tensors, metadata)
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise InputError(f"{path}: class names and provenance take more than {MAX_HEADER_BYTES} bytes; shorten them")
    try:
        write_atomically(path, data)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be written ({reason}); give a file in a folder that exists") from error


def checksums(file: SafetensorsFile) -> dict[str, str]:
    """Return what the metadata of version 2 says of a file's content, 16 hexadecimal digits each.

    ``payload_xxh64`` is XXH64 of the tensors' bytes in the order of their places. ``header_xxh64`` is that of the text
    of ``model``, UTF-8, and behind it, for each tensor that has bytes, in the same order, a newline and its name.
    """
    text = "\n".join([file.metadata["model"], *file.names_by_place()])
    header = np.frombuffer(text.encode("utf-8"), np.uint8)
    return {"header_xxh64": f"{xxh64(header):016x}", "payload_xxh64": f"{xxh64(file.payload):016x}"}


def check(model: PackedModel) -> None:
    """Check names, types, shapes and values of a model in memory. Raises InputError naming the first that is wrong."""
    _check_header(model)
    found = {name: (array.dtype.name, array.shape) for name, array in model.tensors.items()}
    check_specs(expected_tensors(model.architecture), found)
    check_values(model.architecture, model.tensors)


def _check_header(model: PackedModel) -> None:
    read_decision(model.decision.to_json())
    names = model.class_names
    if len(names) != model.architecture.num_classes or not all(isinstance(name, str) for name in names):
        raise InputError(f"class_names has {len(names)} names for {model.architecture.num_classes} classes; name each")
    if model.preprocessing.size != model.architecture.image_size:
        raise InputError(
            f"preprocessing gives pictures of {model.preprocessing.size}, "
            f"the model reads {model.architecture.image_size}; make them equal"
        )


def _parsed(data: bytes) -> SafetensorsFile:
    behind = 8 + int.from_bytes(data[:8], "little")
    return parse_safetensors(data[8:behind], np.frombuffer(data, np.uint8)[behind:])


def _check_checksums(file: SafetensorsFile) -> None:
    for key, found in checksums(file).items():
        stored = file.metadata[key]
        if not _DIGITS.fullmatch(stored):
            raise InputError(f"the metadata: {key} must be 16 lower-case hexadecimal digits")
        if stored != found:
            raise InputError(
                f"the metadata: {key} is {stored}, but the file gives {found} (damaged, perhaps in copying)"
            )


def _read_metadata(
    file: SafetensorsFile,
) -> tuple[Architecture, tuple[str, ...], Preprocessing, dict[str, Any], Decision]:
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise InputError("not a packed model; make one with `gsb-vit export RUN -o MODEL.safetensors`")
    version = metadata.get("version")
    if version not in METADATA_KEYS:
        raise InputError(
            f"version {reprlib.repr(version)} is unknown to this gsb-vit (it reads {', '.join(METADATA_KEYS)}); "
            "update it"
        )
    try:
        check_names("the metadata", metadata, METADATA_KEYS[version])
        if CHECKSUM_KEYS[0] in metadata:
            _check_checksums(file)
        header = parse_json(metadata["model"], "the metadata")
        check_names("the metadata", header, model_keys(version, header))
        names, provenance = header["class_names"], header["provenance"]
        if not isinstance(names, list) or not isinstance(provenance, dict):
            raise InputError("class_names must be a list and provenance an object")
        architecture = Architecture.from_json(header["architecture"])
        if version == "1" and (newer := [name for name in OPTIONAL if name in header["architecture"]]):
            raise InputError(f"architecture: key {newer[0]!r} is unknown in version 1")
        if version == "1" and architecture.num_heads_out != architecture.prefix_tokens:
            raise InputError(f"architecture: num_heads_out {architecture.num_heads_out} must equal prefix_tokens")
        preprocessing = Preprocessing(**check_object("preprocessing", header["preprocessing"], PREPROCESSING))
        decision = read_decision(header[DECISION_KEY]) if DECISION_KEY in header else Decision()
    except InputError as error:
        raise InputError(f"{error}; export the model again") from error
    return architecture, tuple(names), preprocessing, provenance, decision


def _checked_path(path: PathLike) -> Path:
    text = os.fspath(path)
    if "\0" in text:
        shown = text.replace("\0", "\\0")
        raise InputError(f"{shown}: cannot be read (the path holds a NUL); give a packed model file")
    return Path(text)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before the message of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
