"""A classifier in one line and as a small table, for whoever types its name at a prompt or in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .classifier import Classifier

_SHOWN = 3


def line_card(classifier: Classifier) -> str:
    """Architecture, classes, picture size and engine in one line."""
    return f"<{type(classifier).__name__} {'; '.join(text for _, text in _facts(classifier))}>"


def html_card(classifier: Classifier) -> str:
    """The same as a table of two columns; names of classes are escaped."""
    rows = "".join(f"<tr><th>{escape(what)}</th><td>{escape(text)}</td></tr>" for what, text in _facts(classifier))
    return f"<table><caption>One-bit classifier</caption>{rows}</table>"


def _facts(classifier: Classifier) -> list[tuple[str, str]]:
    a, names = classifier.architecture, classifier.class_names
    rest = len(names) - _SHOWN
    shown = ", ".join(names[: _SHOWN if rest > 1 else len(names)]) + (f" and {rest} more" if rest > 1 else "")
    threads = f", {classifier.threads} thread{'s' * (classifier.threads != 1)}"
    return [
        ("network", f"{a.name}, {a.depth} block{'s' * (a.depth != 1)} of width {a.embed_dim}"),
        ("classes", f"{len(names)} classes ({shown})"),
        ("pictures", f"{a.image_size[0]} × {a.image_size[1]} pixels"),
        ("engine", classifier.backend + (threads if classifier.backend != "reference" else "")),
    ]
