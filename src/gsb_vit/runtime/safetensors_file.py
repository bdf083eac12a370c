"""A strict reader of the container: the rules of ``docs/packed-format.md``, "Strictness", that hold for any model.

The safetensors library is more lenient than the C++ reader (duplicate keys, numbers such as ``2.0``), so the file is
taken apart here; ``native/src/file/safetensors_file.cpp`` and ``json.cpp`` keep the same rules.
"""

import json
import math
import os
import reprlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.errors import InputError
from gsb_vit.limits import RAISE_MEMORY

from .schema import MAX_HEADER_BYTES, MAX_NESTING, MAX_WHOLE, TENSOR_KEYS, TYPES

METADATA = "__metadata__"
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class SafetensorsFile:
    """What a file holds: its metadata, each tensor's NumPy type name, shape and begin, and the bytes they count in."""

    metadata: Mapping[str, str]
    specs: Mapping[str, tuple[str, tuple[int, ...]]]
    begins: Mapping[str, int] = field(repr=False)
    payload: NDArray[np.uint8] = field(repr=False)

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor in the machine's byte order: a part of the payload, or a copy where that is not aligned."""
        dtype, shape = self.specs[name]
        stored, begin = np.dtype(dtype).newbyteorder("<"), self.begins[name]
        part = self.payload[begin : begin + math.prod(shape) * stored.itemsize].view(stored)
        return np.require(part, dtype, "A").reshape(shape)

    def names_by_place(self) -> list[str]:
        """Return the names of tensors that have bytes, in the order of their places."""
        return sorted((name for name, (_, shape) in self.specs.items() if 0 not in shape), key=self.begins.__getitem__)


def read_safetensors(path: Path, most: int) -> SafetensorsFile:
    """Read a file whole and check its header; what the tensors are is not looked at.

    Raises:
        OSError: cannot be opened or read.
        InputError: no regular file, one of more than ``most`` bytes, or a container that breaks a rule, in one
            line without the path.
    """
    # Opened without waiting: a FIFO would block until someone writes.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError("cannot be read (is no regular file); give a packed model file")
        if status.st_size > most:
            raise InputError(
                f"cannot be read (has {status.st_size} bytes, more than {most}; {RAISE_MEMORY}); "
                "give a packed model file"
            )
        try:
            if status.st_size < _LENGTH_BYTES:
                raise InputError(f"has {status.st_size} bytes")
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > status.st_size - _LENGTH_BYTES:
                raise InputError("its header is longer than the file")
            if length > MAX_HEADER_BYTES:
                raise InputError(f"its header has more than {MAX_HEADER_BYTES} bytes")
            header = file.read(length)
            payload = np.empty(status.st_size - _LENGTH_BYTES - length, np.uint8)
            if file.readinto(payload.data) != len(payload):
                raise InputError("it became shorter")
            return parse_safetensors(header, payload)
        except InputError as error:
            raise InputError(f"not a packed model, or truncated ({error}); export it again") from error


def parse_safetensors(header: bytes, payload: NDArray[np.uint8]) -> SafetensorsFile:
    """Check a header and its tensors' places, without the length in front. Raises InputError for a broken rule."""
    return _read_entries(parse_json(_text(header), "the header"), payload)


def parse_json(text: str, what: str) -> Any:
    """Parse one JSON value as the rules want it, for which ``json`` is too lenient.

    Raises:
        InputError: for what is no JSON (RFC 8259), a key twice, ``NaN`` and numbers that overflow a float64, lone
            surrogates, and more than 64 levels.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError as error:
        raise InputError(f"{what} is not JSON (too deeply nested)") from error
    except InputError as error:
        raise InputError(f"{what} is not JSON ({error})") from error
    except ValueError as error:
        raise InputError(f"{what} is not JSON ({getattr(error, 'msg', error)})") from error
    level: list[Any] = [value]
    for _ in range(MAX_NESTING + 1):
        objects = [item for item in level if isinstance(item, dict)]
        texts = chain(level, *objects)
        if any(isinstance(item, str) and not _is_unicode(item) for item in texts):
            raise InputError(f"{what} is not JSON (half a surrogate pair)")
        lists = (item for item in level if isinstance(item, list))
        if not objects and not any(isinstance(item, list) for item in level):
            return value
        level = list(chain(*lists, *(item.values() for item in objects)))
    raise InputError(f"{what} is not JSON (too deeply nested)")


def _text(header: bytes) -> str:
    try:
        return header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("the header is not JSON (text that is not UTF-8)") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError("a key twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InputError("a number out of range")
    return number


def _integer(text: str) -> int:
    if len(text) > 16:
        _finite(text)
    return int(text)


def _no_constant(text: str) -> float:
    raise InputError(f"the word {text}")


# Digits of an int are few enough for int(): what overflows a float64 is refused first.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_finite, parse_int=_integer, parse_constant=_no_constant
)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_entries(header: Any, payload: NDArray[np.uint8]) -> SafetensorsFile:
    if not isinstance(header, dict):
        raise InputError("the header must be a JSON object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{METADATA} must hold text")
    specs, places = {}, {}
    for name, entry in header.items():
        specs[name], places[name] = _read_entry(f"tensor {reprlib.repr(name)}", entry, len(payload))
    end = 0
    for name, (begin, behind) in sorted(places.items(), key=lambda item: item[1]):
        if begin != end:
            raise InputError(f"tensor {reprlib.repr(name)} does not begin where the one before it ends")
        end = behind
    if end != len(payload):
        raise InputError("the file does not end with its last tensor")
    return SafetensorsFile(metadata, specs, {name: begin for name, (begin, _) in places.items()}, payload)


def _read_entry(what: str, entry: Any, limit: int) -> tuple[tuple[str, tuple[int, ...]], tuple[int, int]]:
    """Return a tensor's type and shape, and its begin and end in the payload."""
    if not isinstance(entry, dict) or entry.keys() != set(TENSOR_KEYS):
        raise InputError(f"{what} must have exactly the keys {', '.join(TENSOR_KEYS)}")
    dtype, shape, offsets = (entry[key] for key in TENSOR_KEYS)
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise InputError(f"{what} has the unknown type {reprlib.repr(dtype)}")
    if not _are_whole(shape, MAX_WHOLE) or not _are_whole(offsets, limit) or len(offsets) != 2:
        raise InputError(f"{what} must have whole numbers as shape, begin and end, inside the file")
    begin, end = offsets
    if end - begin != math.prod(shape) * np.dtype(TYPES[dtype]).itemsize:
        raise InputError(f"{what} does not fill its place in the file")
    return (TYPES[dtype], tuple(shape)), (begin, end)


def _are_whole(values: Any, most: int) -> bool:
    """Say whether ``values`` is a list of whole numbers 0 … ``most``."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= most for value in values)
