"""Data: SPECs, splits, draws and errors."""

import dataclasses
import gzip
import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from needs import needs, needs_flowers
from paths import FLOWERS
from PIL import Image

pytest.importorskip("timm")

from gsb_vit.data.datasets import read_flowers102
from gsb_vit.data.splits import DataRecipe, load_data, stratified_split
from gsb_vit.errors import InputError

torchvision = pytest.importorskip("torchvision")
OPTIONS = DataRecipe()


def write_pictures(folder: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (6, 5), (i, 0, 0)).save(folder / name / f"{i}.png")
    return folder


def names(pictures) -> set[str]:
    return {str(p) for p in pictures.sources}


def test_digits_are_split_into_disjoint_stratified_parts() -> None:
    data = load_data("digits", OPTIONS)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert abs(len(data.test) - 0.3 * 1797) < 5
    assert set(np.bincount(data.test.labels)) <= {52, 53, 54, 55}
    again = load_data("digits", OPTIONS)
    assert all(np.array_equal(a, b) for a, b in zip(data.train.sources, again.train.sources, strict=True))
    other = load_data("digits", dataclasses.replace(OPTIONS, split_seed=1))
    assert not all(np.array_equal(a, b) for a, b in zip(data.test.sources, other.test.sources, strict=False))


def test_stratified_split_cuts_the_same_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    kept, cut = stratified_split(labels, 0.5, np.random.default_rng(0))
    assert np.bincount(labels[cut], minlength=3).tolist() == [5, 10, 0]
    assert sorted([*kept, *cut]) == list(range(31))


def test_a_folder_is_split_and_nothing_is_in_two_parts(tmp_path: Path) -> None:
    data = load_data(str(write_pictures(tmp_path, {"b": 20, "a": 10})), OPTIONS)
    assert data.class_names == ("a", "b")
    assert np.bincount(data.test.labels).tolist() == [3, 6]
    assert not names(data.train) & names(data.test) and not names(data.train) & names(data.validation)
    assert all(
        Path(p).parent.name == data.class_names[label]
        for p, label in zip(data.test.sources, data.test.labels, strict=True)
    )


@pytest.mark.parametrize("held_out", [("test",), ("val",), ("val", "test")])
def test_a_folder_with_its_own_splits_keeps_them(tmp_path: Path, held_out: tuple[str, ...]) -> None:
    for split in ("train", *held_out):
        write_pictures(tmp_path / split, {"a": 8, "b": 8})
    data = load_data(str(tmp_path), dataclasses.replace(OPTIONS, validation_fraction=0.25))
    assert {p.parent.parent.name for p in data.test.sources} == {held_out[-1]}
    assert {p.parent.parent.name for p in data.validation.sources} == ({"val"} if len(held_out) == 2 else {"train"})
    assert len(data.train) == (16 if len(held_out) == 2 else 12)


def test_shots_and_label_noise_are_exact_and_seeded(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, shots=5, validation_fraction=0.0)
    data = load_data("digits", options)
    assert np.bincount(data.train.labels).tolist() == [5] * 10
    clean = load_data("digits", OPTIONS)
    noisy = load_data("digits", dataclasses.replace(OPTIONS, label_noise=0.4))
    assert int((clean.train.labels != noisy.train.labels).sum()) == round(0.4 * len(clean.train))
    assert np.array_equal(clean.test.labels, noisy.test.labels)
    assert np.array_equal(clean.validation.labels, noisy.validation.labels)
    with pytest.raises(InputError, match=r"data\.shots"):
        load_data(str(write_pictures(tmp_path, {"a": 4, "b": 4})), options)


def test_most_test_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"a": 3, "b": 3, "c": 3})
    write_pictures(tmp_path / "test", {"a": 1, "b": 3, "c": 2})
    options = dataclasses.replace(OPTIONS, classes="most-test:2", validation_fraction=0.0)
    data = load_data(str(tmp_path), options)
    assert data.class_names == ("b", "c") and len(data.test) == 5 and set(data.train.labels) == {0, 1}
    rest = load_data(str(tmp_path), dataclasses.replace(options, classes="most-test:2-3"))
    assert rest.class_names == ("a", "c") and len(rest.test) == 3
    for unknown in ("most-test:4", "most-test:1", "most-test:2-2", "most-test:0-2", "most:2"):
        with pytest.raises(InputError, match="most-test"):
            load_data(str(tmp_path), dataclasses.replace(options, classes=unknown))


def test_fashion_mnist_reads_plain_and_gzipped_idx(tmp_path: Path) -> None:
    for prefix, count in (("train", 40), ("t10k", 20)):
        pictures = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2)
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = struct.pack(">4i", 0x803, count, 2, 2) + pictures.tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels.tobytes())
    data = load_data(f"fashion-mnist:{tmp_path}", dataclasses.replace(OPTIONS, validation_fraction=0.0))
    assert len(data.train) == 40 and data.test.sources[1].tolist() == [[4, 5], [6, 7]] and data.test.labels[11] == 1
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x14")
    with pytest.raises(InputError, match="cut short"):
        load_data(f"fashion-mnist:{tmp_path}", OPTIONS)


