"""A zip archive of class folders: what is read of it, and what is left aside and why."""

from __future__ import annotations

import re
import stat
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gsb_vit.errors import InputError

from .arranged import Labelled, arrange
from .datasets import RawData
from .encoded import ArchivedPicture, opened
from .folder import SPLIT_OF, Contents, is_hidden, why_not_suffix

MOST_MEMBERS = 2_000_000


def read_archive(path: Path) -> RawData:
    """The pictures of a zip archive, arranged as :func:`gsb_vit.data.folder.read_folder` takes folders.

    A single folder around all of them is looked through. Nothing is unpacked to the disk. Only regular members count,
    with names that stay within the archive; others are left aside, and ``contents`` says why.

    Raises:
        InputError: no archive, encrypted members, too many, parts or classes that are not as in a folder.
    """
    contents = Contents(path)
    members = _members(path, contents)
    parts = [PurePosixPath(one.filename).parts for one in members]
    around = 0
    while parts and len({one[0] for one in parts}) == 1 and all(len(one) > 2 for one in parts):
        parts = [one[1:] for one in parts]
        around += 1
    homes = _parts(path, parts)
    _require_pictures(path, members[0].filename if members else "", around, homes, parts)
    labelled = []
    for member, names in zip(members, parts, strict=True):
        part = homes.get(names[0])
        if homes and part is None:
            contents.ignore(f"beside {next(iter(homes))}/, which is read", Path(member.filename))
        elif len(names) < 2:
            contents.ignore("in no class folder", Path(member.filename))
        else:
            contents.pictures.append(Path(member.filename))
            name = names[1] if part is not None else names[0]
            labelled.append(Labelled(ArchivedPicture(path, member.filename), name, part))
    return arrange(str(path), labelled, contents, numbers_in_order=False)


def archived_pictures(path: Path) -> tuple[list[ArchivedPicture], Contents]:
    """All pictures of a zip archive, in the order of their names, and what is left aside.

    Raises InputError where it is no archive, or a member is encrypted.
    """
    contents = Contents(path)
    members = _members(path, contents)
    contents.pictures += [Path(one.filename) for one in members]
    return [ArchivedPicture(path, one.filename) for one in members], contents


def _members(path: Path, contents: Contents) -> list[zipfile.ZipInfo]:
    """The members that are pictures by kind and name, in the order of their names."""
    found = opened(path).infolist()
    if len(found) > MOST_MEMBERS:
        raise InputError(f"{path} has {len(found):,} members, more than {MOST_MEMBERS:,}; divide it, or unpack it")
    twice = {name for name, count in Counter(str(PurePosixPath(one.filename)) for one in found).items() if count > 1}
    kept = []
    for member in found:
        if member.filename.endswith("/"):
            continue
        if (reason := _why_not(member, twice)) is not None:
            contents.ignore(reason, Path(member.filename))
            continue
        if member.flag_bits & 1:
            raise InputError(f"{path}: {member.filename} is encrypted; pack the archive again without a password")
        kept.append(member)
    return sorted(kept, key=lambda one: one.filename)


def _why_not(member: zipfile.ZipInfo, twice: set[str]) -> str | None:
    if (reason := _why_not_name(member.filename)) is not None:
        return reason
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "members that are no regular files"
    if str(name) in twice:
        return "members with the name of another"
    if (reason := next((found for part in name.parts if (found := is_hidden(part))), None)) is not None:
        return reason
    return why_not_suffix(name.suffix.lower())


def _why_not_name(filename: str) -> str | None:
    name = PurePosixPath(filename)
    if not name.parts:
        return "members without a name"
    if "\\" in filename:
        return "members with backslashes in their names (pack again with /)"
    if name.is_absolute() or ".." in name.parts or re.match("[A-Za-z]:", name.parts[0]):
        return "members whose names lead out of the archive"
    return None


def _require_pictures(
    path: Path, first: str, around: int, homes: dict[str, str], pictures: Sequence[tuple[str, ...]]
) -> None:
    """Refuse an archive with a class folder that holds no picture, as a folder is: its class would vanish.

    The folders ``around`` all pictures are those of the ``first`` one. Empty folders have members of their own.
    """
    outer = PurePosixPath(first).parts[:around]
    filled = {one[: 2 if one[0] in homes else 1] for one in pictures}
    for member in opened(path).infolist():
        names = PurePosixPath(member.filename).parts
        if any(map(is_hidden, names)) or names[:around] != outer or _why_not_name(member.filename):
            continue
        inner = names[around:] if member.filename.endswith("/") else names[around:-1]
        depth = 2 if inner and inner[0] in homes else 1
        if len(inner) >= depth and inner[:depth] not in filled and (depth == 2 or not homes):
            folder = "/".join((*outer, *inner[:depth]))
            raise InputError(f"{path}: class folder {folder}/ holds zero pictures; add some or remove the folder")


def _parts(path: Path, names: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """The outermost folders that are parts of the data, by name; none where they are classes."""
    tops: dict[str, int] = {}
    for one in names:
        tops[one[0]] = min(tops.get(one[0], len(one)), len(one))
    homes = {top: SPLIT_OF[top.lower()] for top, depth in tops.items() if top.lower() in SPLIT_OF and depth > 2}
    if not homes:
        return {}
    if len(set(homes.values())) < len(homes):
        raise InputError(f"{path} has {' and '.join(f'{top}/' for top in homes)}; keep one folder for each part")
    if "train" not in homes.values():
        raise InputError(f"{path} has {next(iter(homes))}/ but no train/; put the training classes into train/")
    return homes
