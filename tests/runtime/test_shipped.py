"""Models that come with the package: files and cards, names that mean them, and paths that go before names."""

import re
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from random_packed import write_random_packed

import gsb_vit
from gsb_vit.errors import InputError
from gsb_vit.runtime import shipped
from gsb_vit.runtime.evaluate import evaluate_packed
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.shipped import NameWarning, locate_model, shipped_models

ENGINE = "native" if find_spec("gsb_vit._native") else "reference"  # equal logits
MOST_BYTES = 3_000_000  # of all shipped models together
SECTIONS = ("Data", "Licence", "Figures", "Command")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny(path: Path) -> Path:
    shape = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_hidden": 40}
    write_random_packed(path, seed=1, num_classes=3, **shape)
    return path


def test_digits_is_shipped_and_all_are_small():
    models = shipped_models()
    assert "digits" in models
    folder = models["digits"].path.parent
    assert {path.stem for path in folder.glob("*.safetensors")} == set(models)  # none without a card
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MOST_BYTES


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_loads_by_its_name_and_its_card_tells_of_it(name, elsewhere):
    model = shipped_models()[name]
    sections = re.findall(r"^## (.+)$", model.card, re.MULTILINE)
    assert model.card.startswith(f"# {name}: ") and sections == list(SECTIONS)
    assert all(len(part.strip()) > 20 for part in re.split(r"^## .+$", model.card, flags=re.MULTILINE))
    assert "gsb-vit train" in model.card or "gsb-vit quickstart" in model.card
    classifier = gsb_vit.load(name, engine="reference")
    facts = model.to_json()
    assert facts["classes"] == len(classifier.class_names) and facts["bytes"] == model.path.stat().st_size
    assert f"{facts['bytes']:,} bytes" in model.card
    picture = np.zeros((40, 50, 3), np.uint8)
    assert len(classifier.predict(picture, top=1)) == 1
    # evaluate judges on pictures that the model has not seen: it must know those that it has.
    assert read(name).provenance.get("seen")


def test_the_figure_on_the_card_of_digits_is_what_evaluate_finds():
    pytest.importorskip("sklearn")
    found = evaluate_packed(gsb_vit.load("digits", engine=ENGINE), "digits", read("digits").provenance)
    told = re.search(r"\| top-1 \| ([0-9.]+) % \|", shipped_models()["digits"].card)
    pictures = re.search(r"([0-9,]+) held-out pictures", shipped_models()["digits"].card)
    assert told and pictures
    assert f"{100 * found['top1']:.2f}" == told[1] and f"{found['n']:,}" == pictures[1]


def test_a_path_that_exists_goes_before_the_name_and_that_is_said(elsewhere):
    shutil.copy(tiny(elsewhere / "model.safetensors"), elsewhere / "digits")
    with pytest.warns(NameWarning, match=r"digits is here as a file, and that is used.*shipped:digits"):
        assert len(gsb_vit.load("digits", engine="reference").class_names) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(gsb_vit.load("shipped:digits", engine="reference").class_names) == 10
        assert len(gsb_vit.load(elsewhere / "digits", engine="reference").class_names) == 3  # no name: a path


def test_a_folder_of_that_name_goes_before_it_too(elsewhere):
    (elsewhere / "digits").mkdir()
    with (
        pytest.warns(NameWarning, match="digits is here as a folder"),
        pytest.raises(InputError, match="is a folder"),
    ):
        gsb_vit.load("digits")


def test_names_of_no_model_are_refused_with_those_there_are(elsewhere):
    with pytest.raises(InputError, match=r"digitz: cannot be read \(No such file.*comes with gsb-vit: .*digits"):
        gsb_vit.load("digitz")
    with pytest.raises(InputError, match=r"no shipped model .digitz.; there are .*digits"):
        gsb_vit.load("shipped:digitz")
    with pytest.raises(InputError) as caught:
        gsb_vit.load("folder/digitz")
    assert "comes with" not in str(caught.value)
    assert locate_model("nothing.safetensors") == Path("nothing.safetensors")


def test_a_file_and_a_card_dropped_into_the_folder_are_a_shipped_model(elsewhere, monkeypatch):
    folder = elsewhere / "shipped"
    folder.mkdir()
    tiny(folder / "flowers3.safetensors")
    monkeypatch.setattr(shipped, "files", lambda package: elsewhere)
    assert shipped_models() == {}  # no card yet
    with pytest.raises(InputError, match="none in this installation"):
        gsb_vit.load("flowers3")
    (folder / "flowers3.md").write_text("# flowers3: three flowers\n", encoding="utf-8")
    (model,) = shipped_models().values()
    assert (model.name, model.title, model.to_json()["classes"]) == ("flowers3", "three flowers", 3)
    assert len(gsb_vit.load("flowers3", engine="reference").class_names) == 3
