"""How well a class is added to a packed model from a few pictures, without training.

    python benchmarks/add_class.py MODEL --data SPEC --new SPEC [--classes most-test:21-30] [--shots 5 20] [--tries 5]
                                   [--held-out 5]

Old pictures are those of --data that the model has not seen. Each class of --new, with --classes some of them, is added
alone to the model, from pictures of its training part, drawn anew in each try. Told are means over classes and tries:
top-1 on old pictures before and after, the share of the class's own test pictures that get its name, and of these the
share that the file's threshold calls unknown. The last line is the expected calibration error over old and new
pictures, before on the old ones alone.

--held-out N puts N old pictures of each class aside, drawn once. Figures are of the others. Then each class is added
twice: without them, and with them for bias, temperature and threshold.

Features come from the engine, and logits from the rows of the heads as docs/numerics.md says; of the first class they
are compared with those of the engine.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import gsb_vit
from gsb_vit.data.held_out import BATCH, judged_pictures
from gsb_vit.data.splits import DataRecipe, load_data
from gsb_vit.decision import expected_calibration_error
from gsb_vit.runtime.add_class import HeldOut, with_class
from gsb_vit.runtime.packed_file import PackedModel, read, write

F32 = np.float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--new", required=True)
    parser.add_argument("--classes", default="all")
    parser.add_argument("--shots", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--held-out", type=int, default=0, metavar="N")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    packed, classifier = read(options.model), gsb_vit.load(options.model)
    judged = judged_pictures(options.data, packed.provenance, packed.class_names)
    recipe = replace(DataRecipe(), classes=options.classes, validation_fraction=0.0)
    new = load_data(options.new, recipe)
    chosen = [k for k, name in enumerate(new.class_names) if name not in packed.class_names]
    aside, kept = put_aside(judged.pictures.labels, options.held_out)
    old, labels = features_of(classifier, judged.pictures.sources), judged.pictures.labels
    held_out = HeldOut(old[aside], head_logits(packed, old[aside]), labels[aside]) if len(aside) else None
    old, labels = old[kept], labels[kept]
    taught, tested = (features_of(classifier, part.sources) for part in (new.train, new.test))
    rows = []
    cases = [(shots, some) for shots in options.shots for some in ([None] if held_out is None else [None, held_out])]
    for shots, some_aside in cases:
        found = []
        for label in chosen:
            mine, own = np.flatnonzero(new.train.labels == label), tested[new.test.labels == label]
            for number in range(options.tries):
                picked = np.random.default_rng([number, label]).permutation(mine)[:shots]
                some = taught[picked]
                made = with_class(packed, new.class_names[label], some, head_logits(packed, some), (), some_aside)
                found.append(figures(packed, made, old, labels, own))
                if len(found) == 1 and not rows:
                    check(made, new.test.sources[:BATCH], tested[:BATCH])
        mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        counts = {"shots": shots, "classes": len(chosen), "tries": options.tries, "old_pictures": len(old)}
        rows.append({**counts, "held_out": 0 if some_aside is None else len(aside), **mean})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        for name, value in row.items():
            print(f"{name.replace('_', ' '):45} {value:.3f}" if isinstance(value, float) else f"{name:45} {value:,}")


def put_aside(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of ``count`` pictures of each class, drawn with a fixed seed, and of the others."""
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = [order[labels[order] == label][:count] for label in np.unique(labels)]
    aside = np.sort(np.concatenate(chosen))
    return aside, np.setdiff1d(np.arange(len(labels)), aside)


def features_of(classifier: gsb_vit.Classifier, sources: tuple) -> np.ndarray:
    return np.concatenate([classifier.embed(list(sources[i : i + BATCH])) for i in range(0, len(sources), BATCH)])


def head_logits(packed: PackedModel, features: np.ndarray) -> np.ndarray:
    """Logits (n, K) of features (n, heads · C), as the runtime computes them."""
    parts = []
    for index, read_by in enumerate(np.split(features, len(packed.architecture.heads), axis=1)):
        tensor = {n: packed[f"heads.{index}.{n}"] for n in ("shift", "input_scale", "weight", "scale", "bias")}
        levels = np.clip(np.rint((read_by + tensor["shift"]) / tensor["input_scale"]), -128, 127)
        sums = levels.astype(np.float64) @ tensor["weight"].T.astype(np.float64)
        parts.append(sums.astype(F32) * tensor["scale"] + tensor["bias"])
    return parts[0] if len(parts) == 1 else (parts[0] + parts[1]) * F32(0.5)


def figures(
    before: PackedModel, after: PackedModel, old: np.ndarray, labels: np.ndarray, own: np.ndarray
) -> dict[str, float]:
    decision, now_decision, last = before.decision, after.decision, len(before.class_names)
    was, now, new = head_logits(before, old), head_logits(after, old), head_logits(after, own)
    both, truth = np.concatenate([now, new]), np.concatenate([labels, np.full(len(new), last)])
    found = {
        "old_top1_before": float((was.argmax(axis=1) == labels).mean()),
        "old_top1_after": float((now.argmax(axis=1) == labels).mean()),
        "old_called_new": float((now.argmax(axis=1) == last).mean()),
        "new_recall": float((new.argmax(axis=1) == last).mean()),
        "calibration_error_before": expected_calibration_error(decision.probabilities(was), labels),
        "calibration_error_after": expected_calibration_error(now_decision.probabilities(both), truth),
    }
    if decision.unknown is not None:
        found["old_called_unknown_before"] = float(decision.is_unknown(was).mean())
    if now_decision.unknown is not None:
        found["old_called_unknown_after"] = float(now_decision.is_unknown(now).mean())
        found["new_called_unknown"] = float(now_decision.is_unknown(new).mean())
    return found


def check(model: PackedModel, sources: tuple, features: np.ndarray) -> None:
    """Stop where the engine has other logits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write(path, model)
        classifier = gsb_vit.load(path)
        logits = classifier.logits(np.stack([classifier.prepare(one) for one in sources]))
    if not np.array_equal(logits, head_logits(model, features)):
        raise SystemExit("the engine has other logits than the rows of the heads give")


if __name__ == "__main__":
    main()
