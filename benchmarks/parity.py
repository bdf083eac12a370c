"""Does a packed model answer like the trained model it was made from, on every test picture of a data set?

    python benchmarks/parity.py RUN MODEL [--data SPEC] [--json]

PyTorch runs the trained model (float32), the native engine the packed one; the contract is the same top-1 on 99.9 % of
the pictures. Without --data the run's own data is used; the pictures are its test split. Needs gsb-vit[train].
"""

import argparse
import json
from pathlib import Path

import numpy as np

from gsb_vit.data.stored_split import run_data
from gsb_vit.export.parity import TOP1_AGREEMENT, compare
from gsb_vit.models.trained import load_model
from gsb_vit.train.evaluate import run_data_options

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    trained = load_model(options.run)
    spec = options.data or json.loads((options.run / "run.json").read_text(encoding="utf-8"))["data"]
    test = run_data(options.run, spec, run_data_options(options.run)).test
    parts = []
    for start in range(0, len(test.sources), BATCH):
        pictures = np.stack([trained.preprocessing(source) for source in test.sources[start : start + BATCH]])
        parts.append(compare(trained.model, options.model, pictures, engine="native", traced=1 if start == 0 else 0))
    count, wrong = sum(part.n for part in parts), sum(part.disagreements for part in parts)
    found = {
        "pictures": count,
        "disagreements": wrong,
        "near_ties": sum(part.near_ties for part in parts),
        "equal_logits": sum(part.equal for part in parts),
        "top1_agreement": 1 - wrong / count,
        "max_logit_difference": max(part.max_logit_difference for part in parts),
        "kept": 1 - wrong / count >= TOP1_AGREEMENT,
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"the same answer on {found['top1_agreement']:.3%} of {count:,} test pictures ({wrong} differ, of these")
    print(
        f"{found['near_ties']} near ties); logits equal to the last bit on {found['equal_logits']:,} of them and within"
    )
    print(f"{found['max_logit_difference']:.2g} on all")


if __name__ == "__main__":
    main()
