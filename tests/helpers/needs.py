"""What some tests need and a machine may lack. A run says in one line what it left out: tests/conftest.py."""

import re

import pytest
from paths import FLOWERS

SAYS = re.compile(r"(?P<part>.+?): without (?P<lack>.+)")


def skip_without(part, *lacks):
    """Skip the test: this part of the suite cannot be run without these."""
    pytest.skip(f"{part}: without {', '.join(lacks)}")


def needs(part, lack, there):
    """Return a mark that skips what belongs to a part of the suite unless what it needs is there."""
    return pytest.mark.skipif(not there, reason=f"{part}: without {lack}")


needs_flowers = needs("Flowers-102", "../shared/data/flowers-102", FLOWERS.is_dir())


def left_out(skipped):
    """Return one line for (file, reason) of each skipped test: the parts and what they lack, or other reasons by file.

    >>> left_out([("tests/a/test_b.py", "X: without y"), ("tests/a/test_c.py", "X: without z, y")])
    'not run here: X (without y, z)'
    """
    parts = {}
    for file, reason in skipped:
        said = SAYS.fullmatch(reason)
        missing = re.match(r"could not import '([\w.]+)'", reason)
        if said:
            parts.setdefault(said["part"], {}).update(dict.fromkeys(said["lack"].split(", ")))
        elif missing:
            parts.setdefault(file.removeprefix("tests/"), {})[missing[1]] = None
        else:
            parts.setdefault(f"some of {file.removeprefix('tests/')}", {})[f"\0{reason}"] = None
    texts = []
    for part, lacks in sorted(parts.items(), key=lambda one: one[0].lower()):
        text = ", ".join(sorted(lacks))
        texts.append(f"{part} ({text[1:]})" if text.startswith("\0") else f"{part} (without {text})")
    return "not run here: " + ("; ".join(texts) or "nothing")
