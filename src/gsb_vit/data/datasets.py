"""Labelled pictures, and readers of the data sets gsb-vit knows by name; no PyTorch at import time."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsb_vit.errors import InputError

from .encoded import ArchivedPicture, HeldPicture

if TYPE_CHECKING:
    from .folder import Contents

Source = Path | np.ndarray | ArchivedPicture | HeldPicture


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures (paths or uint8 arrays) with their class numbers (n,).

    ``groups`` (n,) numbers what belongs together, as near copies do: a draw keeps a group in one part. None: nothing.
    """

    sources: tuple[Source, ...]
    labels: np.ndarray = field(repr=False)
    groups: np.ndarray | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, indices: np.ndarray) -> LabelledPictures:
        """The pictures at ``indices``, in that order."""
        groups = None if self.groups is None else self.groups[indices]
        return LabelledPictures(tuple(self.sources[i] for i in indices), self.labels[indices], groups)


@dataclass(frozen=True)
class RawData:
    """A data set as it comes: its own splits, which may be missing (None); of a folder also what it holds."""

    class_names: tuple[str, ...]
    train: LabelledPictures | None
    validation: LabelledPictures | None
    test: LabelledPictures | None
    undivided: LabelledPictures | None = None
    contents: Contents | None = field(default=None, repr=False, compare=False)

    def each_part(self, function: Callable[[LabelledPictures], LabelledPictures]) -> RawData:
        """The data with every part that it has replaced by ``function`` of it."""
        parts = (self.train, self.validation, self.test, self.undivided)
        train, validation, test, undivided = (None if part is None else function(part) for part in parts)
        return RawData(self.class_names, train, validation, test, undivided, self.contents)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder. Raises InputError where the system does not tell."""
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); give a readable folder") from error


def read_digits() -> RawData:
    """The 1,797 scanned digits (8 × 8, 17 grey levels) that come with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(n) for n in digits.target_names)
    return RawData(names, None, None, None, undivided=_arrays(pictures, digits.target))


def read_flowers102(root: Path) -> RawData:
    """Oxford Flowers-102 with train and val (2,040 pictures) for training and test (6,149) for testing.

    ``root`` is the folder flowers-102 or the one that holds it.
    """
    from torchvision.datasets import Flowers102

    if not is_folder(root / "flowers-102") and root.absolute().name == "flowers-102":
        root = root.absolute().parent
    parts: dict[str, LabelledPictures] = {}
    for split in ("train", "val", "test"):
        try:
            data = Flowers102(root, split=split, download=False)
        except (RuntimeError, OSError) as error:
            raise InputError(
                f"no Flowers-102 under {root} ({error}); give the folder flowers-102 with jpg/, "
                "imagelabels.mat and setid.mat, or the one that holds it"
            ) from error
        paths = tuple(Path(p) for p in data._image_files)
        parts[split] = LabelledPictures(paths, np.asarray(data._labels, dtype=np.int64))
    names = tuple(getattr(data, "classes", None) or [f"flower {i + 1}" for i in range(102)])
    labels = np.concatenate([parts["train"].labels, parts["val"].labels])
    train = LabelledPictures(parts["train"].sources + parts["val"].sources, labels)
    return RawData(names, train, None, parts["test"])


def read_cifar10(root: Path) -> RawData:
    """CIFAR-10 as torchvision lays it out (cifar-10-batches-py/)."""
    return _read_cifar(root, "CIFAR10")


def read_cifar100(root: Path) -> RawData:
    """CIFAR-100 as torchvision lays it out (cifar-100-python/)."""
    return _read_cifar(root, "CIFAR100")


def _read_cifar(root: Path, name: str) -> RawData:
    import torchvision.datasets

    parts = []
    for train in (True, False):
        try:
            data = getattr(torchvision.datasets, name)(root, train=train, download=False)
        except (RuntimeError, OSError) as error:
            raise InputError(f"no {name} under {root} ({error}); give the folder of torchvision's layout") from error
        parts.append(_arrays(np.asarray(data.data), data.targets))
    return RawData(tuple(data.classes), parts[0], None, parts[1])


FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def read_fashion_mnist(root: Path) -> RawData:
    """Fashion-MNIST from its four idx files, gzipped or not, in ROOT itself or in torchvision's FashionMNIST/raw/."""
    parts = []
    for prefix in ("train", "t10k"):
        pictures = _read_idx(_find_idx(root, f"{prefix}-images-idx3-ubyte"), 3)
        labels = _read_idx(_find_idx(root, f"{prefix}-labels-idx1-ubyte"), 1)
        if len(pictures) != len(labels) or labels.max(initial=0) > 9:
            raise InputError(f"the {prefix} files under {root} do not belong together; fetch Fashion-MNIST again")
        parts.append(_arrays(pictures, labels))
    return RawData(FASHION_NAMES, parts[0], None, parts[1])


def _find_idx(root: Path, name: str) -> Path:
    for folder in (root, root / "FashionMNIST" / "raw", root / "fashion-mnist", root / "raw"):
        for suffix in ("", ".gz"):
            if (path := folder / (name + suffix)).is_file():
                return path
    raise InputError(f"no {name} or {name}.gz under {root}; give the folder with the four Fashion-MNIST idx files")


_MOST_IDX = 100_000_000  # twice Fashion-MNIST's largest file; a small gzip file can hold gigabytes


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MOST_IDX + 1)
        if len(data) > _MOST_IDX:
            raise InputError(f"{path} holds more than {_MOST_IDX:,} bytes; fetch the file again")
        magic, *shape = struct.unpack_from(f">{1 + dimensions}i", data)
    except (OSError, EOFError, struct.error) as error:
        raise InputError(f"cannot read {path} ({error}); fetch the file again") from error
    offset = 4 * (1 + dimensions)
    if magic != 0x0800 + dimensions or len(data) - offset != int(np.prod(shape)):
        raise InputError(f"{path} is not an idx file of {dimensions} dimensions, or is cut short; fetch the file again")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)


CHAOYANG_NAMES = ("normal", "serrated", "adenocarcinoma", "adenoma")


def read_chaoyang(root: Path) -> RawData:
    """Chaoyang: train.json and test.json, lists of {"name": path below ROOT, "label": 0 … 3}."""
    parts = []
    for split in ("train", "test"):
        path = root / f"{split}.json"
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            sources = tuple(root / entry["name"] for entry in entries)
            labels = np.array([int(entry["label"]) for entry in entries], dtype=np.int64)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'cannot read {path} ({error!r}); give the folder with train.json and test.json, lists of {{"name", '
                '"label"}'
            ) from error
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(CHAOYANG_NAMES):
            raise InputError(f"{path} has no entries or labels outside 0 … 3; fetch the file again")
        parts.append(LabelledPictures(sources, labels))
    return RawData(CHAOYANG_NAMES, parts[0], None, parts[1])


def _arrays(pictures: np.ndarray, labels: Any) -> LabelledPictures:
    return LabelledPictures(tuple(pictures), np.asarray(labels, dtype=np.int64))


READERS: dict[str, Callable[[Path], RawData]] = {
    "flowers102": read_flowers102,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "fashion-mnist": read_fashion_mnist,
    "chaoyang": read_chaoyang,
}
READER_PREFIXES = ("wds/", "hfds/")  # of data that timm's readers read
SPECS = ("digits", *(f"{name}:ROOT" for name in READERS))  # what a data SPEC may be, other than a folder
