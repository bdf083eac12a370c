"""Names of classes: one spelling for each, and those that a reader would take for one another."""

import unicodedata
from collections.abc import Iterable, Iterator


def class_name(text: str) -> str:
    """A class's name as a data set spells it: in Unicode's form C, without spaces around it.

    File systems and archives of macOS write an accent as a letter of its own (form D), others do not: the same folder
    has two spellings. Text of spaces alone stays as it is.
    """
    return unicodedata.normalize("NFC", text).strip() or text


def class_names(texts: Iterable[str]) -> tuple[str, ...]:
    """:func:`class_name` of each."""
    return tuple(map(class_name, texts))


def alike(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Groups of names that differ in case, spaces or Unicode's compatible forms only, as ``Cat`` and ``cat``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        groups.setdefault(" ".join(folded.split()), []).append(name)
    return (tuple(group) for group in groups.values() if len(group) > 1)
