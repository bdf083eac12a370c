"""The split of a run: which picture was in which part, by digest. Drawn once, kept in the run, and found again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.files import utf8, write_atomically
from gsb_vit.terminal import counted, filled, told

from .balance import resolve
from .class_names import class_names
from .datasets import LabelledPictures, RawData, Source
from .digests import LENGTH, SHORT, Inspection, digest_or_nothing, in_threads, inspect, is_seen, listed, look
from .findings import Findings, across, find, short_name, unequal
from .splits import DataRecipe, DataSplits, load_data, read_raw, split_raw
from .unlabelled import NO_LABEL, choose_unlabelled, read_unlabelled, without_labels

SPLIT_FILE = "split.json"
PARTS = ("train", "validation", "test")
_KIND = f"sha256/{LENGTH}"


@dataclass(frozen=True)
class Part:
    """Pictures of one part in their order: digest, label and name (None for pictures that are no files)."""

    digests: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str | None, ...]


@dataclass(frozen=True)
class StoredSplit:
    """The parts of a run's data; pictures left out, by name, with the reason; and how many others the data had.

    ``taught`` has digests, cut to 8 bytes, of pictures that only a teacher from elsewhere was trained on. ``copies``
    names the groups of near copies that were found. ``balance`` is ``sampling`` where training shows all classes
    equally often, else ``none``. ``unlabelled`` are the pictures without labels.
    """

    class_names: tuple[str, ...]
    parts: dict[str, Part]
    left_out: dict[str, str] = field(default_factory=dict)
    others: int = 0
    taught: tuple[str, ...] = ()
    copies: tuple[tuple[str, ...], ...] = ()
    balance: str = "none"
    unlabelled: Part = field(default_factory=lambda: Part((), (), ()))

    @property
    def seen(self) -> set[str]:
        """Digests of the pictures that training, the choice of an epoch or the teacher's training looked at."""
        return {
            *self.parts["train"].digests,
            *self.parts["validation"].digests,
            *self.taught,
            *self.unlabelled.digests,
        }

    @property
    def tested_on_seen(self) -> int:
        """How many test pictures were seen: 0, or all where there are no others."""
        cut = frozenset(one[: 2 * SHORT] for one in self.seen)
        return sum(is_seen(one, cut) for one in self.parts["test"].digests)

    def write(self, folder: Path) -> None:
        """Write the split into a run's folder, whole or not at all."""
        parts = {name: vars(part) for name, part in self.parts.items()}
        values: dict[str, Any] = {"digest": _KIND, "class_names": self.class_names, **parts}
        values |= {"left_out": self.left_out, "others": self.others, "taught": self.taught, "copies": self.copies}
        values["balance"] = self.balance
        if self.unlabelled.digests:
            values["unlabelled"] = vars(self.unlabelled)
        write_atomically(folder / SPLIT_FILE, utf8(json.dumps(values, ensure_ascii=False) + "\n"))


def read_split(folder: Path) -> StoredSplit | None:
    """The split that a run's folder holds; None for a run of before splits were kept. Raises InputError if damaged."""
    path = folder / SPLIT_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["digest"] != _KIND:
            raise ValueError(f"digests of kind {values['digest']!r}")
        parts = {name: _read_part(values[name], len(values["class_names"])) for name in PARTS}
        rest = (dict(values["left_out"]), int(values["others"]), tuple(values["taught"]))
        copies = tuple(tuple(map(str, group)) for group in values.get("copies", ()))  # older runs looked for none
        balance = values.get("balance", "none")
        if balance not in ("none", "sampling"):
            raise ValueError(f"balance {balance!r}")
        unlabelled = _read_part(values.get("unlabelled", {"digests": [], "labels": [], "names": []}), 0)
        return StoredSplit(tuple(values["class_names"]), parts, *rest, copies, balance, unlabelled)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())}); bring it back from a copy, or remove it if the data "
            "has not changed"
        ) from error


def _read_part(values: dict[str, list[Any]], classes: int) -> Part:
    """A part as a split file has it; without ``classes`` one of pictures without labels."""
    part = Part(tuple(values["digests"]), tuple(values["labels"]), tuple(values["names"]))
    if not len(part.digests) == len(part.labels) == len(part.names):
        raise ValueError("its lists have different lengths")
    if any(len(bytes.fromhex(one)) != LENGTH for one in part.digests):
        raise ValueError("a digest is cut short")
    labels = range(classes) if classes else (NO_LABEL,)
    if any(type(label) is not int or label not in labels for label in part.labels):
        raise ValueError("a label is no class")
    return part


def run_split(path: Path) -> StoredSplit | None:
    """The split of the run that a path (its folder, a stage's, a model file) lies in; None where there is none."""
    for folder in (path, *list(path.parents)[:2]):
        if (folder / SPLIT_FILE).is_file():
            return read_split(folder)
    return None


def run_data(path: Path, spec: str, options: DataRecipe) -> DataSplits:
    """The parts of a run's data as it was trained: by its stored split, else as its options draw them now.

    Raises:
        InputError: as ``load_data``; the data holds none of the run's training or none of its test pictures.
    """
    stored = run_split(path)
    if stored is None:
        return load_data(spec, options)
    return find_split(spec, read_raw(spec), stored, allow_missing=True).data


