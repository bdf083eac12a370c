"""A packed model on pictures: which pictures, and how well it does on them. No PyTorch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsb_vit.errors import InputError, shown
from gsb_vit.files import utf8

from .archives import archived_pictures
from .class_names import class_name, class_names
from .datasets import LabelledPictures
from .digests import digest_or_nothing, in_threads, inspect, is_seen, listed, unpack_seen
from .encoded import ArchivedPicture
from .folder import PICTURE_SUFFIXES, survey
from .splits import DataRecipe, keep_classes, load_data, read_raw

BATCH = 64  # pictures that are evaluated together
# What decides how undivided data is split; kept in a packed model's provenance. A model without digests of its training
# pictures is evaluated on what these options leave out.
SPLIT_OPTIONS = ("classes", "label_noise", "shots", "split_seed", "test_fraction", "validation_fraction")
_FRACTIONS = ("label_noise", "test_fraction", "validation_fraction")


def data_name(spec: str) -> str:
    """Return what a model's provenance says of its data: the name of the data set or of the folder, as UTF-8 can."""
    return utf8(spec.partition(":")[0] if ":" in spec else Path(spec).name).decode()


@dataclass(frozen=True)
class Judged:
    """Pictures to judge a model on: which, of how many given, how many of these it has seen (None: unknown).

    ``clauses`` say so; ``left_out`` names pictures that do not decode.
    """

    class_names: tuple[str, ...]
    pictures: LabelledPictures
    given: int
    seen: int | None
    clauses: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What is said of it, in one line."""
        left_out = (f"{self._bad()} {listed(self.left_out)}",) if self.left_out else ()
        return "; ".join((*self.clauses, *left_out))

    @property
    def lines(self) -> list[str]:
        """The same for a person: in several lines where one would have more than 80 cells."""
        from gsb_vit.terminal import COLUMNS, filled, told  # imports rich, which a packed model does not need

        if len(self.line) <= COLUMNS:
            return [self.line]
        first, *others = self.clauses
        lines = [first, *(line for clause in others for line in filled(f"  {clause}"))]
        more = ("…",) if len(self.left_out) > 3 else ()
        return [*lines, *(told(f"  {self._bad()}", *self.left_out[:3], *more) if self.left_out else ())]

    def _bad(self) -> str:
        return f"{len(self.left_out):,} that cannot be used are left out:"


def judged_pictures(
    spec: str,
    provenance: Mapping[str, Any],
    own: Sequence[str] = (),
    *,
    everything: bool = False,
    skip_bad: bool | None = None,
) -> Judged:
    """Return the pictures of a data SPEC to judge a model on: those given that it has not seen.

    Given is the test split of the data, or all of it where it has none. Seen are pictures that the model was trained on
    or its epoch chosen on, known by the digests of their bytes in ``provenance``, whatever their files are called. A
    model of before has no digests: then the name of the data and the options of its split decide. ``everything`` judges
    on all that is given. ``own`` names the model's classes, where its recipe may have left some out.

    ``skip_bad`` leaves out pictures that do not decode; False refuses them before anything is judged, None does not
    look.

    Raises:
        InputError: as :func:`gsb_vit.data.splits.load_data`; all pictures are seen; some do not decode.
    """
    judged = _judged(spec, provenance, own, everything)
    if skip_bad is None:
        return judged
    found = in_threads(inspect, judged.pictures.sources)
    bad = [(source, one.problem) for source, one in zip(judged.pictures.sources, found, strict=True) if one.problem]
    if not bad:
        return judged
    if not skip_bad:
        raise InputError(
            f"{len(bad):,} of {len(found):,} pictures cannot be used: {listed([text for _, text in bad])}; mend or "
            "remove them, or add --skip-bad to leave them out"
        )
    good = np.flatnonzero([one.problem is None for one in found])
    if not len(good):
        raise InputError(f"none of the {len(found):,} pictures can be used: {bad[0][1]}")
    names = tuple(str(source) for source, _ in bad)
    return dataclasses.replace(
        judged,
        pictures=judged.pictures.take(good),
        left_out=names,
    )


def _judged(spec: str, provenance: Mapping[str, Any], own: Sequence[str], everything: bool) -> Judged:
    """As ``judged_pictures``, which do not have to decode."""
    split, own = provenance.get("split"), class_names(own)
    raw = read_raw(spec)
    some = isinstance(split, Mapping) and split.get("classes", "all") != "all" and set(own) < set(raw.class_names)
    moved = tuple(own) != raw.class_names and sorted(own) == sorted(raw.class_names)  # one was added behind the others
    if some or moved:
        raw = keep_classes(raw, [raw.class_names.index(name) for name in own])
    given = raw.test if raw.test is not None else raw.undivided
    if given is None or len(given) == 0:
        raise InputError(f"{spec!r} has no pictures to evaluate on; give a folder with test/ or class folders")
    seen = unpack_seen(provenance)
    if seen is None:
        return _judged_by_name(spec, provenance, raw.class_names, given, everything)
    new = np.array([not is_seen(one, seen) for one in in_threads(digest_or_nothing, given.sources)])
    known = len(given) - int(new.sum())
    text = f"{len(given):,} pictures of {spec}, {known:,} of them seen in training"
    if everything:
        return Judged(raw.class_names, given, len(given), known, (text, "judged on all, the seen ones too"))
    if known == len(given):
        raise InputError(
            f"all {known:,} pictures of {spec!r} were seen in training; give others, or judge on them all the same "
            "with --all"
        )
    kept = given.take(np.flatnonzero(new))
    return Judged(raw.class_names, kept, len(given), known, (text, f"judged on the other {len(kept):,}"))


def _judged_by_name(
    spec: str, provenance: Mapping[str, Any], names: tuple[str, ...], given: LabelledPictures, everything: bool
) -> Judged:
    """The rule of before digests were kept."""
    split, pictures = provenance.get("split"), given
    unknown = "the model does not say which pictures it has seen"
    clauses: tuple[str, ...] = (unknown, f"judged on all {len(given):,} given")
    if isinstance(split, Mapping) and provenance.get("data") == data_name(spec) and not everything:
        splits = load_data(spec, _options(split))
        names, pictures = splits.class_names, splits.test
        kept = (
            f"judged on {len(pictures):,} that its options leave out of {data_name(spec)!r}, if that is the data it was"
        )
        clauses = (unknown, f"{kept} trained on", "export its run again to be sure")
    return Judged(names, pictures, len(given), None, clauses)


def _options(split: Mapping[str, Any]) -> DataRecipe:
    """The options that a model's file says its data was split with. Raises InputError for values that are none."""
    for name in SPLIT_OPTIONS:
        if name in split and not _is_option(name, split[name]):
            raise InputError(
                f"the model's split option {name} = {shown(split[name])} is damaged; export the model again, or judge "
                "on all pictures with --all"
            )
    return DataRecipe(**{name: split[name] for name in SPLIT_OPTIONS if name in split})


