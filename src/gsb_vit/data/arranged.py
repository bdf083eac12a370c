"""From pictures with class names, and perhaps parts, to a data set: what lists, archives and other readers share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gsb_vit.errors import InputError

from .class_names import class_name
from .datasets import LabelledPictures, RawData, Source
from .folder import Contents


@dataclass(frozen=True)
class Labelled:
    """A picture, the name of its class, and its part (``train``, ``val``, ``test``), None where nothing says."""

    source: Source
    label: str
    part: str | None = None


def arrange(spec: str, pictures: Sequence[Labelled], contents: Contents, *, numbers_in_order: bool = True) -> RawData:
    """A data set of these pictures, in their order; classes by name (``class_name``).

    Where all are whole numbers, they are in the order of numbers, unless ``numbers_in_order`` is False.

    Without parts it is undivided. As of a folder, validation is the test where there is no test.

    Raises:
        InputError: no pictures, one class, parts of which none is for training, or other classes in another part.
    """
    if not pictures:
        raise InputError(f"{spec} holds no pictures with a class{contents.left_aside(', but ')}; give class folders")
    pictures = [dataclasses.replace(one, label=class_name(one.label)) for one in pictures]
    found = {one.label for one in pictures}
    names = sorted(found, key=_order(found)) if numbers_in_order else sorted(found)
    if len(names) < 2:
        raise InputError(f"{spec} holds one class, {names[0]!r}; a classifier needs at least two")
    number = {name: place for place, name in enumerate(names)}
    parts: dict[str | None, list[Labelled]] = {}
    for one in pictures:
        parts.setdefault(one.part, []).append(one)

    def made(part: str | None) -> LabelledPictures | None:
        if part not in parts:
            return None
        own = parts[part]
        for odd in sorted(set(names) - {one.label for one in own})[:1]:
            raise InputError(f"{spec}: class {odd!r} has no pictures in part {part!r}; add some, or drop the class")
        labels = np.array([number[one.label] for one in own], dtype=np.int64)
        return LabelledPictures(tuple(one.source for one in own), labels)

    if set(parts) <= {None} or set(parts) == {"train"}:
        only = parts.get(None, parts.get("train", []))
        labels = np.array([number[one.label] for one in only], dtype=np.int64)
        whole = LabelledPictures(tuple(one.source for one in only), labels)
        return RawData(tuple(names), None, None, None, undivided=whole, contents=contents)
    if "train" not in parts:
        raise InputError(f"{spec} has a part {next(iter(parts))!r} but none for training; name it train")
    validation, test = made("val"), made("test")
    if test is None:
        validation, test = None, validation
    return RawData(tuple(names), made("train"), validation, test, contents=contents)


def _order(names: set[str]):  # type: ignore[no-untyped-def]
    if all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        return lambda name: (int(name), name)
    return lambda name: name