@dataclass(frozen=True)
class Drawn:
    """A run's data, the split to keep, lines for the user, and what was found in a folder when it was drawn."""

    data: DataSplits
    stored: StoredSplit
    lines: tuple[str, ...]
    findings: Findings | None = None


def draw_split(
    spec: str,
    raw: RawData,
    options: DataRecipe,
    *,
    skip_bad: bool = False,
    taught: frozenset[str] = frozenset(),
    watch: Callable[[int], Callable[[], None]] | None = None,
) -> Drawn:
    """Split data for a new run. Every picture of it is opened and decoded.

    ``watch(n)`` gives what to call after each of n pictures. ``skip_bad`` leaves out pictures that do not decode and
    draws the split of the others. Near copies among pictures that the user gives stay in one part, and what was found
    is told (``options.near_duplicates``). Copies of pictures for training or validation, byte for byte, are taken out
    of the test part, and so are those that the teacher was trained on (``taught``); unless that leaves none, which is
    said.

    Raises:
        InputError: as ``load_data``; pictures that do not decode.
    """
    known: dict[int, Inspection] = {}
    left_out: dict[str, str] = {}
    total = len(_sources(raw))
    findings: Findings | None = None
    if raw.contents is not None:
        sources = _sources(raw)
        found = in_threads(look, sources, watch(len(sources)) if watch is not None else None)
        known = {id(source): one for source, one in zip(sources, found, strict=True)}
        findings = find(raw, found, group=options.near_duplicates == "group")
        raw = findings.raw
    while True:
        data = split_raw(spec, raw, options)
        bad = _inspect(data, known, watch)
        left_out |= bad
        if not bad:
            break
        if not skip_bad:
            problems = listed([bad[name] for name in sorted(bad)])
            raise InputError(
                f"{len(bad):,} of {len(known):,} pictures cannot be used: {problems}; mend or remove "
                "them, or add --skip-bad to leave them out"
            )
        raw = _without(raw, set(bad))
    lines = []
    if left_out:
        lines += _left_out(sorted(left_out))
    data, made, said = _without_copies(raw, data, known, taught)
    lines += said
    copies: tuple[tuple[str, ...], ...] = ()
    balance = resolve(options.balance, data.train.labels, len(data.class_names), own=findings is not None)
    if findings is not None:
        lines += findings.lines()
        lines += unequal(data.train.labels, data.class_names, balance)
        lines += across(raw, [data.train], data.validation, "validation")
        lines += across(raw, [data.train, data.validation], data.test, "test")
        copies = tuple(tuple(str(findings.pictures.sources[i]) for i in group) for group in findings.copies())
    unlabelled = None
    if options.unlabelled:
        parts = (data.train, data.validation, data.test)
        looked_at = [known[id(source)] for part in parts for source in part.sources]
        near = findings is not None and options.near_duplicates == "group"
        unlabelled, digests, bad, said = choose_unlabelled(
            options.unlabelled, looked_at, near=near, skip_bad=skip_bad, watch=watch
        )
        left_out |= bad
        lines += [*said, *(_left_out(sorted(bad)) if bad else ())]
    others = total - sum(len(part.digests) for part in made.values())
    cut = {one[: 2 * SHORT] for part in ("train", "validation") for one in made[part].digests}
    stored = StoredSplit(data.class_names, made, left_out, others, tuple(sorted(taught - cut)), copies, balance)
    if unlabelled is not None:
        names = tuple(str(source) for source in unlabelled.sources)
        stored = dataclasses.replace(stored, unlabelled=Part(tuple(digests), (NO_LABEL,) * len(names), names))
        data = dataclasses.replace(data, unlabelled=unlabelled)
    return Drawn(data, stored, tuple(lines), findings)


def _inspect(
    data: DataSplits, known: dict[int, Inspection], watch: Callable[[int], Callable[[], None]] | None
) -> dict[str, str]:
    """Inspect the pictures of a split that are not ``known``, and name those that cannot be used, with the reason."""
    sources = [source for part in (data.train, data.validation, data.test) for source in part.sources]
    fresh = [source for source in sources if id(source) not in known]
    found = in_threads(inspect, fresh, watch(len(fresh)) if watch is not None and fresh else None)
    known |= {id(source): one for source, one in zip(fresh, found, strict=True)}
    problems = ((source, known[id(source)].problem) for source in sources)
    return {str(source): problem for source, problem in problems if problem is not None}


def _left_out(names: Sequence[str]) -> list[str]:
    """What to say of pictures that cannot be used: how many, and the first three."""
    more = ["…"] if len(names) > 3 else []
    return told(f"{counted(len(names), 'undecodable picture')} left out:", *names[:3], *more)


