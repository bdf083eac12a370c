"""What a folder of pictures holds: what is used, what is ignored and why. ``train`` and ``predict`` both ask here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.files import is_utf8

from .class_names import class_name
from .datasets import LabelledPictures, RawData
from .pictures import NEEDS_HEIF, can_open_heif

# Of the formats that ``pictures.py`` reads, and of others whose files are pictures too.
PICTURE_SUFFIXES = {".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"}
PICTURE_SUFFIXES |= {".heic", ".heif", ".hif", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
UNREAD_SUFFIXES = {
    ".cr2",
    ".dds",
    ".dib",
    ".dng",
    ".eps",
    ".ico",
    ".j2k",
    ".jp2",
    ".jxl",
    ".nef",
    ".pcx",
}
UNREAD_SUFFIXES |= {".psd", ".svg", ".tga"}
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
# Not every Pillow opens these; what it is asked for. HEIF comes with a package of its own.
OPTIONAL_SUFFIXES = {".avif": "avif", ".heic": "heif", ".heif": "heif", ".hif": "heif", ".webp": "webp"}


@dataclass
class Contents:
    """What was found below a folder: pictures in the order of their names, and everything else by reason."""

    root: Path
    pictures: list[Path] = field(default_factory=list)
    ignored: dict[str, list[Path]] = field(default_factory=dict)

    def ignore(self, reason: str, path: Path) -> None:
        """Note that a file or folder is left aside."""
        self.ignored.setdefault(reason, []).append(path)

    def add(self, other: Contents) -> None:
        """Take in what was found in a folder below this one."""
        self.pictures += other.pictures
        for reason, paths in other.ignored.items():
            self.ignored.setdefault(reason, []).extend(paths)

    def lines(self) -> Iterator[str]:
        """How many pictures were found, and what is ignored, by reason, with a count and an example."""
        from gsb_vit.terminal import counted, printable, told  # imports rich, which a packed model does not need

        yield f"{printable(str(self.root))}: {counted(len(self.pictures), 'picture')} found"
        for reason, paths in sorted(self.ignored.items()):
            yield from told(f"  ignored: {len(paths):,} {reason}, as", self._name(paths[0]))

    def left_aside(self, before: str = "") -> str:
        """What is ignored, in one line after ``before``; nothing where that is nothing."""
        found = [
            f"{len(paths):,} {reason}, as {self._name(paths[0])}" for reason, paths in sorted(self.ignored.items())
        ]
        return before + "; ".join(found) if found else ""

    def _name(self, path: Path) -> str:
        try:
            return str(path.relative_to(self.root))
        except ValueError:
            return str(path)


def survey(root: Path) -> Contents:
    """Search a folder for pictures at any depth. Links to folders are followed once, so that circles end.

    Raises:
        InputError: a folder cannot be read.
    """
    found, visited = Contents(root), {os.path.realpath(root)}
    _walk(root, found, visited)
    found.pictures.sort()
    return found


def _walk(folder: Path, found: Contents, visited: set[str]) -> None:
    for path in list_folder(folder):
        if (reason := _never_read(path)) is not None:
            found.ignore(reason, path)
        elif path.is_dir():
            real = os.path.realpath(path)
            if real in visited:
                found.ignore("links to folders that are read already", path)
                continue
            visited.add(real)
            _walk(path, found, visited)
        elif (reason := why_not(path)) is not None:
            found.ignore(reason, path)
        else:
            found.pictures.append(path)


def _never_read(path: Path) -> str | None:
    return is_hidden(path.name)


def is_hidden(name: str) -> str | None:
    """Why a file or folder of this name is never looked at, or None where it is."""
    if name.lower() in _SYSTEM:
        return "files or folders of the system"
    return "hidden files or folders" if name.startswith(".") else None


def why_not(path: Path) -> str | None:
    """Why a file is no picture to read, by its suffix and kind, or None where it is one."""
    if path.is_symlink() and not path.exists():
        return "broken links"
    if not path.is_file():
        return "things that are no files"
    return why_not_suffix(path.suffix.lower())


def why_not_suffix(suffix: str) -> str | None:
    """Why a file with this suffix, in lower case, is no picture to read, or None where it is one."""
    if OPTIONAL_SUFFIXES.get(suffix) == "heif" and not can_open(suffix):
        return f"{suffix} pictures (not read here; {NEEDS_HEIF}, or convert them to PNG or JPEG)"
    if suffix in UNREAD_SUFFIXES or (suffix in OPTIONAL_SUFFIXES and not can_open(suffix)):
        return f"{suffix} pictures (not read here; convert them to PNG or JPEG)"
    if suffix not in PICTURE_SUFFIXES:
        return f"{suffix} files (no format that is read)" if suffix else "files without a suffix"
    return None


@cache
def can_open(suffix: str) -> bool:
    """Whether what is installed opens files of an optional suffix."""
    from PIL import features

    if OPTIONAL_SUFFIXES[suffix] == "heif":
        return can_open_heif()
    return bool(features.check(OPTIONAL_SUFFIXES[suffix]))


def list_folder(folder: Path) -> list[Path]:
    """What a folder holds, by name. Raises InputError where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder} ({error.strerror}); give a readable folder") from error


