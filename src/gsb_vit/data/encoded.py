"""Pictures that are no files of their own: members of a zip archive, and bytes from a reader of another library."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from gsb_vit.errors import InputError
from gsb_vit.files import open_regular

_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class ArchivedPicture:
    """A member of a zip archive, which is never unpacked to the disk; ``str`` of it is ARCHIVE/MEMBER."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        """The member's path in the archive."""
        return self.member

    def __str__(self) -> str:
        return f"{self.archive}/{self.member}"

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes from the member's beginning; no more are unpacked, whatever the archive claims.

        Raises InputError where they cannot be read.
        """
        try:
            with opened(self.archive).open(self.member) as file:
                return file.read(size)
        except KeyError as error:
            raise InputError(f"{self}: is gone from the archive; bring it back") from error
        except _BROKEN as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self}: cannot be read ({reason}); pack the archive again") from error


@dataclass(frozen=True)
class HeldPicture:
    """A picture's encoded bytes in memory, and its name; ``str`` of it is the name."""

    name: str
    data: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes from the beginning."""
        return self.data[:size]


def opened(archive: Path) -> zipfile.ZipFile:
    """An archive, opened once a process and version of the file.

    Raises InputError where it is no regular file or no archive.
    """
    with open_regular(archive, "a zip archive") as file:  # before anything waits for a pipe
        status = os.fstat(file.fileno())
    return _open(archive, (status.st_ino, status.st_size, status.st_mtime_ns), os.getpid())


@lru_cache(maxsize=8)
def _open(archive: Path, version: tuple[int, ...], process: int) -> zipfile.ZipFile:
    """Processes that were forked must not share a file's position, so each has its own."""
    try:
        return zipfile.ZipFile(archive)
    except _BROKEN as error:
        raise InputError(
            f"{archive} is no zip archive that can be read ({' '.join(str(error).split())}); pack it again"
        ) from error


Encoded = (ArchivedPicture, HeldPicture)
