"""Pictures without labels: a teacher says what is in them, and the student learns from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gsb_vit.errors import InputError
from gsb_vit.terminal import filled

from .datasets import LabelledPictures, Source, is_folder
from .digests import Inspection, in_threads, listed, look
from .folder import survey
from .likeness import group_copies

NO_LABEL = -1  # of a picture whose class nobody said


def read_unlabelled(folder: str) -> LabelledPictures:
    """All pictures below a folder, at any depth, without labels.

    Raises:
        InputError: there is no such folder, it cannot be read, or it holds zero pictures.
    """
    root = Path(folder)
    if not is_folder(root):
        raise InputError(f"no folder {folder!r} for data.unlabelled; give a folder of pictures, in any arrangement")
    found = survey(root)
    if not found.pictures:
        raise InputError(f"{folder} holds zero pictures to learn from{found.left_aside('; ignored: ')}")
    return without_labels(found.pictures)


def without_labels(sources: Sequence[Source]) -> LabelledPictures:
    """Pictures (n,) whose labels are all ``NO_LABEL``."""
    return LabelledPictures(tuple(sources), np.full(len(sources), NO_LABEL, dtype=np.int64))


def choose_unlabelled(
    folder: str,
    parts: Sequence[Inspection],
    *,
    near: bool,
    skip_bad: bool = False,
    watch: Callable[[int], Callable[[], None]] | None = None,
) -> tuple[LabelledPictures, list[str], dict[str, str], list[str]]:
    """The pictures of a folder that are none of the labelled ones: pictures, digests, what is left out, what to say.

    ``parts`` are the labelled pictures of all parts of the split, as they were looked at. A test picture that the
    student had seen without its label would be no test. So copies of any of them are left out, byte for byte, and, if
    ``near``, near copies, too (``likeness``). Of equal pictures one is kept.

    Raises:
        InputError: as ``read_unlabelled``; pictures that do not decode, unless ``skip_bad``; none is left.
    """
    pictures = read_unlabelled(folder)
    seen = in_threads(look, pictures.sources, watch(len(pictures)) if watch is not None else None)
    found = list(zip(pictures.sources, seen, strict=True))
    bad = {str(source): one.problem for source, one in found if one.problem is not None}
    if bad and not skip_bad:
        raise InputError(
            f"{len(bad):,} of {len(pictures):,} unlabelled pictures cannot be used: {listed(sorted(bad.values()))}; "
            "mend or remove them, or add --skip-bad to leave them out"
        )
    good = [(source, one) for source, one in found if one.problem is None]
    everything = [*parts, *(one for _, one in good)]
    groups = group_copies([one.hash if near else None for one in everything], [one.digest for one in everything])
    taken = set(groups[: len(parts)].tolist())
    kept, digests = [], set()
    for (source, one), group in zip(good, groups[len(parts) :].tolist(), strict=True):
        if group not in taken and one.digest not in digests:
            kept.append((source, one.digest))
            digests.add(one.digest)
    if not kept:
        raise InputError(
            f"all {len(good):,} pictures in {folder} are copies of labelled ones; leave data.unlabelled out"
        )
    lines = [f"{folder}: {len(kept):,} unlabelled pictures for the student, which the teacher names"]
    if copies := len(good) - len(kept):
        lines += filled(
            f"{copies:,} unlabelled pictures are copies of labelled ones or of each other; they are left out"
        )
    return without_labels([source for source, _ in kept]), [one for _, one in kept], bad, lines
