"""Study files: what a grid means, what is shared, what is refused; the shipped ones."""

import dataclasses
from pathlib import Path

import pytest
import torch
from paths import ROOT
from small_study import STUDY, write_study

from gsb_vit.cli import main
from gsb_vit.models.build import build_model
from gsb_vit.study.plan import is_finished, load_study, plan
from gsb_vit.train.recipe_io import dump_recipe, load_recipe


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[set]", "sedes = [1]\n[set]", ["sedes", "seeds"]),
        ("threads = 1", "treads = 1", ["variant gsb", "treads", "threads"]),
        ('scheme = "bit"', 'sheme = "bit"', ["variant bit", "stage2.quantization.sheme", "quantization.scheme"]),
        ('scheme = "bit"', 'scheme = "bti"', ["variant bit", "bti", "bit"]),
        ("data.shots = 8", "data = 8", ["data", "table"]),
        ('reference = "gsb"', 'reference = "gbs"', ["gbs", "gsb"]),
        ("[variants.bit]", '[variants."a b"]', ["a b", "letters"]),
        ("[set]", "seeds = []\n[set]", ["seeds", "[]"]),
        ("[set]", "seeds = [1, 1]\n[set]", ["seeds", "twice"]),
        ("[set]", "[grid]\ndata.shots = 3\n[set]", ["grid.data.shots", "list"]),
        ("[set]", '[plot]\nx = "data.shots"\n[set]', ["plot.x", "data.shots"]),
        ("[set]", '[plot]\nkind = "bar"\n[set]', ["plot.kind", "plot."]),
        ('"quickstart"', '"quickstrat"', ["quickstrat", "quickstart"]),
        ('"quickstart"', '"none.toml"', ["none.toml"]),
        ("data.shots = 8", "data.shots = 800", ["gsb-s0", "data.shots = 800"]),
        ("model.embed_dim = 32", "model.embed_dim = 33", ["gsb-s0", "33"]),
        ('data = "digits"', "", ["--data"]),
        ('data = "digits"', 'data = "digit"', ["digit", "digits"]),
        ("[set]", "[set", ["TOML"]),
    ],
)
def test_a_bad_study_is_refused_in_one_line_before_anything_runs(old, new, words, tmp_path: Path, capsys) -> None:
    assert old in STUDY
    file = write_study(tmp_path, STUDY.replace(old, new, 1))
    with pytest.raises(SystemExit) as stop:
        main(["study", str(file), "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("\n") == 1
    assert all(word in errors for word in words), errors
    assert not (tmp_path / "out").exists()


def test_a_preset_replaces_the_switches_of_the_base(tmp_path: Path) -> None:
    text = STUDY.replace("[set]", '[set]\nstage2.quantization.weight_scale = "learned_row"')
    cells = {cell.variant: cell.recipe for cell in load_study(write_study(tmp_path, text)).cells}
    assert cells["gsb"].stage2.quantization.weight_scale == "learned_row"
    assert cells["authors"].stage2.quantization == type(cells["gsb"].stage2.quantization).authors_stage2()


def test_a_grid_multiplies_and_seeds_reach_every_seeded_key(tmp_path: Path) -> None:
    text = STUDY.replace(
        "[set]", 'seeds = [3, 4]\nseeded = ["seed", "data.split_seed"]\n[grid]\ndata.shots = [2, 5]\n[set]'
    )
    study = load_study(write_study(tmp_path, text))
    assert [cell.name for cell in study.cells[:4]] == [
        "gsb-shots=2-s3",
        "bit-shots=2-s3",
        "authors-shots=2-s3",
        "gsb-shots=5-s3",
    ]
    assert len(study.cells) == 12
    for cell in study.cells:
        assert cell.recipe.seed == cell.recipe.data.split_seed == cell.seed
        assert cell.recipe.data.shots == dict(cell.point)["data.shots"]
    assert len({job.name for job in plan(study, tmp_path).jobs if job.kind == "teacher"}) == 4


def test_equal_recipes_under_two_names_are_one_run(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, STUDY.replace('scheme = "bit"', 'scheme = "gsb"')))
    planned = plan(study, tmp_path)
    assert planned.of_cell["bit-s0"] == planned.of_cell["gsb-s0"]
    assert [job.name for job in planned.jobs if job.kind == "student"] == ["gsb-s0", "authors-s0"]


def test_a_chain_of_teachers_shares_its_first_one_and_every_job_has_a_recipe_that_holds(tmp_path: Path) -> None:
    chain = ["twin.epochs = 2", 'teacher.source = "timm:test_efficientnet"', 'teacher.weights = "a.pth"']
    chain += ["teacher.img_size = 32", "teacher.cache_views = 3"]
    study = load_study(write_study(tmp_path, STUDY.replace("[set]", "\n".join(["[set]", *chain]))))
    jobs = plan(study, tmp_path).jobs
    assert [job.kind for job in jobs] == ["teacher", "student", "student", "student"]
    teacher, *students = jobs
    assert teacher.recipe.twin.epochs == 0 and teacher.recipe.teacher.weights == "a.pth"
    assert all(job.recipe.twin.epochs == 2 and job.recipe.teacher.cache_views == 3 for job in students)
    for job in jobs:
        (tmp_path / "recipe.toml").write_text(dump_recipe(job.recipe), encoding="utf-8")
        assert load_recipe(tmp_path / "recipe.toml") == job.recipe
    assert students[0].epochs == students[0].recipe.twin.epochs + 2 * teacher.recipe.teacher.epochs


STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_shipped_studies_share_and_build(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    planned = plan(study, tmp_path)
    assert study.seeds == (0, 1, 2)
    points = {cell.point for cell in study.cells}
    teachers = [job for job in planned.jobs if job.kind == "teacher"]
    kinds = {  # a teacher of the student's own shape is another one where shapes differ
        (cell.point, cell.recipe.teacher, cell.recipe.model if cell.recipe.teacher.source == "twin" else None)
        for cell in study.cells
    }
    several = path.stem == "choices" or path.stem.startswith("front_")  # these alone try several teachers
    assert len(teachers) == 3 * len(kinds) and (len(kinds) == len(points) or several)
    alone = {cell.variant for cell in study.cells if planned.of_cell[cell.name][0] in {job.name for job in teachers}}
    assert alone == ({"pretrained"} if path.stem == "rivals" else set())  # a teacher without a student
    equal = [cell for cell in study.cells if cell.variant not in alone and not cell.variant.endswith("_long")]
    budgets = {sum(getattr(cell.recipe, stage).epochs for stage in ("twin", "stage1", "stage2")) for cell in equal}
    assert len(budgets) == 1
    assert not any(is_finished(job, tmp_path) for job in planned.jobs)
    with torch.device("meta"):
        for cell in study.cells[:: len(study.seeds) * len(points)]:
            for stage in (cell.recipe.twin, cell.recipe.stage1, cell.recipe.stage2):
                if stage.epochs:
                    model = cell.recipe.model
                    build_model(model.architecture, model.arguments(), 20, stage.quantization)
    assert path.name in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["cifar100", "flowers102_224", "chaoyang", "flowers102_112"])
def test_the_recipes_of_the_paper_build(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    with torch.device("meta"):
        for stage in (recipe.teacher, recipe.stage1, recipe.stage2):
            model = build_model(recipe.model.architecture, recipe.model.arguments(), 100, stage.quantization)
            assert model.embed_dim == 384 and len(model.blocks) == 12
            tokens = model.patch_embed.num_patches + 2
            assert tokens == 198
    if name != "flowers102_112":
        authors = load_recipe("authors")
        assert recipe.teacher.source == authors.teacher.source and recipe.augment == dataclasses.replace(
            authors.augment, workers=recipe.augment.workers
        )
        assert (recipe.stage1.epochs, recipe.stage2.epochs) == (authors.stage1.epochs, authors.stage2.epochs)
        assert recipe.stage2.peak_learning_rate() == authors.stage2.peak_learning_rate()
