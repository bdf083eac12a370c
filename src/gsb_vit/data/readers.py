"""Data sets that timm's readers read: WebDataset shards on this machine, and Hugging Face data sets by name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.limits import RAISE_MEMORY, memory_limit, shown_bytes

from .arranged import Labelled, arrange
from .datasets import RawData, Source
from .encoded import HeldPicture
from .folder import SPLIT_NAMES, Contents

MOST_MEMORY = 8e9  # bytes of pictures that are held, unless GSB_VIT_MAX_MEMORY says otherwise
_NEEDS = {"wds": "webdataset", "hfds": "datasets"}


def read_with_timm(spec: str) -> RawData:
    """Pictures of ``wds/SHARDS.tar`` or ``hfds/NAME``, held in memory.

    ``wds/FOLDER/NAME-{000..003}.tar``: shards of WebDataset (https://github.com/webdataset/webdataset) whose samples
    have a picture (jpg, png or webp) and a whole number (cls). ``wds/FOLDER``: its _info.json names the parts.
    ``hfds/NAME``: a data set of the Hugging Face hub, or a folder that ``datasets`` loads, with the columns image and
    label; its splits train, validation and test are the parts. Whatever else a reader can do is left alone: nothing is
    fetched by URL or pipe, and no code of a data set runs.

    Raises:
        InputError: timm or what the reader needs is missing, a sample cannot be read, too many bytes.
    """
    kind, _, name = spec.partition("/")
    missing = [one for one in ("timm", _NEEDS[kind]) if find_spec(one) is None]
    if missing:
        raise InputError(f"{spec} needs {' and '.join(missing)}: pip install 'gsb-vit[readers]'")
    if not name:
        raise InputError(f"{spec} names no data; give {'wds/SHARDS.tar' if kind == 'wds' else 'hfds/NAME'}")
    found = _shards(spec, name) if kind == "wds" else _hugging_face(spec, name)
    return arrange(spec, list(_within_memory(spec, found)), Contents(Path(spec)))


def _within_memory(spec: str, pictures: Iterator[Labelled]) -> Iterator[Labelled]:
    limit, held = memory_limit(None, MOST_MEMORY), 0
    for one in pictures:
        held += one.source.nbytes if isinstance(one.source, np.ndarray) else len(getattr(one.source, "data", b""))
        if held > limit:
            raise InputError(
                f"{spec}: its pictures are held in memory and take more than {shown_bytes(limit)}; unpack them into a "
                f"folder, or {RAISE_MEMORY}"
            )
        yield one


def _shards(spec: str, name: str) -> Iterator[Labelled]:
    from timm.data.readers.reader_factory import create_reader

    path = Path(name).absolute()  # with a root that is absolute, no name is a URL or a pipe
    if path.is_dir():
        root, parts = path, _parts_of_info(spec, path)
    else:
        root, parts = path.parent, {None: path.name}
        if not root.is_dir() or not path.name.endswith(".tar"):
            raise InputError(f"{spec}: no folder {root}, or no shards (.tar); give wds/FOLDER/NAME-{{000..003}}.tar")
        if "::" in path.name or "|" in path.name:
            raise InputError(f"{spec}: shards are named one way, as in NAME-{{000..003}}.tar; leave out :: and |")
    for part, split in parts.items():
        with _Complaints(spec):
            try:
                reader = create_reader("wds/", root=str(root), split=split)
                for shard in reader.split_info.filenames:  # type: ignore[attr-defined]
                    if not (root / shard).is_file():
                        raise InputError(f"{spec}: no shard {root / shard}; give those that there are")
                for picture, target in reader:
                    yield Labelled(np.asarray(picture.convert("RGB")), str(target), part)
            except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"{spec}: cannot be read ({' '.join(str(error).split())}); mend the shards") from error


def _parts_of_info(spec: str, root: Path) -> dict[str | None, str]:
    from timm.data.readers.reader_wds import _load_info

    if not any((root / one).is_file() for one in ("_info.json", "info.json")):
        raise InputError(f"{spec}: {root} has no _info.json; name its shards, as in wds/{root}/NAME-{{000..003}}.tar")
    splits = _load_info(str(root)).get("splits", {})
    return _parts(spec, splits)


def _parts(spec: str, splits: Any) -> dict[str | None, str]:
    """The names of the data's own splits, by part."""
    own = {str(name).lower(): str(name) for name in splits}
    found: dict[str | None, str] = {
        part: own[name] for part, names in SPLIT_NAMES.items() for name in names if name in own
    }
    if "train" not in found:
        raise InputError(f"{spec} has the splits {', '.join(map(str, splits)) or 'none'}, and none is called train")
    return found


class _Complaints:
    """timm's reader logs a sample that it cannot read and goes on; here that is an error."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.found: list[str] = []
        self.logger = logging.getLogger("timm.data.readers.reader_wds")
        self.handler = logging.Handler(logging.WARNING)
        self.handler.emit = self._emit  # type: ignore[method-assign]

    def _emit(self, record: logging.LogRecord) -> None:
        if "info file" not in record.getMessage():
            said = " ".join(record.getMessage().split())  # "Handling webdataset error (…). Ignoring."
            self.found.append(said.removeprefix("Handling webdataset error ").removesuffix(" Ignoring.").strip("(.)"))

    def __enter__(self) -> _Complaints:
        self.before = self.logger.propagate
        self.logger.propagate = False
        self.logger.addHandler(self.handler)
        return self

    def __exit__(self, kind: Any, *details: Any) -> None:
        self.logger.removeHandler(self.handler)
        self.logger.propagate = self.before
        if kind is None and self.found:
            raise InputError(
                f"{self.spec}: {len(self.found):,} samples cannot be read, the first for {self.found[0][:300]}; "
                "mend them, or leave them out"
            )


def _hugging_face(spec: str, name: str) -> Iterator[Labelled]:
    import datasets
    from timm.data.readers.reader_factory import create_reader

    try:
        splits = datasets.get_dataset_split_names(name)
        for part, split in _parts(spec, splits).items():
            reader = create_reader(f"hfds/{name}", split=split)
            names = {number: label for label, number in reader.class_to_idx.items()}
            for index in range(len(reader)):
                picture, target = reader[index]
                source: Source = HeldPicture(f"{spec}/{split}/{index}", picture.read())
                yield Labelled(source, str(names.get(target, target)), part)
    except InputError:
        raise
    except Exception as error:  # a library of another house, and the network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{spec}: cannot be read ({reason}); give a name on the hub, or a folder") from error
