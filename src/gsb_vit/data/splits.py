"""From a data SPEC to training, validation and test pictures; every draw is seeded and stratified. No PyTorch here."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gsb_vit.errors import InputError

from .archives import read_archive
from .datasets import READER_PREFIXES, READERS, SPECS, LabelledPictures, RawData, read_digits
from .folder import read_folder
from .listed import SUFFIXES, read_list
from .readers import read_with_timm


@dataclass(frozen=True)
class DataRecipe:
    """Which part of the data is used, and how a picture becomes the model's input.

    ``shots`` keeps K training pictures a class, ``label_noise`` gives that share of the training labels another,
    uniformly drawn class (symmetric noise); ``validation_fraction`` is cut from the training data, stratified;
    ``test_fraction`` applies to data without a test split of its own. All draws depend on ``split_seed`` only.
    ``near_duplicates``: of pictures that the user gives, near copies are found and a draw keeps them in one part
    (``group``, ``data/likeness.py``), or they are not looked for (``ignore``). ``balance``: every epoch of training
    shows all classes equally often (``sampling``), each picture once (``none``), or what ``data/balance.py`` says of
    pictures that the user gives (``auto``). ``unlabelled``: a folder of pictures without labels, at any depth; students
    that learn from a teacher alone (``distillation.kind = "match"``) see them, too.
    """

    validation_fraction: float = 0.15
    test_fraction: float = 0.3
    split_seed: int = 0
    classes: str = "all"
    shots: int | None = None
    label_noise: float = 0.0
    resize: Literal["crop", "squash"] = "crop"
    crop_ratio: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    memory_limit_mb: int = 4096
    near_duplicates: Literal["group", "ignore"] = "group"
    balance: Literal["auto", "none", "sampling"] = "auto"
    unlabelled: str = ""


@dataclass(frozen=True)
class DataSplits:
    """Labelled pictures for training, model selection (may be empty) and the final test (touched once).

    ``unlabelled``: further pictures for training, or None.
    """

    spec: str
    class_names: tuple[str, ...]
    train: LabelledPictures
    validation: LabelledPictures
    test: LabelledPictures
    unlabelled: LabelledPictures | None = None

    def training(self, unlabelled: bool) -> LabelledPictures:
        """The pictures that a stage trains on: those with labels, and then, if ``unlabelled``, the others."""
        if not unlabelled or self.unlabelled is None:
            return self.train
        labels = np.concatenate([self.train.labels, self.unlabelled.labels])
        return LabelledPictures((*self.train.sources, *self.unlabelled.sources), labels)


def load_data(spec: str, options: DataRecipe) -> DataSplits:
    """Read the data a SPEC names and split it.

    SPEC is a folder of class folders (undivided, or with train/ and val/ and/or test/), a zip archive of them, a list
    (``listed``), ``wds/SHARDS.tar`` or ``hfds/NAME`` (``readers``), or one of
    ``datasets.SPECS``, where ROOT is the folder of that data set.
    Undivided data gives ``options.test_fraction`` of every class to the test split; ``options.validation_fraction`` of
    the training pictures of every class is set apart for validation, unless the data has a validation split of its own.
    ``options.classes`` keeps all classes, or ``most-test:K``: the K with most test pictures (ties: the first);
    ``most-test:J-K`` keeps those from rank J to rank K, other classes to make choices on.

    Raises:
        InputError: for an unknown SPEC, an unreadable folder, a class with zero pictures, or fewer than two classes.
    """
    return split_raw(spec, read_raw(spec), options)


def split_raw(spec: str, raw: RawData, options: DataRecipe) -> DataSplits:
    """Split data that is read already, as ``load_data`` does."""
    copied = dict(zip(raw.class_names, _copied(raw).tolist(), strict=True))
    raw = _select_classes(_divide(raw, options), options.classes)
    train, validation, test = raw.train, raw.validation, raw.test
    if train is None or test is None:
        raise InputError(f"{spec!r} lacks training or test pictures; give a folder with train/ and val/ or test/")
    for split, pictures in (("training", train), ("test", test)):
        _require_every_class(spec, split, pictures, raw.class_names, copied)
    if options.shots is not None:
        train = train.take(_shots(train.labels, options.shots, _generator(options, 1), raw.class_names))
    if validation is None:
        share, drawn = options.validation_fraction, _generator(options, 2)
        kept, cut = stratified_split(train.labels, share, drawn, train.groups)
        train, validation = train.take(kept), train.take(cut)
    _require_every_class(spec, "training", train, raw.class_names, copied)
    train = _with_label_noise(train, options.label_noise, len(raw.class_names), _generator(options, 3))
    return DataSplits(spec, raw.class_names, train, validation, test)


def read_raw(spec: str) -> RawData:
    """The data a SPEC names, with its own splits. Raises InputError as ``load_data`` does."""
    if not spec.strip():
        raise InputError("the data has an empty name; give its path, or . for the folder that this is run in")
    if spec == "digits" and Path(spec).is_dir():
        raise InputError(
            "'digits' is a built-in set and a folder here; give ./digits for the folder, digits: for the set"
        )
    if spec in ("digits", "digits:"):
        return read_digits()
    name, colon, root = spec.partition(":")
    if colon and name in READERS:
        if not Path(root).is_dir():
            raise InputError(f"no folder {root!r}; give the folder of the data set as {name}:ROOT")
        return READERS[name](Path(root))
    if Path(spec).is_dir():
        return read_folder(Path(spec))
    if spec.startswith(READER_PREFIXES):
        return read_with_timm(spec)
    if Path(spec).is_file():
        return _read_file(Path(spec))
    near = difflib.get_close_matches(spec, SPECS, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]})" if near else ""
    raise InputError(
        f"no data {spec!r}; give a folder of class folders, a .zip of them, a list (.csv, .jsonl), wds/SHARDS.tar, "
        f"hfds/NAME, {', '.join(SPECS)}{hint}"
    )


def _read_file(path: Path) -> RawData:
    """Data in one file, by its suffix."""
    if path.suffix.lower() == ".zip":
        return read_archive(path)
    if path.suffix.lower() in SUFFIXES:
        return read_list(path)
    raise InputError(
        f"{path} is no data set; give a folder of class folders, a .zip of them, or a list of path and label "
        f"({', '.join(SUFFIXES)})"
    )


def is_own(spec: str) -> bool:
    """Whether a SPEC names pictures that the user gives, and no published set."""
    name, colon, _ = spec.partition(":")
    return not (spec == "digits" or (colon and name in ("digits", *READERS)))


def stratified_split(
    labels: np.ndarray, fraction: float, generator: np.random.Generator, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split indices (kept, cut), both in increasing order: round(fraction · n) of every class's n pictures are cut.

    At least one picture of every class is kept; halves round to the even number. Pictures with the same number in
    ``groups`` (n,) stay together, in the class of the first of them; then at most so many pictures are cut, or else the
    smallest group. A class that is a single group is divided as if it were none: there is no other way to test it.
    """
    firsts, counts = np.arange(len(labels)), np.ones(len(labels), dtype=np.int64)
    unit = firsts
    if groups is not None:
        _, firsts, unit, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        units = np.flatnonzero(labels[firsts] == label)
        if len(units) == 1 and counts[units[0]] > 1:
            members = generator.permutation(np.flatnonzero((unit == units[0]) & (labels == label)))
            chosen[members[: min(round(fraction * len(members)), len(members) - 1)]] = True
            continue
        # A draw over the first members, in their order: without groups that of all pictures.
        drawn = generator.permutation(units[np.argsort(firsts[units])])
        total = int(counts[units].sum())
        target = min(round(fraction * total), total - 1)
        cut = _fill(drawn, counts, target)
        chosen[np.isin(unit, cut)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _fill(units: np.ndarray, counts: np.ndarray, target: int) -> list[int]:
    """Units in their order, as long as their pictures are at most ``target``; if none is so small, the smallest."""
    cut: list[int] = []
    taken = 0
    for one in units:
        if taken + counts[one] <= target and len(cut) < len(units) - 1:
            cut.append(int(one))
            taken += int(counts[one])
    if target > 0 and not cut and len(units) > 1:
        cut.append(int(units[counts[units].argmin()]))
    return cut


def _generator(options: DataRecipe, draw: int) -> np.random.Generator:
    """One independent generator per kind of draw, so that one option does not move another's pictures."""
    return np.random.default_rng([options.split_seed, draw])


def _divide(raw: RawData, options: DataRecipe) -> RawData:
    if raw.undivided is None:
        return raw
    whole = raw.undivided
    kept, cut = stratified_split(whole.labels, options.test_fraction, _generator(options, 0), whole.groups)
    return RawData(raw.class_names, whole.take(kept), None, whole.take(cut))


def _select_classes(raw: RawData, choice: str) -> RawData:
    if choice == "all":
        return raw
    ranks = re.fullmatch(r"most-test:(?:(\d+)-)?(\d+)", choice)
    first, last = (int(ranks[1] or 1), int(ranks[2])) if ranks else (0, 0)
    if not 1 <= first < last <= len(raw.class_names):
        raise InputError(
            f'data.classes = {choice!r} is unknown; use "all", "most-test:K" or "most-test:J-K" with ranks up to '
            f"{len(raw.class_names)} and at least two classes"
        )
    test_labels = raw.test.labels if raw.test is not None else np.array([], dtype=np.int64)
    counts = np.bincount(test_labels, minlength=len(raw.class_names))
    kept = np.sort(np.argsort(-counts, kind="stable")[first - 1 : last])
    return keep_classes(raw, kept.tolist())


def keep_classes(raw: RawData, kept: Sequence[int]) -> RawData:
    """The data with some of its classes only, numbered anew in their order."""
    number_of = {int(old): new for new, old in enumerate(kept)}

    def restrict(pictures: LabelledPictures) -> LabelledPictures:
        chosen = pictures.take(np.flatnonzero(np.isin(pictures.labels, list(kept))))
        labels = np.array([number_of[int(v)] for v in chosen.labels], dtype=np.int64)
        return dataclasses.replace(chosen, labels=labels)

    names = tuple(raw.class_names[i] for i in kept)
    return dataclasses.replace(raw.each_part(restrict), class_names=names)


def _copied(raw: RawData) -> np.ndarray:
    """Of every class, how many pictures are copies, of its own or other classes' pictures, that a draw keeps together.

    A group is drawn as a whole, in the class of its first member.
    """
    classes = len(raw.class_names)
    if raw.undivided is None or raw.undivided.groups is None:
        return np.zeros(classes, dtype=np.int64)
    labels = raw.undivided.labels
    firsts = np.unique(raw.undivided.groups, return_index=True)[1]
    return np.bincount(labels, minlength=classes) - np.bincount(labels[firsts], minlength=classes)


def _require_every_class(
    spec: str, split: str, pictures: LabelledPictures, names: tuple[str, ...], copied: Mapping[str, int]
) -> None:
    counts = np.bincount(pictures.labels, minlength=len(names))
    if len(names) < 2:
        raise InputError(f"{spec!r} has {len(names)} class; a classifier needs at least two")
    if (empty := np.flatnonzero(counts == 0)).size:
        name = names[int(empty[0])]
        why, way = "", "add some, or lower the fractions"
        if copied[name]:
            why = f": {copied[name]:,} of its pictures are copies of others, and copies stay in one part of the split"
            way = "remove copies, add pictures, or add --set data.near_duplicates=ignore"
        raise InputError(f"{spec!r}: class {name!r} has zero {split} pictures{why}; {way}")


def _shots(labels: np.ndarray, shots: int, generator: np.random.Generator, names: tuple[str, ...]) -> np.ndarray:
    chosen = []
    for label in range(len(names)):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise InputError(f"data.shots = {shots}, but class {names[label]!r} has {len(members)} training pictures")
        chosen.append(generator.permutation(members)[:shots])
    return np.sort(np.concatenate(chosen))


def _with_label_noise(
    pictures: LabelledPictures, share: float, classes: int, generator: np.random.Generator
) -> LabelledPictures:
    """Give round(share · n) training pictures another class, drawn evenly from the others."""
    labels = pictures.labels.copy()
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    labels[chosen] = (labels[chosen] + generator.integers(1, classes, size=len(chosen))) % classes
    return dataclasses.replace(pictures, labels=labels)
