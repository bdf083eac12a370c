"""Recipes: TOML in and out, overrides, and errors that name the nearest key."""

import dataclasses
from pathlib import Path

import pytest
from paths import ROOT

pytest.importorskip("timm")

from gsb_vit.errors import InputError
from gsb_vit.quantization import Quantization
from gsb_vit.train.recipe import Recipe
from gsb_vit.train.recipe_io import build_recipe, dump_recipe, load_recipe, shipped_recipes

FILES = sorted((ROOT / "recipes").glob("*.toml"))


@pytest.mark.parametrize("name", [*shipped_recipes(), *map(str, FILES)])
def test_every_recipe_survives_writing_and_reading(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_the_authors_recipe_is_the_released_one() -> None:
    recipe = load_recipe("authors")
    assert recipe.stage1.quantization == Quantization.authors_stage1()
    assert recipe.stage2.quantization == Quantization.authors_stage2()
    assert (recipe.stage1.epochs, recipe.stage2.epochs) == (600, 300)
    assert recipe.stage2.peak_learning_rate() == pytest.approx(1e-3 * 64 / 512)
    assert (recipe.stage2.optimizer, recipe.stage2.weight_decay, recipe.stage2.warmup_epochs) == ("adamw", 0.05, 0)
    assert (recipe.augment.rand_augment, recipe.augment.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)


def test_overrides_take_toml_values_and_bare_words() -> None:
    overrides = ["stage2.epochs=7", "model.drop_path_rate=0", "teacher.source=none", "data.mean=[0.1, 0.2, 0.3]"]
    recipe = load_recipe(None, [*overrides, "stage2.quantization.attention_thresholds=[0.5]"])
    assert recipe.stage2.epochs == 7
    assert recipe.model.drop_path_rate == 0.0 and isinstance(recipe.model.drop_path_rate, float)
    assert recipe.teacher.source == "none"
    assert recipe.data.mean == (0.1, 0.2, 0.3)
    assert recipe.stage2.quantization == dataclasses.replace(Quantization.stage2(), attention_thresholds=(0.5,))
    assert recipe.stage1.quantization == Quantization.stage1()


def test_a_preset_is_the_base_of_a_quantization_table() -> None:
    recipe = build_recipe({"stage2": {"quantization": {"preset": "authors_stage2", "attention_bias": "none"}}})
    assert recipe.stage2.quantization == dataclasses.replace(Quantization.authors_stage2(), attention_bias="none")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage2.epoch=3", ["stage2.epoch", "stage2.epochs"]),
        ("stge2.epochs=3", ["stge2", "stage2"]),
        ("stage2.quantization.weight_scales=row", ["weight_scales", "stage2.quantization.weight_scale"]),
        ("stage2.quantization.weight_scale=column", ["weight_scale", "column", "row"]),
        ("stage2.quantization.preset=ours", ["preset", "ours", "authors_stage2"]),
        ("seed=-1", ["seed = -1", "at least 0"]),
        ("data.split_seed=-1", ["data.split_seed = -1", "at least 0"]),
        ("threads=1000000", ["threads = 1000000", "from 1 to 1024"]),
        ("stage2.learning_rate=inf", ["stage2.learning_rate = inf", "finite"]),
        ("stage1.mixup=nan", ["stage1.mixup = nan", "finite"]),
        (f"stage2.epochs={'9' * 400}", ["stage2.epochs = 9999", "64 bits"]),
        ("stage2.epochs=many", ["stage2.epochs", "many", "whole number"]),
        ("stage2.epochs=1.5", ["stage2.epochs", "1.5", "whole number"]),
        ("stage2.epochs=true", ["stage2.epochs", "whole number"]),
        ("stage2=3", ["stage2", "table"]),
        ("compile=1", ["compile", "true or false"]),
        ("data.mean=[0.5, 0.5]", ["data.mean", "3"]),
        ("data.validation_fraction=1.0", ["data.validation_fraction", "1.0"]),
        ("distillation.kind=hrd", ["distillation.kind", "hrd", "hard"]),
        ("model.patch_size=7", ["img_size", "patch_size", "7"]),
        ("stage2.epochs", ["stage2.epochs", "key=value"]),
    ],
)
def test_mistakes_are_named_with_the_way_out(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(None, [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml"):
        load_recipe(tmp_path / "nothing.toml")
    with pytest.raises(InputError, match="quickstart"):
        load_recipe("quickstrat")
    (tmp_path / "bad.toml").write_text("seed = = 1", encoding="utf-8")
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(tmp_path / "bad.toml")


def test_all_stages_without_epochs_are_refused() -> None:
    with pytest.raises(InputError, match="at least one stage"):
        load_recipe(None, ["teacher.epochs=0", "stage1.epochs=0", "stage2.epochs=0"])


def test_defaults_equal_an_empty_table() -> None:
    assert build_recipe({}) == Recipe()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs=3", "did you mean 'stage2.epochs' (on the command line --epochs) or 'teacher.epochs'"),
        ("img_size=64", "did you mean 'model.img_size' (on the command line --image-size)"),
        ("stage2.epoch=3", "the nearest valid key is 'stage2.epochs'"),
        ("stge2.epochs=3", "the nearest valid key is 'stage2'"),
        ("seeed=3", "the nearest valid key is 'seed'"),
    ],
)
def test_an_unknown_key_is_answered_with_the_right_one(override: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(None, [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)
