"""Every argument of the Python API with values it should not have: an answer, or InputError in one line."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_packed import write_random_packed

import gsb_vit
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError

BAD = {
    "None": None,
    "True": True,
    "zero": 0,
    "minus one": -1,
    "half": 0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "2**31": 2**31,
    "10**400": 10**400,
    "empty text": "",
    "text": "text",
    "NUL": "a\0b",
    "surrogate": "\udcff",
    "long text": "x" * 100_000,
    "bytes": b"bytes",
    "bytes not UTF-8": b"\xff\xfe",
    "bytearray": bytearray(b"a"),
    "list": [],
    "list of None": [None],
    "nested list": [[1, 2], [3]],
    "tuple": (1, 2),
    "dict": {},
    "set": {1},
    "object": object(),
    "class": int,
    "function": len,
    "Path": Path("nowhere"),
    "folder": Path("."),
    "device": "/dev/null",
    "float array": np.zeros((4, 4)),
    "empty array": np.zeros((0, 16, 16, 3), dtype=np.uint8),
    "object array": np.array([None, 1], dtype=object),
    "text array": np.array(["a"]),
    "bool array": np.zeros((16, 16), dtype=bool),
    "scalar array": np.uint8(3),
    "5-D array": np.zeros((1, 1, 16, 16, 3), dtype=np.uint8),
    "numpy integer": np.int64(2),
    "complex": 1j,
    "LAB image": Image.new("LAB", (2, 2)),
    "closed image": Image.new("RGB", (0, 5)),
}


@pytest.fixture(scope="module", params=["reference", "native"])
def engine(request):
    if request.param == "native":
        pytest.importorskip("gsb_vit._native")
    return request.param


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "model.safetensors"
    write_random_packed(
        path, seed=5, image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, mlp_hidden=40, num_classes=3
    )
    return path


@pytest.fixture(scope="module")
def model(path, engine):
    return gsb_vit.load(path, threads=1, engine=engine)


def answers_or_refuses(call):
    try:
        call()
    except InputError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_load(path, engine, value):
    answers_or_refuses(lambda: gsb_vit.load(value, engine=engine))
    answers_or_refuses(lambda: gsb_vit.load(path, engine=value))
    answers_or_refuses(lambda: gsb_vit.load(path, engine=engine, backend=value))
    answers_or_refuses(lambda: gsb_vit.load(path, threads=value, engine=engine))


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_predict_and_logits(model, value):
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    answers_or_refuses(lambda: model.predict(value))
    answers_or_refuses(lambda: model.predict([picture, value]))
    answers_or_refuses(lambda: model.predict(picture, top=value))
    answers_or_refuses(lambda: model.predict(picture, max_pixels=value))
    answers_or_refuses(lambda: model.logits(value))


def test_paths_of_every_kind_are_read(path, engine, tmp_path):
    odd = os.fsencode(tmp_path) + b"/\xff\n[b].safetensors"
    with open(odd, "wb") as file:
        file.write(path.read_bytes())
    for one in (path, str(path), os.fsencode(path), odd, os.fsdecode(odd)):
        assert gsb_vit.load(one, engine=engine).class_names
    os.mkfifo(tmp_path / "pipe")
    for one in (tmp_path / "pipe", "/dev/null", tmp_path):
        with pytest.raises(InputError):
            gsb_vit.load(one, engine=engine)


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_preprocessing(value):
    whole = Preprocessing((8, 8))
    for name in whole.to_json():
        answers_or_refuses(lambda name=name: Preprocessing(**{**vars(whole), name: value}))
        answers_or_refuses(lambda name=name: Preprocessing.from_json({**whole.to_json(), name: value}))
    answers_or_refuses(lambda: Preprocessing.from_json(value))
    answers_or_refuses(lambda: whole(value))


@pytest.mark.parametrize(("name", "length"), list(itertools.product(["size", "mean", "std"], range(5))))
def test_preprocessing_with_numbers_that_are_too_large(name, length):
    for number in (10**400, 1e308, -1e308, 2**63, np.float64(1e300)):
        answers_or_refuses(
            lambda number=number: Preprocessing(**{**vars(Preprocessing((8, 8))), name: [number] * length})
        )
    with pytest.raises(InputError, match="size"):
        Preprocessing((10**6, 10**6))
