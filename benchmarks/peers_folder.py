"""The folder of docs/peers.md and its cases, made from Flowers-102.

    python benchmarks/peers_folder.py ROOT OUT [--train 48] [--seed 0]

ROOT is the folder of Flowers-102 (``jpg/``, ``imagelabels.mat``). OUT/flowers holds train/ and test/ with the six
classes of most pictures: 48 pictures of each for training, drawn by the seed, all others for the test. OUT/strangers
holds 200 pictures of other classes. OUT/cases holds small folders (12 and 6 pictures a class), each with one thing
wrong:

    corrupt      a JPEG cut in half, and a text file called .jpg
    copies       a training picture that is in test/, too; another saved again, smaller; one in two classes
    imbalanced   three classes with 48, 48 and 5 training pictures, 60 for the test
    phone        a .heic (where pillow-heif is installed) and an .avif among the training pictures
    nested       the pictures of each class in a further folder
    split        trian/ in place of train/
    class        wallflour/ beside wallflower/ in train/: three of its pictures
"""

import argparse
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {51: "petunia", 77: "passion_flower", 46: "wallflower", 73: "water_lily", 89: "watercress", 74: "rose"}
STRANGERS = 200
Parts = Mapping[str, tuple[Sequence[Path], Sequence[Path]]]  # by class: for training, for the test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from scipy.io import loadmat

    labels = loadmat(options.root / "imagelabels.mat")["labels"][0]
    build(options.root / "jpg", labels, options.out, train=options.train, seed=options.seed)
    for folder in sorted([options.out / "flowers", options.out / "strangers", *(options.out / "cases").iterdir()]):
        print(f"{folder}: {sum(path.is_file() for path in folder.rglob('*')):,} files")


def build(pictures: Path, labels: np.ndarray, out: Path, *, train: int = 48, seed: int = 0) -> None:
    """Write everything below ``out``; ``labels`` (n,) are the classes of image_00001.jpg and the next."""
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} exists and is not empty; name another folder")
    generator = np.random.default_rng(seed)
    drawn = {name: generator.permutation(np.flatnonzero(labels == label) + 1) for label, name in CLASSES.items()}
    of_class = {name: [pictures / f"image_{number:05}.jpg" for number in found] for name, found in drawn.items()}
    parts = {name: (found[:train], found[train:]) for name, found in of_class.items()}
    write_parts(out / "flowers", parts)
    others = generator.permutation(np.flatnonzero(~np.isin(labels, list(CLASSES))) + 1)[:STRANGERS]
    copy([pictures / f"image_{number:05}.jpg" for number in others], out / "strangers")
    for case in (corrupt, copies, imbalanced, phone, nested, split, misspelt):
        name = "class" if case is misspelt else case.__name__
        case(out / "cases" / name, {name: (trained[:12], test[:6]) for name, (trained, test) in parts.items()}, parts)


def corrupt(out: Path, few: Parts, _: Parts) -> None:
    write_parts(out, few)
    one, other = sorted((out / "train" / "rose").iterdir())[:2]
    one.write_bytes(one.read_bytes()[: one.stat().st_size // 2])
    other.write_text("this is no picture\n")


def copies(out: Path, few: Parts, _: Parts) -> None:
    write_parts(out, few)
    trained = sorted((out / "train" / "rose").iterdir())
    shutil.copyfile(trained[0], out / "test" / "rose" / "copy.jpg")
    with Image.open(trained[1]) as picture:
        width, height = picture.size
        picture.resize((width * 9 // 10, height * 9 // 10)).save(out / "test" / "rose" / "smaller.jpg", quality=80)
    shutil.copyfile(trained[2], out / "train" / "petunia" / "copy.jpg")


def imbalanced(out: Path, _: Parts, all_parts: Parts) -> None:
    sizes = {"petunia": 48, "passion_flower": 48, "wallflower": 5}
    write_parts(out, {name: (all_parts[name][0][:count], all_parts[name][1][:60]) for name, count in sizes.items()})


def phone(out: Path, few: Parts, _: Parts) -> None:
    write_parts(out, few)
    one, other = sorted((out / "train" / "rose").iterdir())[:2]
    with Image.open(one) as picture:
        picture.save(one.with_suffix(".avif"))
    one.unlink()
    try:
        import pillow_heif
    except ImportError:
        print("phone: no .heic, pillow-heif is not installed")
        return
    with Image.open(other) as picture:
        buffer = io.BytesIO()
        pillow_heif.from_pillow(picture).save(buffer)
        other.with_suffix(".heic").write_bytes(buffer.getvalue())
    other.unlink()


def nested(out: Path, few: Parts, _: Parts) -> None:
    for name, (trained, test) in few.items():
        copy(trained, out / "train" / name / "summer")
        copy(test, out / "test" / name / "summer")


def split(out: Path, few: Parts, _: Parts) -> None:
    write_parts(out, few)
    (out / "train").rename(out / "trian")


def misspelt(out: Path, few: Parts, _: Parts) -> None:
    write_parts(out, few)
    (out / "train" / "wallflour").mkdir()
    for path in sorted((out / "train" / "wallflower").iterdir())[:3]:
        path.rename(out / "train" / "wallflour" / path.name)


def write_parts(out: Path, parts: Parts) -> None:
    for name, (trained, test) in parts.items():
        copy(trained, out / "train" / name)
        copy(test, out / "test" / name)


def copy(paths: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in paths:
        shutil.copyfile(path, folder / path.name)


if __name__ == "__main__":
    main()
