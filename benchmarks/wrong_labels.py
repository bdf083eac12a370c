"""How well a report finds training pictures with a wrong label, where a share was flipped on purpose.

    gsb-vit train --data SPEC --out RUN --label-noise 0.1 …
    python benchmarks/wrong_labels.py RUN [--data SPEC]

For every stage that kept what it said of its training pictures: how many it suspects, which share of them is flipped
(precision), which share of the flipped ones it suspects (recall), and how often the class that a found one looks like
is the true one. Then precision, which is also recall, of as many of the likeliest pictures as there are flipped labels.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from gsb_vit.data.splits import load_data
from gsb_vit.report.mislabelled import suspects
from gsb_vit.train.confidence import read_confidence
from gsb_vit.train.evaluate import run_data_options
from gsb_vit.train.folder import read_run
from gsb_vit.train.recipe import STAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data")
    options = parser.parse_args()
    spec, recipe = options.data or read_run(options.run)["data"], run_data_options(options.run)
    labels = load_data(spec, recipe).train.labels
    truth = load_data(spec, replace(recipe, label_noise=0.0)).train.labels
    flipped = labels != truth
    print(f"{flipped.sum():,} of {len(labels):,} labels flipped")
    for stage in STAGES:
        probabilities = read_confidence(options.run / stage)
        if probabilities is None:
            continue
        found = suspects(probabilities, labels)
        indices = np.array([one.index for one in found], dtype=int)
        hits = indices[flipped[indices]]
        right = np.mean([one.looks_like == truth[one.index] for one in found if flipped[one.index]]) if len(hits) else 0
        rows = np.arange(len(labels))
        others = probabilities.copy()
        others[rows, labels] = -1
        first = np.argsort(probabilities[rows, labels] / others.max(axis=1), kind="stable")[: flipped.sum()]
        print(
            f"{stage}: {len(found):,} suspects, precision {len(hits) / max(len(found), 1):.2f}, recall "
            f"{len(hits) / flipped.sum():.2f}, true class named {right:.2f}; "
            f"of the {len(first):,} likeliest {flipped[first].mean():.2f} are flipped"
        )


if __name__ == "__main__":
    main()