def read_folder(root: Path) -> RawData:
    """A folder of class folders, or one with folders for training, validation and/or test that each hold class folders.

    These may have any of the names in ``SPLIT_NAMES``, in upper or lower case. Without one for the test, validation is
    the test split, as is usual for data published so. Class names are the sorted folder names (``class_name``; folders
    of one name are one class); every split must have the same ones. Pictures at any depth below a class folder are of
    that class. A class may be called ``train``, too: then its folder holds pictures, not folders. ``contents`` says
    what was found. Raises InputError for anything that is not so, naming the folder.
    """
    contents = Contents(root)
    splits = _find_splits(root, contents)
    if not splits:
        names, pictures = _read_class_folders(root, contents)
        return RawData(names, None, None, None, undivided=pictures, contents=contents)
    own = splits.pop("train")
    names, train = _read_class_folders(own, contents)
    if not splits:
        return RawData(names, None, None, None, undivided=train, contents=contents)
    held_out = {}
    for split, folder in splits.items():
        other, held_out[split] = _read_class_folders(folder, contents)
        if other != names:
            raise InputError(_different(own, names, folder, other))
    if "test" not in held_out:
        return RawData(names, train, None, held_out["val"], contents=contents)
    return RawData(names, train, held_out.get("val"), held_out["test"], contents=contents)


def _different(own: Path, names: tuple[str, ...], folder: Path, other: tuple[str, ...]) -> str:
    """What to say of two parts with different classes: a class that one lacks, and what it may be called there."""
    odd = sorted(set(other) ^ set(names))[0]
    has, lacks, there = (own, folder, other) if odd in names else (folder, own, names)
    near = difflib.get_close_matches(odd, set(there), n=1, cutoff=0.7)
    hint = f" (it has {near[0]!r})" if near else ""
    return f"{has} has the class {odd!r} and {lacks} has not{hint}; make the classes of both the same"


def is_read(root: Path, place: Path) -> bool:
    """Whether a folder at ``place``, which need not exist, would be read as a class of the data ``root``, or in one."""
    try:
        steps = place.resolve().relative_to(root.resolve()).parts
    except ValueError:
        return False
    if not steps or any(map(is_hidden, steps)):
        return False
    parts = _find_splits(root, Contents(root))
    return not parts or any(steps[0] == one.name for one in parts.values())


def _find_splits(root: Path, contents: Contents) -> dict[str, Path]:
    """The folders of the parts, by part; none where the folders are classes."""
    folders = list(_folders(root))
    named = [one for one in folders if one.name.lower() in SPLIT_OF]
    if len(named) < len(folders):
        named = [one for one in named if _holds_folders_only(one)]
    if not named:
        return {}
    splits: dict[str, Path] = {}
    for one in named:
        split = SPLIT_OF[one.name.lower()]
        if split in splits:
            raise InputError(f"{root} has both {splits[split].name}/ and {one.name}/; keep one folder for that part")
        splits[split] = one
    others = [one for one in folders if one not in named]
    if "train" not in splits:
        inside = f", and {others[0].name}/ beside it" if others else ""
        raise InputError(f"{root} has {named[0].name}/ but no train/{inside}; put the training classes into train/")
    for path in list_folder(root):
        if path not in named:
            contents.ignore(_never_read(path) or f"beside {named[0].name}/, which is read", path)
    return splits


def _holds_folders_only(folder: Path) -> bool:
    inside = [path for path in list_folder(folder) if _never_read(path) is None]
    return any(path.is_dir() for path in inside) and all(path.is_dir() or why_not(path) for path in inside)


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in list_folder(root) if _never_read(path) is None and path.is_dir())


def _read_class_folders(root: Path, contents: Contents) -> tuple[tuple[str, ...], LabelledPictures]:
    folders = list(_folders(root))
    for folder in folders:
        if not is_utf8(folder.name):
            raise InputError(f"the name of class folder {folder} is not UTF-8, and no file could hold it; rename it")
    names = sorted({class_name(folder.name) for folder in folders})
    if len(names) < 2:
        raise InputError(
            f"{root} holds {len(names)} class folders; give a folder with one folder a class, at least two"
        )
    for path in list_folder(root):
        if path not in folders:
            contents.ignore(_never_read(path) or "in no class folder", path)
    sources: list[Path] = []
    labels: list[int] = []
    for folder in sorted(folders, key=lambda folder: class_name(folder.name)):
        found = survey(folder)
        if not found.pictures:
            raise InputError(
                f"class folder {folder} holds zero pictures{found.left_aside(', but ')}; add some or remove the folder"
            )
        contents.add(found)
        sources += found.pictures
        labels += [names.index(class_name(folder.name))] * len(found.pictures)
    return tuple(names), LabelledPictures(tuple(sources), np.array(labels, dtype=np.int64))
