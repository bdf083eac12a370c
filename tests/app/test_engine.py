"""engine.js in Node: the bits of the native engine and of the preprocessing in Python, and refusals in words."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deciding import write_deciding
from node import run_script
from PIL import Image
from random_packed import TINY, random_packed, random_pictures
from selftest_models import write_models

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import SCORES, Decision, Unknown
from gsb_vit.metrics import softmax
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.reference import ReferenceModel

SCRIPT = Path(__file__).with_name("run_engine.mjs")
SHAPES = ("oblong_full_bias", "deit_rows", "one_group", "three_convolutions_mean", "one_bit_convolutions")


@pytest.fixture
def node(tmp_path):
    return lambda task, **job: run_script(SCRIPT, {"task": task, **job}, tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_answers_are_those_of_the_reference(models, name, node, tmp_path):
    path, pixels, logits = models[name]
    said = node("logits", model=path, pixels=pixels, out=tmp_path / "logits")
    assert (tmp_path / "logits").read_bytes() == logits.read_bytes()
    model = packed_file.read(path)
    architecture = model.architecture
    assert (said["height"], said["width"]) == architecture.image_size
    assert (said["grid"]["rows"], said["grid"]["columns"]) == architecture.grid
    assert said["prefixTokens"] == architecture.prefix_tokens
    assert tuple(said["classNames"]) == model.class_names
    first = softmax(np.frombuffer(logits.read_bytes(), np.float32).reshape(-1, architecture.num_classes)[:1])[0]
    best = np.argsort(-first, kind="stable")[:3]
    assert [answer["name"] for answer in said["top"]] == [model.class_names[k] for k in best]
    assert [answer["probability"] for answer in said["top"]] == pytest.approx(first[best], rel=1e-12)


def test_probabilities_have_the_files_temperature(node, tmp_path):
    model = random_packed(seed=1, **TINY)
    pixels = random_pictures(model.architecture, 1, seed=0)
    pixels.tofile(tmp_path / "pixels")
    decision = Decision(2.5, Unknown("energy", 0.0, 0.05))
    packed_file.write(tmp_path / "model", replace(model, decision=decision))
    said = node("logits", model=tmp_path / "model", pixels=tmp_path / "pixels", out=tmp_path / "logits")
    logits = ReferenceModel(model).logits(pixels)
    assert (tmp_path / "logits").read_bytes() == logits.tobytes()
    expected = np.sort(decision.probabilities(logits)[0])[::-1][:3]
    assert [answer["probability"] for answer in said["top"]] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_what_is_none_of_the_classes_gets_no_answer_as_in_python(node, tmp_path, score):
    decision, pictures, logits, unknown = write_deciding(tmp_path / "model", score)
    pictures.tofile(tmp_path / "pixels")
    job = {"model": tmp_path / "model", "pixels": tmp_path / "pixels", "top": 1}
    found = node("decide", unknown=True, **job)
    assert found["threshold"] == decision.unknown.threshold
    assert [not answers for answers in found["said"]] == unknown.tolist()
    said = node("decide", unknown=False, **job)["said"]
    assert [answers[0]["name"] for answers in said] == [f"class {k}" for k in logits.argmax(axis=1)]


def test_wrong_calls_are_refused_in_words(node, tmp_path):
    packed_file.write(tmp_path / "model", random_packed(seed=1, **TINY))
    said = node("misuse", model=tmp_path / "model")
    assert said["threshold"].startswith("ModelError: the model has no threshold for unknown pictures; export its run")
    assert said["top"] == "RangeError: top 0 must be a whole number of at least 1"
    assert said["picture"] == "RangeError: 12 bytes are no grey, RGB or RGBA picture of -2 × -2 pixels"
    assert said["logits"] == "RangeError: 2 numbers are no logits of 4 classes"
    assert said["freed"] == "ModelError: the model was freed; load it again"


def test_masks_are_those_of_the_reference(models, node, tmp_path):
    path, pixels, _ = models["two_heads"]
    model = packed_file.read(path)
    height, width = model.architecture.image_size
    picture = np.frombuffer(pixels.read_bytes(), np.uint8)[: height * width * 3].reshape(height, width, 3)
    picture.tofile(tmp_path / "picture")
    node("masks", model=path, pixels=tmp_path / "picture", out=tmp_path / "masks")
    trace = ReferenceModel(model).trace(picture)
    expected = np.stack([trace[f"blocks.{i}.attn.attention_masks"] for i in range(model.architecture.depth)])
    assert np.array_equal(np.fromfile(tmp_path / "masks", np.uint8).reshape(expected.shape), expected)


def test_a_call_after_one_that_overflowed_is_right(node, tmp_path):
    model = random_packed(seed=7, **TINY)
    tensors = dict(model.tensors)
    tensors["patch_embed.scale"] = np.full_like(tensors["patch_embed.scale"], 3e38)  # a black picture stays finite
    packed_file.write(tmp_path / "m", replace(model, tensors=tensors))
    bad = random_pictures(model.architecture, 1)[0]
    good = np.zeros_like(bad)
    good.tofile(tmp_path / "good")
    bad.tofile(tmp_path / "bad")
    said = node("recover", model=tmp_path / "m", good=tmp_path / "good", bad=tmp_path / "bad")
    assert said["text"] == "ModelError: the model's numbers overflow; export it again, or give another model"
    assert said["before"] == said["after"]
    assert said["short"].startswith("RangeError: 7 bytes are no pictures")


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", r"cannot be read \(has 0 bytes\)"), (b"PNG" * 9, "its header is longer than the file")],
)
def test_what_is_no_model_is_refused_in_words(node, tmp_path, data, says):
    (tmp_path / "m").write_bytes(data)

    assert re.match(f"ModelError: .*{says}", node("refuse", model=tmp_path / "m"))


PREPARED = (  # width, height of the picture; the model's height and width; resize, filter, share that is kept
    (500, 375, (224, 224), "crop", "bicubic", 0.9),
    (64, 64, (64, 64), "crop", "bicubic", 1.0),
    (64, 64, (64, 64), "crop", "bicubic", 0.875),
    (33, 70, (48, 32), "squash", "bilinear", 1.0),
    (70, 33, (48, 32), "squash", "bicubic", 1.0),
    (33, 70, (48, 32), "crop", "bilinear", 0.7),
    (1000, 3, (16, 16), "crop", "bicubic", 1.0),
    (1, 1, (8, 8), "crop", "bicubic", 1.0),
    (9, 7, (32, 32), "crop", "nearest", 0.83),
    (333, 77, (24, 16), "squash", "nearest", 1.0),
)


@pytest.mark.parametrize(("width", "height", "size", "resize", "interpolation", "ratio"), PREPARED)
def test_a_picture_is_prepared_as_in_python(node, tmp_path, width, height, size, resize, interpolation, ratio):
    preprocessing = Preprocessing(size=size, resize=resize, interpolation=interpolation, crop_ratio=ratio)
    model = random_packed(seed=1, **dict(TINY, image_size=size))
    packed_file.write(tmp_path / "m", replace(model, preprocessing=preprocessing))
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if width % 2 == 0:
        picture[..., 3] = 255
    picture.tofile(tmp_path / "rgba")
    node("prepare", model=tmp_path / "m", rgba=tmp_path / "rgba", width=width, height=height, out=tmp_path / "out")
    found = np.fromfile(tmp_path / "out", np.uint8).reshape(*size, 3)
    assert np.array_equal(found, preprocessing(Image.fromarray(picture)))
