"""A packed model on pictures: which pictures, and how well it does on them. No PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsb_vit.errors import InputError

from .datasets import LabelledPictures
from .folder import OPTIONAL_SUFFIXES, PICTURE_SUFFIXES, survey, why_not
from .splits import DataRecipe, load_data, read_raw

if TYPE_CHECKING:
    pass

BATCH = 64  # pictures that are evaluated together
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


def find_pictures(paths: Sequence[Path], say: Callable[[str], None] | None = None) -> list[Path]:
    """Return the pictures that paths name: files as they are, folders searched at any depth, in order of their names.

    What a folder holds besides pictures is told to ``say``, one line a folder.

    Raises:
        InputError: a path that does not exist, or a folder without pictures or that cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give pictures, or folders of pictures")
        if not path.is_dir():
            if path.suffix.lower() in OPTIONAL_SUFFIXES and (reason := why_not(path)) is not None:
                raise InputError(f"{path}: one of the {reason}")
            found.append(path)
            continue
        inside = survey(path)
        if not inside.pictures:
            raise InputError(
                f"{path}: a folder without pictures{inside.left_aside(', but ')}; give one with "
                f"{', '.join(sorted(PICTURE_SUFFIXES))}"
            )
        if inside.ignored and say is not None:
            say(inside.summary())
        found += inside.pictures
    return found
