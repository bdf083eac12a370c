"""A list of pictures with their classes: CSV with columns path and label, or JSON Lines with these keys."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError, shown
from gsb_vit.files import is_utf8, open_regular

from .arranged import Labelled, arrange
from .class_names import class_name
from .datasets import RawData
from .folder import SPLIT_OF, Contents

SUFFIXES = (".csv", ".jsonl", ".ndjson")
MOST_BYTES = 1 << 28
_KEYS = ("path", "label", "split")
_HOW = "give columns path and label, perhaps split"


def read_list(path: Path) -> RawData:
    """The pictures that a CSV or JSON Lines file names: ``path`` (relative to the file), ``label``, perhaps ``split``.

    ``split`` is one of the names of parts, in upper or lower case; every line has it or none does. Other columns are
    not read. A line that says what another one said, of the same file, is left aside, and ``contents`` says so.

    Raises:
        InputError: the file cannot be read, a line lacks something or names no file; with the line's number.
    """
    contents = Contents(path.parent)
    pictures: list[Labelled] = []
    before: set[tuple[str, str, str | None]] = set()
    for number, row in _rows(path):
        place, label = (_text(path, number, row, key) for key in ("path", "label"))
        source = path.parent / place
        if not os.path.isfile(source):  # False, too, for a name that no file can have
            raise InputError(
                f"{path}, line {number}: no file {shown(str(source), 300)}; paths are relative to the list"
            )
        part = _part(path, number, row)
        if (key := (os.path.abspath(source), class_name(label), part)) in before:
            contents.ignore("lines that name a picture again", source)
            continue
        before.add(key)
        contents.pictures.append(source)
        pictures.append(Labelled(source, label, part))
    if any(one.part is None for one in pictures) and any(one.part is not None for one in pictures):
        raise InputError(f"{path}: some lines have a split and others have none; give all of them one")
    return arrange(str(path), pictures, contents)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines with their numbers, from 1."""
    with open_regular(path, "a list of pictures") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES:,} bytes; divide it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    yield from _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        if not {"path", "label"} <= set(names):
            raise InputError(f"{path} has the columns {shown(', '.join(names))}; {_HOW}, with commas between them")
        if twice := [name for name in _KEYS if names.count(name) > 1]:
            raise InputError(f"{path} has {names.count(twice[0])} columns {twice[0]}; keep one of them")
        reader.fieldnames = names
        for row in reader:
            if more := row.get(None):  # what csv names the fields behind the last column
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(names) + len(more)} fields for {len(names)} columns; put "
                    'quotes around a field with a comma, as in "a, b"'
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; mend that line") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_each_key_once)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: no JSON ({error}); mend that line") from error
        if not isinstance(row, dict):
            raise InputError(f'{path}, line {number}: no object; write {{"path": …, "label": …}}')
        yield number, row


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that is there twice nobody knows which one was meant."""
    keys = [key for key, _ in pairs]
    for key in _KEYS:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is there {keys.count(key)} times")
    return dict(pairs)


def _text(path: Path, number: int, row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and key == "label":
        value = str(value)
    if not isinstance(value, str) or not value.strip() or not _is_written(value):
        raise InputError(f"{path}, line {number}: {key} = {shown(value)}; {_HOW}")
    return value.strip() if key == "label" else value


def _is_written(text: str) -> bool:
    """Whether files can hold a text: it has no NUL and no half of a surrogate pair."""
    return "\0" not in text and is_utf8(text)


def _part(path: Path, number: int, row: dict[str, Any]) -> str | None:
    value = row.get("split")
    if value is None or value == "":
        return None
    part = SPLIT_OF.get(str(value).strip().lower())
    if part is None:
        raise InputError(f"{path}, line {number}: split = {shown(value)}; use one of {', '.join(SPLIT_OF)}")
    return part
