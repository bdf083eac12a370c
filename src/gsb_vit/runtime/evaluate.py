"""How well a packed model does on pictures. No PyTorch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gsb_vit.data.held_out import BATCH, held_out_pictures, require_same_classes
from gsb_vit.decision import evaluation

from .classifier import Classifier


def evaluate_packed(classifier: Classifier, spec: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`gsb_vit.decision.evaluation` says of a packed model on the held-out pictures of a data SPEC.

    Raises:
        InputError: the data cannot be read, its classes are not the model's, or a file is not a picture.
    """
    class_names, pictures = held_out_pictures(spec, provenance)
    require_same_classes(classifier.class_names, class_names, spec)
    logits = logits_of_sources(classifier, pictures.sources)
    return evaluation(logits, pictures.labels, class_names, classifier.decision)


def logits_of_sources(classifier: Classifier, sources: Sequence[Any]) -> np.ndarray:
    """Classify pictures (paths, arrays, Pillow images) in batches: → float32 (n, K)."""
    batches = (sources[start : start + BATCH] for start in range(0, len(sources), BATCH))
    return np.concatenate(
        [classifier.logits(np.stack([classifier.preprocessing(one) for one in batch])) for batch in batches]
    )


def logits_of(classifier: Classifier, pictures: np.ndarray) -> np.ndarray:
    """Classify pictures as ``preprocessing`` makes them, uint8 (n, H, W, 3), in batches: → float32 (n, K)."""
    return np.concatenate([classifier.logits(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH)])