def _is_option(name: str, value: Any) -> bool:
    if name == "classes":
        return isinstance(value, str)
    if name in _FRACTIONS:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
    whole = isinstance(value, int) and not isinstance(value, bool)
    return (value is None or (whole and value > 0)) if name == "shots" else whole and value >= 0


def held_out_pictures(spec: str, provenance: Mapping[str, Any]) -> tuple[tuple[str, ...], LabelledPictures]:
    """Return the class names and the pictures of a data SPEC that :func:`judged_pictures` chooses."""
    judged = judged_pictures(spec, provenance)
    return judged.class_names, judged.pictures


def require_same_classes(own: Sequence[str], found: Sequence[str], spec: str) -> None:
    """Raise InputError where the classes of the data are not the model's, in its order."""
    if len(own) != len(found):
        raise InputError(f"{spec!r} has {len(found)} classes, the model {len(own)}; use data with the same classes")
    for mine, other in zip(own, found, strict=True):
        if class_name(mine) != class_name(other):
            raise InputError(f"class {other!r} of {spec!r} is {mine!r} in the model; use data with the same classes")


def find_pictures(paths: Sequence[Path], say: Callable[[str], None] | None = None) -> list[Path | ArchivedPicture]:
    """Return the pictures that paths name: files as they are, folders searched at any depth, in order of their names.

    Of a zip archive its pictures are taken. What a folder or archive holds besides pictures is told to ``say``, one
    line each.

    Raises:
        InputError: a path that does not exist, or a folder or archive without pictures or that cannot be read.
    """
    found: list[Path | ArchivedPicture] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; give pictures, or folders of pictures")
        archived: list[ArchivedPicture] = []
        if path.suffix.lower() == ".zip" and path.is_file():
            archived, inside = archived_pictures(path)
        elif not path.is_dir():
            found.append(path)
            continue
        else:
            inside = survey(path)
        if not inside.pictures:
            raise InputError(
                f"{path}: a folder or archive without pictures{inside.left_aside(', but ')}; give one with "
                f"{', '.join(sorted(PICTURE_SUFFIXES))}"
            )
        if inside.ignored and say is not None:
            for line in inside.lines():
                say(line)
        found += archived or inside.pictures
    return found
