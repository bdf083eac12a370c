"""What the report says of mistakes, classes and labels: every mistake is there, the figures are those of the logits."""

import re
from pathlib import Path

import numpy as np
import pytest
from random_packed import random_packed, random_pictures

pytest.importorskip("jinja2")

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.decision import Decision, Unknown
from gsb_vit.errors import InputError
from gsb_vit.metrics import confusion_matrix
from gsb_vit.report import mistakes as module
from gsb_vit.report.mislabelled import suspects
from gsb_vit.report.mistakes import class_rows, confusion_rows, headline, mistakes, name_of
from gsb_vit.report.page import Judged, Trained, write_report
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.reference import ReferenceModel

SHAPE = dict(image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, mlp_hidden=40, num_classes=3)
NAMES = ("ant & co", "bee", "a class with quite a long name")


@pytest.fixture
def judged(tmp_path):
    """A packed model, held-out pictures, and the model's answers."""
    model = random_packed(seed=2, **SHAPE)
    packed_file.write(tmp_path / "model.safetensors", model)
    pictures = random_pictures(model.architecture, 30, seed=1)
    labels = np.arange(30) % 3
    return tmp_path, model, LabelledPictures(tuple(pictures), labels), ReferenceModel(model).logits(pictures)


def test_every_mistake_is_in_the_page_of_a_packed_model(judged):
    folder, _, test, logits = judged
    path = write_report(None, packed=folder / "model.safetensors", test=test, out=folder / "x.html", engine="reference")
    text = path.read_text(encoding="utf-8")
    wrong = np.flatnonzero(logits.argmax(axis=1) != test.labels)
    assert re.findall(r'class="file">picture (\d+)<', text) and set(
        map(int, re.findall(r'class="file">picture (\d+)<', text))
    ) == set(wrong.tolist())
    assert f"All {len(wrong)} mistakes" in text
    assert f"{100 * (1 - len(wrong) / 30):.1f} %" in text and "95 % interval" in text
    assert "<h2>Training</h2>" not in text and "wrong label" not in text and "Recipe" not in text
    assert "Superposed attention" in text and "not calibrated" in text


def test_a_model_that_cannot_be_packed_has_a_page_without_masks_and_costs(judged):
    folder, model, test, logits = judged
    decision = Decision(2.0, Unknown("max_logit", float(np.median(logits.max(axis=1))), 0.05))
    given = Judged(NAMES, model.preprocessing, decision, logits)
    path = write_report(None, packed=None, judged=given, test=test, out=folder / "x.html")
    text = path.read_text(encoding="utf-8")
    assert "ant &amp; co" in text and "Superposed attention" not in text and "Size and speed" not in text
    assert "temperature 2" in text and "rejects 50.0 %" in text
    with pytest.raises(InputError, match="needs a packed model"):
        write_report(None, packed=None, test=test, out=folder / "y.html")


def test_suspects_are_shown_with_label_and_likely_class(judged):
    folder, _, test, _ = judged
    probabilities = np.full((30, 3), 0.05)
    probabilities[np.arange(30), test.labels] = 0.9
    probabilities[7] = [0.93, 0.05, 0.02]  # its label is 1
    given = Trained(test, probabilities)
    options = dict(packed=folder / "model.safetensors", test=test, out=folder / "x.html", engine="reference")
    text = write_report(None, trained=given, **options).read_text(encoding="utf-8")
    section = text[text.index("may have a wrong label") :]
    assert "labelled <b>class 1</b> 5 %<br>looks like <b>class 0</b> 93 %" in section and "picture 7<" in section
    clean = np.where(np.arange(3) == test.labels[:, None], 0.9, 0.05)
    assert "came to look like its class" in write_report(None, trained=Trained(test, clean), **options).read_text()


def test_only_so_many_thumbnails_but_every_name(judged, monkeypatch):
    _, _, test, logits = judged
    monkeypatch.setattr(module, "MOST_THUMBNAILS", 2)
    found = mistakes(NAMES, test.sources, np.stack(test.sources), test.labels, logits, Decision())
    assert [one["image"] is not None for one in found[:3]] == [True, True, False]
    assert len(found) == (logits.argmax(axis=1) != test.labels).sum()
    sure = [int(one["probability"].split()[0]) for one in found]
    assert sure == sorted(sure, reverse=True)


def test_rows_are_the_confusion_matrix():
    confusion = confusion_matrix(np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 2, 2]), 3)
    rows = class_rows(NAMES, confusion)
    assert [(row["name"], row["recall"], row["precision"], row["n"]) for row in rows] == [
        (NAMES[2], "50 %", "100 %", "2"), (NAMES[1], "67 %", "67 %", "3"), (NAMES[0], "100 %", "50 %", "1"),
    ]  # fmt: skip
    assert [(row["truth"], row["answer"], row["n"]) for row in confusion_rows(NAMES, confusion)] == [
        (NAMES[2], NAMES[1], "1 of 2"), (NAMES[1], NAMES[0], "1 of 3"),
    ]  # fmt: skip
    assert headline(confusion)["value"] == "66.7 %"


def test_names_of_pictures():
    assert name_of(Path("/data/train/rose/0001.jpg"), 3) == "rose/0001.jpg"
    assert name_of(np.zeros((2, 2, 3), np.uint8), 3) == "picture 3"


def test_wrong_labels_stand_out():
    """Means of a model that learns classes of unequal difficulty, with a tenth of the labels wrong."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(4), 50)
    labels = truth.copy()
    flipped = rng.choice(200, 20, replace=False)
    labels[flipped] = (truth[flipped] + rng.integers(1, 4, 20)) % 4
    strength = np.array([0.5, 0.6, 0.7, 0.8])[truth] + rng.normal(0, 0.08, 200)
    probabilities = np.repeat(((1 - strength) / 3)[:, None], 4, axis=1)
    probabilities[np.arange(200), truth] = strength
    found = suspects(probabilities, labels)
    right = {one.index for one in found} & set(flipped.tolist())
    assert len(right) >= 0.7 * len(flipped) and len(right) >= 0.9 * len(found)
    assert all(one.looks_like == truth[one.index] and one.label == labels[one.index] for one in found[:15])
    ratios = [one.label_probability / one.other_probability for one in found]
    assert ratios == sorted(ratios) and max(ratios) < 1 / 4
    assert suspects(np.eye(4)[truth] * 0.9 + 0.025, truth) == []


def test_another_class_must_be_that_many_times_as_probable():
    probabilities = np.array([[0.15, 0.7, 0.15], [0.2, 0.2, 0.6], [0.0, 0.5, 0.5]], np.float32)
    labels = np.array([0, 1, 0])
    assert [(one.index, one.looks_like) for one in suspects(probabilities, labels)] == [(2, 1), (0, 1)]
    assert [one.index for one in suspects(probabilities, labels, times=2.5)] == [2, 0, 1]
    assert suspects(np.zeros((0, 3)), np.zeros(0, int)) == []
