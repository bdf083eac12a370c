"""Files that exist in full or not at all."""

import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gsb_vit.errors import InputError, shown

MOST_TEXT = 1_000_000
_SHOWN = 40  # characters of a file's name in that of its temporary one
_HEAD = 4096
HTML_MARK = b"<html"


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what is written there replaces ``path`` when the block ends well.

    The data is flushed to disk before it gets its name. Where the block raises, ``path`` stays as it was.

    Raises:
        InputError: ``path`` is a folder, device, pipe or socket, or a link to one: a file would take its place.
        OSError: ``path`` cannot be written; its ``filename`` is ``path``.
    """
    _require_replaceable(path)
    try:
        # Not the whole name, which may be as long as names get.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:_SHOWN]}.", suffix=".tmp")
    except OSError as error:  # which names a file that nobody asked for
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _require_replaceable(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
        # /dev/stdout is a link that may lead to a regular file.
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} cannot be written: it is a folder; name a file")
        replaceable = stat.S_ISREG(mode)
        replaceable &= os.path.realpath(path.parent) != os.path.realpath("/dev")
    except InputError:
        raise
    except (OSError, ValueError):
        return  # not there yet, or what comes next says why it cannot be written
    if not replaceable:
        raise InputError(f"{path} is a device, pipe or socket, which a file would replace; name a file to write")


def refuse_other(path: Path, what: str, mark: bytes | Callable[[Path], bool]) -> None:
    """Raise InputError where writing would lose a file: one that is there, is not empty and is not ``what``.

    What is known by ``mark``, bytes among its first 4096 in lower case or a function of its path, may be replaced.
    """
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return
        if callable(mark):
            fits = mark(path)
        else:
            with path.open("rb") as file:
                fits = mark in file.read(_HEAD).lower()
    except (OSError, ValueError):
        return  # what comes next says why it cannot be written
    if not fits:
        raise InputError(f"{path} is there already and is not {what}; name another file, or remove it first")


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that exists in full or not at all."""
    with staged(path) as temporary:
        temporary.write_bytes(data)


def is_utf8(text: str) -> bool:
    """Whether a file can hold text: it has no half of a surrogate pair, as paths that are not UTF-8 have."""
    return not any("\ud800" <= one <= "\udfff" for one in text)


def utf8(text: str) -> bytes:
    r"""Text as UTF-8. Bytes of a path that are not UTF-8, which Python keeps as ``\udcff``, are written out like that.

    In JSON this is an escape: what reads it gets the same text.
    """
    return text.encode("utf-8", "backslashreplace")


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path, kinds: Mapping[str, Any], way: str) -> dict[str, Any]:
    """Read a JSON object; ``kinds`` maps keys that it must have to their types.

    Raises InputError, naming the file, where it is missing or damaged; ``way`` says how to go on.
    """
    try:
        with open_regular(path, "a file of a run") as file:
            values = json.loads(file.read().decode("utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, no object")
        for key, kind in kinds.items():
            if key not in values:
                raise ValueError(f"{key} is missing")
            if not isinstance(values[key], kind) or isinstance(values[key], bool):
                raise ValueError(f"{key} = {shown(values[key])}")
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); {way}") from error
    return values


def read_text(path: Path, what: str) -> str:
    """Read a text file that a person wrote, at most ``MOST_TEXT`` bytes of UTF-8.

    Raises InputError for anything that is no such file; ``what`` says what to give instead.
    """
    with open_regular(path, what) as file:
        data = file.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise InputError(f"{path}: cannot be read (has more than {MOST_TEXT:,} bytes); give {what}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read ({error}); give {what} in UTF-8") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what ``staged`` leaves in a folder, and in those in it, when its process is killed."""
    for path in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        path.unlink(missing_ok=True)


LOCK = ".lock"


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold a folder, so that no two processes do ``work`` there; the lock ends with its process, however that ends.

    Raises InputError where another process holds it. Where there are no such locks nothing is held.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # pragma: no cover (no such locks on Windows)
        yield
        return
    path = folder / LOCK
    path.touch()
    with path.open() as file:  # not open for writing, so that the disk can still be made read-only
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another {work} is at work in {folder}; wait for it, or end it") from error
        except OSError:
            pass  # a file system without locks
        yield


def as_path(value: Any, what: str) -> Path:
    """Return a path that a caller gave as text, bytes or PathLike.

    Raises InputError for any other type, for an empty path and for one with a NUL; ``what`` says what it should name.
    """
    try:
        text = os.fsdecode(value)
    except TypeError as error:
        raise InputError(f"{type(value).__name__} is not a path; give {what} as text or a pathlib.Path") from error
    if not text or "\0" in text:
        raise InputError(f"{shown(text)} is not a path: it {'holds a NUL' if text else 'is empty'}; give {what}")
    return Path(text)


def open_regular(path: Path, what: str) -> BinaryIO:
    """Open a regular file to be read.

    A folder, pipe, socket or device is refused before it is opened: opening one can wait for ever or do something.

    Raises:
        InputError: for anything that is no regular file or cannot be read; ``what`` says what to give instead.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "is a folder" if stat.S_ISDIR(mode) else "is no regular file"
            raise InputError(f"{path}: cannot be read ({kind}); give {what}")
        # Between the two calls it can become another: O_NONBLOCK does not wait for a pipe's other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise InputError(f"{path}: cannot be read (is no regular file); give {what}")
        return os.fdopen(descriptor, "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give {what}") from error