def test_chaoyang_reads_its_lists(tmp_path: Path) -> None:
    for split, count in (("train", 12), ("test", 4)):
        entries = [{"name": f"{split}/{i}.JPG", "label": i % 4} for i in range(count)]
        (tmp_path / f"{split}.json").write_text(json.dumps(entries))
    data = load_data(f"chaoyang:{tmp_path}", dataclasses.replace(OPTIONS, validation_fraction=0.34))
    assert data.class_names[2] == "adenocarcinoma" and data.test.sources[3] == tmp_path / "test" / "3.JPG"
    assert np.bincount(data.validation.labels).tolist() == [1, 1, 1, 1]


def test_cifar_reads_torchvision_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="CIFAR10 under"):
        load_data(f"cifar10:{tmp_path}", OPTIONS)
    # torchvision knows the checksums of the real files; these have its layout and 20 grey pictures each.
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    labels = list(range(10)) * 2
    pictures = np.repeat(np.array(labels, np.uint8)[:, None], 3072, axis=1)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pictures, "labels": labels}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    data = load_data(f"cifar10:{tmp_path}", dataclasses.replace(OPTIONS, validation_fraction=0.2))
    assert list(data.class_names) == names
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 20)
    source = np.asarray(data.test.sources[3])
    assert source.shape == (32, 32, 3) and (source == data.test.labels[3]).all()


@needs_flowers
def test_flowers_follow_the_paper() -> None:
    data = load_data(f"flowers102:{FLOWERS.parent}", dataclasses.replace(OPTIONS, validation_fraction=0.0))
    assert (len(data.train), len(data.test), len(data.class_names)) == (2040, 6149, 102)
    assert set(np.bincount(data.train.labels)) == {20}
    twenty = load_data(f"flowers102:{FLOWERS.parent}", dataclasses.replace(OPTIONS, classes="most-test:20"))
    assert len(twenty.train) + len(twenty.validation) == 400 and len(twenty.test) == 2661


@pytest.mark.parametrize("given", ["", "flowers-102", "flowers-102/.", "flowers-102/flowers-102"])
def test_flowers_may_be_given_by_either_folder(tmp_path: Path, monkeypatch, given: str) -> None:
    """The folder above flowers-102/ is read, be it given or the folder itself, by any name that leads there."""
    (tmp_path / "flowers-102").mkdir()
    if given.endswith("flowers-102/flowers-102"):  # a folder of that name that holds the data in another one
        (tmp_path / given).mkdir()
        given = "flowers-102"
        expected = tmp_path / given
    else:
        expected = tmp_path
    asked = []

    class Flowers102:
        def __init__(self, root, split, download):
            asked.append(Path(root))
            self._image_files, self._labels = [Path("a.jpg")], [0]

    monkeypatch.setattr(torchvision.datasets, "Flowers102", Flowers102)
    read_flowers102(tmp_path / given)
    assert asked == 3 * [expected]


def test_unusable_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest: digits"):
        load_data("digit", OPTIONS)
    with pytest.raises(InputError, match="no folder"):
        load_data(f"flowers102:{tmp_path / 'nothing'}", OPTIONS)
    with pytest.raises(InputError, match=r"no Flowers-102"):
        load_data(f"flowers102:{tmp_path}", OPTIONS)
    with pytest.raises(InputError, match="0 class folders"):
        load_data(str(tmp_path), OPTIONS)
    write_pictures(tmp_path, {"one": 3})
    with pytest.raises(InputError, match="1 class folders"):
        load_data(str(tmp_path), OPTIONS)
    (tmp_path / "two").mkdir()
    with pytest.raises(InputError, match=r"two holds zero pictures"):
        load_data(str(tmp_path), OPTIONS)


def test_splits_with_different_classes_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"a": 2, "b": 2})
    write_pictures(tmp_path / "test", {"a": 2, "c": 2})
    with pytest.raises(
        InputError, match=r"train has the class 'b' and .*test has not; make the classes of both the same"
    ):
        load_data(str(tmp_path), OPTIONS)


def test_a_misspelt_class_of_one_part_is_named_with_its_like(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"rose": 2, "wallflower": 2, "wallflour": 1})
    write_pictures(tmp_path / "test", {"rose": 2, "wallflower": 2})
    with pytest.raises(InputError) as refused:
        load_data(str(tmp_path), OPTIONS)
    train, test = tmp_path / "train", tmp_path / "test"
    assert str(refused.value).startswith(
        f"{train} has the class 'wallflour' and {test} has not (it has 'wallflower'); make the classes"
    )


@needs("unreadable folders", "a user other than root", hasattr(os, "geteuid") and os.geteuid() != 0)
def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(InputError, match="cannot read the folder"):
            load_data(str(tmp_path), OPTIONS)
    finally:
        (tmp_path / "a").chmod(0o755)
