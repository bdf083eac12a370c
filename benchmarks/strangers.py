"""Pictures of no class: which score tells them from known ones, and how many are let through.

    python benchmarks/strangers.py MODEL --data SPEC --strangers SPEC [--classes most-test:21-102] [--json]

Known pictures are those of --data that the packed model has not seen in training. Strangers are the test pictures of
another SPEC, with --classes those of some classes only. For each score of unknown_scores.py: AUROC; and the strangers
that are called known where exactly 5 % of these known pictures are called unknown. Statistics of scores are those of
the pictures of --data that the model has seen. Without such pictures only the scores of the file's own kind are told.
With the threshold in the file, which was chosen on validation pictures: both shares as they came out.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from unknown_scores import fitted

import gsb_vit
from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.digests import digest_or_nothing, is_seen, unpack_seen
from gsb_vit.data.held_out import BATCH, judged_pictures
from gsb_vit.data.splits import DataRecipe, load_data
from gsb_vit.decision import SCORES, Decision, area_under_roc, expected_calibration_error, unknown_scores
from gsb_vit.runtime.packed_file import PackedModel, read

RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--strangers", required=True)
    parser.add_argument("--classes", default="all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    packed, classifier = read(options.model), gsb_vit.load(options.model)
    judged = judged_pictures(options.data, packed.provenance, packed.class_names)
    strangers = load_data(options.strangers, replace(DataRecipe(), classes=options.classes)).test
    known_features, known = answers(classifier, judged.pictures.sources)
    other_features, others = answers(classifier, strangers.sources)
    scores = {name: partial(logit_score, name, classifier.decision.temperature) for name in SCORES}
    if len(seen := seen_pictures(options.data, packed)):
        scores = fitted(*answers(classifier, seen.sources), seen.labels, classifier.decision.temperature)
    decision, labels = classifier.decision, judged.pictures.labels
    rows = {
        "known": len(known),
        "strangers": len(others),
        "seen": len(seen),
        "top1": float((known.argmax(axis=1) == labels).mean()),
        "temperature": decision.temperature,
    }
    for name, one in (("before", Decision()), ("after", decision)):
        probabilities, strange = one.probabilities(known), one.probabilities(others)
        wrong = probabilities.argmax(axis=1) != labels
        rows[f"calibration_error_{name}"] = expected_calibration_error(probabilities, labels)
        rows[f"mean_probability_of_wrong_answers_{name}"] = float(probabilities.max(axis=1)[wrong].mean())
        rows[f"strangers_above_0.9_{name}"] = float((strange.max(axis=1) > 0.9).mean())
    for name, score in scores.items():
        mine, theirs = score(known_features, known), score(other_features, others)
        rows[f"{name}_auroc"] = area_under_roc(mine, theirs)
        rows[f"{name}_strangers_accepted"] = float((theirs >= np.quantile(mine, RATE)).mean())
    if decision.unknown is not None:
        rows["file_false_alarms"] = float(decision.is_unknown(known).mean())
        rows["file_strangers_accepted"] = float((~decision.is_unknown(others)).mean())
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for name, value in rows.items():
        print(f"{name.replace('_', ' '):45} {value:.3f}" if isinstance(value, float) else f"{name:45} {value:,}")


def answers(classifier: gsb_vit.Classifier, sources: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Features before the head (n, D) and logits (n, K) of pictures."""
    batches = [list(sources[i : i + BATCH]) for i in range(0, len(sources), BATCH)]
    logits = [classifier.logits(np.stack([classifier.prepare(one) for one in batch])) for batch in batches]
    return np.concatenate([classifier.embed(batch) for batch in batches]), np.concatenate(logits)


def logit_score(name: str, temperature: float, _: np.ndarray, logits: np.ndarray) -> np.ndarray:
    return unknown_scores(logits, name, temperature)


def seen_pictures(spec: str, packed: PackedModel) -> LabelledPictures:
    """The pictures of a SPEC that the model was trained or chosen on, with labels of its classes."""
    parts = load_data(spec, DataRecipe())
    names, seen = parts.class_names, unpack_seen(packed.provenance) or frozenset()
    sources, labels = [], []
    for part in (parts.train, parts.validation, parts.test):
        for source, label in zip(part.sources, part.labels, strict=True):
            if names[label] in packed.class_names and is_seen(digest_or_nothing(source), seen):
                sources.append(source)
                labels.append(packed.class_names.index(names[label]))
    return LabelledPictures(tuple(sources), np.array(labels, dtype=np.int64))


if __name__ == "__main__":
    main()
