"""Files that exist in full or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what is written there replaces ``path`` when the block ends well.

    The data is flushed to disk before it gets its name. Where the block raises, ``path`` stays as it was.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that exists in full or not at all."""
    with staged(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


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
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another {work} is at work in {folder}; wait for it, or end it") from error
        except OSError:
            pass  # a file system without locks
        yield
