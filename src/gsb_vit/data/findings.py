"""What a look at every picture of a folder found: classes and their counts, sizes, colours, copies, contradictions."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsb_vit.terminal import counted, filled, printable, shortened, told

from .balance import RATIO, imbalance
from .class_names import alike
from .datasets import LabelledPictures, RawData, Source
from .digests import Inspection
from .encoded import Encoded
from .likeness import group_copies

_NAME = 24  # cells of a class's name
_CLASSES = 6  # that are listed one by one
_ALIKE, _COMPARED = 0.8, 300  # likeness of names that is told (difflib's ratio), and classes that are compared


@dataclass(frozen=True)
class Findings:
    """All pictures of a data set, part after part, and what was seen of each; ``groups`` (n,) numbers near copies.

    ``raw`` is the data with these groups.
    """

    raw: RawData
    pictures: LabelledPictures
    seen: tuple[Inspection, ...]
    groups: np.ndarray

    def lines(self) -> Iterator[str]:
        """What a person should know of the data before a model is trained on it, a line each."""
        yield from filled(self._classes())
        yield from self._alike()
        yield from self._misspelt()
        if sizes := [one.size for one in self.seen if one.size is not None]:
            grey = sum(one.grey for one in self.seen if one.size is not None)
            yield from filled(f"sizes: {_sizes(sizes)}; {_colours(len(sizes) - grey, grey)}")
        yield from self._copies()

    def _classes(self) -> str:
        names, counts = self.raw.class_names, np.bincount(self.pictures.labels, minlength=len(self.raw.class_names))
        order = np.argsort(-counts, kind="stable")

        def each(chosen: Iterable[int]) -> str:
            return ", ".join(f"{shortened(printable(names[k]), _NAME)} {counts[k]:,}" for k in chosen)

        if len(names) <= _CLASSES:
            return f"{len(names)} classes: {each(range(len(names)))}"
        return f"{len(names)} classes, the largest {each(order[:2])}; the smallest {each(order[-2:])}"

    def _misspelt(self) -> Iterator[str]:
        """A class of few pictures whose name is nearly that of a larger one: perhaps a folder with a misspelt name."""
        names, counts = self.raw.class_names, np.bincount(self.pictures.labels, minlength=len(self.raw.class_names))
        if len(names) > _COMPARED:
            return
        for place in np.argsort(counts, kind="stable").tolist():
            larger = [names[k] for k in np.flatnonzero(counts >= RATIO * counts[place])]
            if near := difflib.get_close_matches(names[place], larger, n=1, cutoff=_ALIKE):
                few, many = (int(counts[k]) for k in (place, names.index(near[0])))
                yield from told(f"class names nearly the same, {few:,} and {many:,} pictures:", names[place], near[0])

    def _alike(self) -> Iterator[str]:
        if groups := list(alike(self.raw.class_names)):
            several = f", {len(groups):,} times" if len(groups) > 1 else ""
            names = " and ".join(shortened(printable(name), _NAME) for name in groups[0][:2])
            text = f"names that read alike: {names}{several}; give them one name if they are one class"
            yield from filled(text)

    def _copies(self) -> Iterator[str]:
        groups = list(self.copies())
        if not groups:
            return
        exact = sum(len(group) - len({self.seen[i].digest for i in group}) for group in groups)
        near = sum(len({self.seen[i].digest for i in group}) - 1 for group in groups)
        kept = "; each stays in one part" if self.raw.undivided is not None else ""
        yield f"copies: {exact:,} exact and {near:,} near, in {counted(len(groups), 'group')}{kept}"
        labels = self.pictures.labels
        odd = [group for group in groups if len(set(labels[group].tolist())) > 1]
        if odd:
            first = odd[0][0]
            other = next(i for i in odd[0] if labels[i] != labels[first])
            times = "once" if len(odd) == 1 else f"{len(odd):,} times"
            contradict = f"labels that contradict: copies in several classes, {times}, as"
            yield from told(contradict, self.name(first), self.name(other))

    def copies(self) -> Iterator[np.ndarray]:
        """The groups of two pictures or more: their places, in order."""
        order = np.argsort(self.groups, kind="stable")
        starts = np.flatnonzero(np.diff(self.groups[order], prepend=-1))
        for part in np.split(order, starts[1:]) if len(order) else ():
            if len(part) > 1:
                yield part

    def name(self, place: int) -> str:
        """A picture's name below the folder."""
        return short_name(self.raw, self.pictures.sources[place])