def _without_copies(
    raw: RawData, data: DataSplits, known: dict[int, Inspection], taught: frozenset[str]
) -> tuple[DataSplits, dict[str, Part], list[str]]:
    """The split without test pictures that are seen, byte for byte, unless that leaves none; its parts; what to say."""
    parts = (data.train, data.validation, data.test)
    made = {name: _part(part, known) for name, part in zip(PARTS, parts, strict=True)}
    seen = {*made["train"].digests, *made["validation"].digests}
    tested = enumerate(made["test"].digests)
    own = np.array([i for i, one in tested if one not in seen and not is_seen(one, taught)], dtype=np.int64)
    what = "copies of pictures for training or validation" + ", or known to the teacher" * bool(taught)
    if not len(own) and len(data.test):
        line = f"all {len(data.test):,} test pictures are {what}; the test says nothing about new pictures"
        return data, made, filled(line)
    if not (copies := len(data.test) - len(own)):
        return data, made, []
    first = data.test.sources[int(np.setdiff1d(np.arange(len(data.test)), own)[0])]
    data = dataclasses.replace(data, test=data.test.take(own))
    made["test"] = _part(data.test, known)
    return data, made, told(f"left out of the test, {what}: {copies:,}, as", short_name(raw, first))


def _without(raw: RawData, names: set[str]) -> RawData:
    def keep(part: LabelledPictures) -> LabelledPictures:
        return part.take(np.array([i for i, one in enumerate(part.sources) if str(one) not in names], dtype=np.int64))

    return raw.each_part(keep)


def _part(pictures: LabelledPictures, known: dict[int, Inspection]) -> Part:
    return Part(
        tuple(known[id(source)].digest for source in pictures.sources),
        tuple(int(label) for label in pictures.labels),
        tuple(None if isinstance(source, np.ndarray) else str(source) for source in pictures.sources),
    )


def find_split(
    spec: str, raw: RawData, stored: StoredSplit, *, allow_missing: bool = False, unlabelled: str = ""
) -> Drawn:
    """Find the pictures of a stored split in data again, by their bytes, wherever they lie in it now.

    Pictures that the split does not name are ignored, and counted. ``allow_missing`` goes on without pictures for
    training or validation that are gone. ``unlabelled``: the folder of the pictures without labels, where they are
    wanted.

    Raises:
        InputError: pictures for training or validation are gone, or all for testing; other classes.
    """
    known, there = set(class_names(stored.class_names)), set(raw.class_names)
    if not known <= there:  # their order may be another: labels are those of the split
        odd = sorted(known ^ there)
        raise InputError(f"{spec!r} has other classes than the run ({listed(odd)}); give the run's own data")
    sources = _sources(raw)
    found = dict(zip(in_threads(digest_or_nothing, sources), sources, strict=True))
    parts, gone = {}, {}
    for name, part in stored.parts.items():
        kept = [i for i, one in enumerate(part.digests) if one in found]
        parts[name] = LabelledPictures(
            tuple(found[part.digests[i]] for i in kept), np.array([part.labels[i] for i in kept], dtype=np.int64)
        )
        gone[name] = [part.names[i] or f"number {i}" for i, one in enumerate(part.digests) if one not in found]
    extra = None
    if unlabelled and stored.unlabelled.digests:
        extra, gone["unlabelled"] = _find_unlabelled(unlabelled, stored.unlabelled)
    if not any(map(len, parts.values())):
        raise InputError(f"{spec!r} holds none of the run's pictures; give the data that the run was trained on")
    whole = {**stored.parts, "unlabelled": stored.unlabelled}
    lines = [
        f"{len(missing):,} of the run's {len(whole[name].digests):,} {_WORDS[name]} pictures are gone or "
        f"changed ({listed(missing)})"
        for name, missing in gone.items()
        if missing
    ]
    if any(gone.get(name) for name in ("train", "validation", "unlabelled")) and not allow_missing:
        raise InputError(f"{'; '.join(lines)}; put them back, or add --allow-missing to go on without them")
    if not len(parts["test"]) or not len(parts["train"]):
        raise InputError(f"{'; '.join(lines)}; put them back")
    if (new := len(sources) - sum(map(len, parts.values())) - stored.others) > 0:
        lines.append(f"{new:,} pictures are new since the run began; they are ignored")
    data = DataSplits(spec, stored.class_names, parts["train"], parts["validation"], parts["test"], extra)
    return Drawn(data, stored, tuple(lines))


def _find_unlabelled(folder: str, part: Part) -> tuple[LabelledPictures, list[str]]:
    """The pictures of a part without labels in a folder, by their bytes, and the names of those that are gone."""
    sources = read_unlabelled(folder).sources
    found = dict(zip(in_threads(digest_or_nothing, sources), sources, strict=True))
    there = [found[one] for one in part.digests if one in found]
    gone = [name or one for name, one in zip(part.names, part.digests, strict=True) if one not in found]
    return without_labels(there), gone


_WORDS = {"train": "training", "validation": "validation", "test": "test", "unlabelled": "unlabelled"}


def _sources(raw: RawData) -> list[Source]:
    parts = (raw.train, raw.validation, raw.test, raw.undivided)
    return [source for part in parts if part is not None for source in part.sources]
