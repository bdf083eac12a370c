"""How well a packed model does on pictures. No PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gsb_vit.data.held_out import BATCH, judged_pictures, require_same_classes
from gsb_vit.decision import evaluation

from .classifier import Classifier


def evaluate_packed(
    classifier: Classifier,
    spec: str,
    provenance: Mapping[str, Any],
    *,
    everything: bool = False,
    skip_bad: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return :func:`gsb_vit.decision.evaluation` of a packed model on those pictures of a SPEC not seen in training.

    ``n_given`` counts the pictures given, ``n_seen`` those of them seen (None: the model does not say); ``everything``
    judges on the seen ones, too. ``skip_bad`` leaves out pictures that do not decode, counted by ``n_left_out``.
    ``say`` gets the lines about it.

    Raises:
        InputError: the data cannot be read, its classes are not the model's, all pictures are seen, or some do not
            decode.
    """
    judged = judged_pictures(spec, provenance, classifier.class_names, everything=everything, skip_bad=skip_bad)
    require_same_classes(classifier.class_names, judged.class_names, spec)
    if say is not None:
        for line in judged.lines:
            say(line)
    logits = logits_of_sources(classifier, judged.pictures.sources)
    found = evaluation(logits, judged.pictures.labels, judged.class_names, classifier.decision)
    return {**found, "n_given": judged.given, "n_seen": judged.seen, "n_left_out": len(judged.left_out)}


def logits_of_sources(classifier: Classifier, sources: Sequence[Any]) -> np.ndarray:
    """Classify pictures (paths, arrays, Pillow images) in batches: → float32 (n, K)."""
    batches = (sources[start : start + BATCH] for start in range(0, len(sources), BATCH))
    return np.concatenate(
        [classifier.logits(np.stack([classifier.prepare(one) for one in batch])) for batch in batches]
    )


def logits_of(classifier: Classifier, pictures: np.ndarray) -> np.ndarray:
    """Classify pictures as ``preprocessing`` makes them, uint8 (n, H, W, 3), in batches: → float32 (n, K)."""
    return np.concatenate([classifier.logits(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)])
