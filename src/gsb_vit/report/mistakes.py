"""What a model got wrong, picture by picture and class by class, for the report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from gsb_vit.data.datasets import Source
from gsb_vit.decision import Decision
from gsb_vit.metrics import class_figures, frequent_confusions, wilson_interval, worst_classes
from gsb_vit.terminal import printable

from .mislabelled import Suspect

THUMBNAIL = 96  # pixels, the longer side
MOST_THUMBNAILS = 1000  # of about 2 kB; further pictures are named only
CONFUSIONS_SHOWN = 20


def headline(confusion: np.ndarray) -> dict[str, str]:
    """The one number, and how sure it is."""
    hits, n = int(np.trace(confusion)), int(confusion.sum())
    low, high = wilson_interval(hits, n)
    return {
        "value": f"{100 * hits / n:.1f} %",
        "of": f"of {n:,} held-out pictures are named right",
        "interval": f"95 % interval {100 * low:.1f} to {100 * high:.1f} %",
    }


def class_rows(class_names: Sequence[str], confusion: np.ndarray) -> list[dict[str, str]]:
    """Every class that has pictures, the one with the smallest recall first."""
    figures = class_figures(confusion)
    return [
        {
            "name": class_names[k],
            "recall": f"{100 * figures[k].recall:.0f} %",
            "precision": f"{100 * figures[k].precision:.0f} %",
            "n": f"{figures[k].n:,}",
            "width": f"{100 * figures[k].recall:.1f}",
        }
        for k in worst_classes(figures)
    ]


def confusion_rows(class_names: Sequence[str], confusion: np.ndarray) -> list[dict[str, str]]:
    """The most frequent confusions, by name."""
    return [
        {"truth": class_names[i], "answer": class_names[j], "n": f"{n:,} of {int(confusion[i].sum()):,}"}
        for i, j, n in frequent_confusions(confusion, CONFUSIONS_SHOWN)
    ]


def mistakes(
    class_names: Sequence[str],
    sources: Sequence[Source],
    pictures: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    decision: Decision,
) -> list[dict[str, Any]]:
    """All pictures that got a wrong answer, the surest first; ``pictures`` (n, H, W, 3) as the model saw them."""
    probabilities = decision.probabilities(logits)
    answers, sure = logits.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != labels)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")]
    return [
        {
            "image": thumbnail(pictures[index]) if place < MOST_THUMBNAILS else None,
            "name": name_of(sources[index], index),
            "truth": class_names[labels[index]],
            "answer": class_names[answers[index]],
            "probability": f"{100 * sure[index]:.0f} %",
        }
        for place, index in enumerate(map(int, wrong))
    ]


def suspect_rows(
    class_names: Sequence[str], sources: Sequence[Source], pictures: Sequence[np.ndarray], found: Sequence[Suspect]
) -> list[dict[str, Any]]:
    """Training pictures whose label is probably wrong; ``pictures`` are those of the first suspects."""
    return [
        {
            "image": thumbnail(pictures[place]) if place < len(pictures) else None,
            "name": name_of(sources[one.index], one.index),
            "label": class_names[one.label],
            "looks_like": class_names[one.looks_like],
            "label_probability": f"{100 * one.label_probability:.0f} %",
            "other_probability": f"{100 * one.other_probability:.0f} %",
        }
        for place, one in enumerate(found)
    ]


def name_of(source: Source, index: int) -> str:
    """A picture's class folder and file, or its number where it is no file."""
    return printable("/".join(source.parts[-2:])) if isinstance(source, Path) else f"picture {index}"


def thumbnail(pixels: np.ndarray) -> Markup:
    """A JPEG data URI of pixels uint8 (H, W, 3), at most ``THUMBNAIL`` a side."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
