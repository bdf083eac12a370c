"""A packed model on pictures: which pictures, and how well it does on them. No PyTorch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.metrics import classification_metrics
from gsb_vit.train.recipe import DataRecipe

from .datasets import PICTURE_SUFFIXES, LabelledPictures
from .splits import load_data, read_raw

if TYPE_CHECKING:
    from gsb_vit.runtime.classifier import Classifier

BATCH = 64
# What decides how undivided data is split; kept in a packed model's provenance, so that it can be evaluated on the part
# that it was not trained on.
SPLIT_OPTIONS = ("classes", "label_noise", "shots", "split_seed", "test_fraction", "validation_fraction")


def data_name(spec: str) -> str:
    """Return what a model's provenance says of its data: the name of the data set or of the folder."""
    return spec.partition(":")[0] if ":" in spec else Path(spec).name


def held_out_pictures(spec: str, provenance: Mapping[str, Any]) -> tuple[tuple[str, ...], LabelledPictures]:
    """Return the class names and the pictures of a data SPEC to evaluate a packed model on.

    These are the test split of the data. Data without one gives the part that was set aside when the model was trained
    on it (by the name and split in ``provenance``), or all its pictures if the model was trained on other data.

    Raises:
        InputError: as :func:`gsb_vit.data.splits.load_data`.
    """
    split = provenance.get("split")
    if isinstance(split, Mapping) and provenance.get("data") == data_name(spec):
        splits = load_data(spec, DataRecipe(**{name: split[name] for name in SPLIT_OPTIONS if name in split}))
        return splits.class_names, splits.test
    raw = read_raw(spec)
    pictures = raw.test if raw.test is not None else raw.undivided
    if pictures is None or len(pictures) == 0:
        raise InputError(f"{spec!r} has no pictures to evaluate on; give a folder with test/ or class folders")
    return raw.class_names, pictures


def require_same_classes(own: Sequence[str], found: Sequence[str], spec: str) -> None:
    """Raise InputError where the classes of the data are not the model's, in its order."""
    if len(own) != len(found):
        raise InputError(f"{spec!r} has {len(found)} classes, the model {len(own)}; use data with the same classes")
    for mine, other in zip(own, found, strict=True):
        if mine != other:
            raise InputError(f"class {other!r} of {spec!r} is {mine!r} in the model; use data with the same classes")


def evaluate_packed(classifier: "Classifier", spec: str, provenance: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a packed model on the held-out pictures of a data SPEC.

    Raises:
        InputError: the data cannot be read, its classes are not the model's, or a file is not a picture.
    """
    class_names, pictures = held_out_pictures(spec, provenance)
    require_same_classes(classifier.class_names, class_names, spec)
    return classification_metrics(logits_of(classifier, pictures.sources), pictures.labels)


def logits_of(classifier: "Classifier", sources: Sequence[Any]) -> np.ndarray:
    """Classify pictures (paths, arrays, Pillow images) in batches: → float32 (n, K)."""
    parts = []
    for start in range(0, len(sources), BATCH):
        parts.append(classifier.logits(np.stack([classifier.preprocessing(one) for one in sources[start:][:BATCH]])))
    return np.concatenate(parts)


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the pictures that paths name: files as they are, folders searched at any depth, in order of their names.

    Raises:
        InputError: a path that does not exist, or a folder without pictures or that cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give pictures, or folders of pictures")
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in PICTURE_SUFFIXES and one.is_file())
        if not inside:
            raise InputError(f"{path}: a folder without pictures; give one with {', '.join(sorted(PICTURE_SUFFIXES))}")
        found += inside
    return found
