"""Pictures of no class: which score tells them from known ones, and how many are let through.

    python benchmarks/strangers.py MODEL --data SPEC --strangers SPEC [--classes most-test:21-102] [--json]

Known pictures are those of --data that the packed model has not seen in training. Strangers are the test pictures of
another SPEC, with --classes those of some classes only. For each score: AUROC; and the strangers that are called known
where exactly 5 % of these known pictures are called unknown. With the threshold in the file, which was chosen on
validation pictures: both shares as they came out.
"""

import argparse
import json
from dataclasses import replace

import numpy as np

import gsb_vit
from gsb_vit.data.held_out import judged_pictures
from gsb_vit.data.splits import DataRecipe, load_data
from gsb_vit.decision import SCORES, Decision, area_under_roc, expected_calibration_error, unknown_scores
from gsb_vit.runtime.evaluate import logits_of_sources
from gsb_vit.runtime.packed_file import read

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
    known = logits_of_sources(classifier, judged.pictures.sources)
    others = logits_of_sources(classifier, strangers.sources)
    decision, labels = classifier.decision, judged.pictures.labels
    rows = {
        "known": len(known),
        "strangers": len(others),
        "top1": float((known.argmax(axis=1) == labels).mean()),
        "temperature": decision.temperature,
    }
    for name, one in (("before", Decision()), ("after", decision)):
        probabilities, strange = one.probabilities(known), one.probabilities(others)
        wrong = probabilities.argmax(axis=1) != labels
        rows[f"calibration_error_{name}"] = expected_calibration_error(probabilities, labels)
        rows[f"mean_probability_of_wrong_answers_{name}"] = float(probabilities.max(axis=1)[wrong].mean())
        rows[f"strangers_above_0.9_{name}"] = float((strange.max(axis=1) > 0.9).mean())
    for score in SCORES:
        mine, theirs = (unknown_scores(logits, score, decision.temperature) for logits in (known, others))
        rows[f"{score}_auroc"] = area_under_roc(mine, theirs)
        rows[f"{score}_strangers_accepted"] = float((theirs >= np.quantile(mine, RATE)).mean())
    if decision.unknown is not None:
        rows["file_false_alarms"] = float(decision.is_unknown(known).mean())
        rows["file_strangers_accepted"] = float((~decision.is_unknown(others)).mean())
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for name, value in rows.items():
        print(f"{name.replace('_', ' '):45} {value:.3f}" if isinstance(value, float) else f"{name:45} {value:,}")


if __name__ == "__main__":
    main()
