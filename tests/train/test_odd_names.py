"""Names of files and folders that are not UTF-8: used, written out, or refused in one line."""

import dataclasses
import os
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from small_runs import train_small, write_pictures

from gsb_vit.data.splits import read_raw
from gsb_vit.data.stored_split import read_split
from gsb_vit.errors import InputError
from gsb_vit.export.run import export_run
from gsb_vit.runs import Run
from gsb_vit.runtime.packed_file import read
from gsb_vit.train.evaluate import evaluate_run
from gsb_vit.train.recipe_io import dump_recipe, load_recipe, read_values

ODD = os.fsdecode(b"d\xe4ta")


def test_a_run_on_pictures_whose_names_are_not_utf8(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / ODD, 10)
    (data / "a" / "000.png").rename(data / "a" / f"{ODD}.png")
    train_small(data, tmp_path / "run")
    stored = read_split(tmp_path / "run")
    assert stored is not None
    names = [name for part in stored.parts.values() for name in part.names]
    assert str(data / "a" / f"{ODD}.png") in names  # as it is: the file is found again
    assert evaluate_run(tmp_path / "run", str(data))["n"] == len(stored.parts["test"].names)
    train_small(data, tmp_path / "run", resume=True)
    page = Run(tmp_path / "run").report().read_text(encoding="utf-8")
    assert "\\xe4" in page or "\\udce4" in page
    export_run(tmp_path / "run", tmp_path / "packed", engine="native")
    assert read(tmp_path / "packed").class_names == ("a", "b", "c")


def test_classes_runs_and_recipes_have_names_that_files_can_hold(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "data", 10)
    with pytest.raises(InputError, match=r"the name of .* is not UTF-8, and TensorBoard takes no other"):
        train_small(data, tmp_path / ODD)
    assert not (tmp_path / ODD).exists()
    with pytest.raises(InputError, match=r"recipe value .* is not UTF-8"):
        dump_recipe(load_recipe("quickstart", [f"teacher.source={ODD}"]))
    (data / "a").rename(data / ODD)
    with pytest.raises(InputError, match=r"the name of class folder .* is not UTF-8, .*; rename it"):
        read_raw(str(data))


def test_a_recipe_holds_every_text_that_toml_does(tmp_path: Path) -> None:
    text = "\x7f\t\"'\\ \u202e é"
    recipe = load_recipe("quickstart")
    recipe = dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, source=text))
    (tmp_path / "recipe.toml").write_bytes(dump_recipe(recipe).encode())
    assert read_values(tmp_path / "recipe.toml")["teacher"]["source"] == text