def find(raw: RawData, seen: Sequence[Inspection], *, group: bool) -> Findings:
    """What was ``seen`` of all pictures of the data, part after part; where ``group``, near copies are looked for."""
    parts = [part for part in (raw.train, raw.validation, raw.test, raw.undivided) if part is not None]
    labels = np.concatenate([part.labels for part in parts])
    pictures = LabelledPictures(tuple(source for part in parts for source in part.sources), labels)
    if not group:
        return Findings(raw, pictures, tuple(seen), np.arange(len(pictures)))
    groups = group_copies([one.hash for one in seen], [one.digest for one in seen])
    rest = iter(np.split(groups, np.cumsum([len(part) for part in parts])[:-1]))
    grouped = raw.each_part(lambda part: dataclasses.replace(part, groups=next(rest)))
    return Findings(grouped, pictures, tuple(seen), groups)


def unequal(labels: np.ndarray, names: Sequence[str], balance: str) -> Iterator[str]:
    """One line where classes have far different numbers of training pictures: what follows from it."""
    if (times := imbalance(labels, len(names))) < RATIO:
        return
    counts = np.bincount(labels, minlength=len(names))
    least, most = (
        f"{shortened(printable(names[k]), _NAME)} {counts[k]:,}" for k in map(int, (counts.argmin(), counts.argmax()))
    )
    follows = (
        "training shows every class equally often (data.balance)"
        if balance == "sampling"
        else "a model may answer with the large classes only; data.balance=sampling shows all equally often"
    )
    yield from filled(f"unequal classes: {most}, {least} training pictures, {times:.1f} times as many; {follows}")


def across(raw: RawData, trained: Sequence[LabelledPictures], judged: LabelledPictures, what: str) -> Iterator[str]:
    """One line where pictures of ``judged`` are near copies of pictures that a model is trained or chosen on."""
    if judged.groups is None:
        return
    homes: dict[int, Source] = {}
    for part in trained:
        homes |= {} if part.groups is None else dict(zip(part.groups.tolist(), part.sources, strict=True))
    near = [i for i, group in enumerate(judged.groups.tolist()) if group in homes]
    if near:
        one, other = judged.sources[near[0]], homes[int(judged.groups[near[0]])]
        flatter = (
            f"near copies of training pictures flatter the model: {len(near):,} of {len(judged):,} {what} pictures, as"
        )
        yield from told(flatter, short_name(raw, one), short_name(raw, other))


def short_name(raw: RawData, source: Source) -> str:
    """A picture's path below the folder it was found in, or as it is."""
    if isinstance(source, np.ndarray):
        return "an array"
    if isinstance(source, Encoded):
        return source.name
    root = raw.contents.root if raw.contents is not None else Path()
    try:
        return str(Path(source).relative_to(root))
    except ValueError:
        return str(source)


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Smallest, largest and middle picture by area, or the one size of all."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    least, middle, most = (f"{w:,} × {h:,}" for w, h in (ordered[0], ordered[len(ordered) // 2], ordered[-1]))
    return least if ordered[0] == ordered[-1] else f"{least} to {most}, half at most {middle}"


def _colours(colour: int, grey: int) -> str:
    if not grey or not colour:
        return "all in colour" if colour else "all grey"
    return f"{colour:,} in colour, {grey:,} grey"
