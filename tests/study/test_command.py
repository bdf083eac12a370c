"""Studies on digits: what is shared is trained once, nothing is trained twice, rows outlive their runs."""

import csv
from pathlib import Path

import pytest
import torch
from small_study import STUDY, quiet, run_here, write_study

from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.files import locked
from gsb_vit.models.trained import load_model
from gsb_vit.study.command import make_executor, measure_size, parse_options
from gsb_vit.study.plan import load_study, plan, run_folder
from gsb_vit.train.recipe_io import dump_recipe, load_recipe
from gsb_vit.train.run import train


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study: its file, its folder and the runs it started."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as monkeypatch:
        file = write_study(folder)
        errors, started = run_here(monkeypatch, file, folder / "out")
    assert errors == {}
    return file, folder / "out", started


def test_what_variants_share_is_trained_once(done) -> None:
    file, out, started = done
    kinds = [name.split("-")[0] for name in started]
    assert sorted(kinds) == ["authors", "bit", "gsb", "stage1", "stage1", "teacher"]
    assert len(set(started)) == len(started)
    planned = plan(load_study(file), out)
    needs = {job.name: job.needs for job in planned.jobs}
    assert needs["gsb-s0"] == needs["bit-s0"] != needs["authors-s0"]
    assert needs[needs["gsb-s0"]] == needs[needs["authors-s0"]]


def test_a_student_that_shares_ends_as_one_that_trains_all_itself(done, tmp_path: Path) -> None:
    file, out, _ = done
    (cell,) = (cell for cell in load_study(file).cells if cell.variant == "bit")
    alone = train(cell.recipe, "digits", tmp_path / "alone", console=quiet())
    shared = load_model(run_folder(out, "bit-s0")).model.state_dict()
    own = load_model(tmp_path / "alone").model.state_dict()
    assert all(torch.equal(shared[name], tensor) for name, tensor in own.items())
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    found = {row["stage"]: float(row["top1"]) for row in rows if row["variant"] == "bit"}
    assert found == {stage: result["test"]["top1"] for stage, result in alone.stages.items()}


def test_rows_say_where_they_come_from(done) -> None:
    _, out, _ = done
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 9
    for row in rows:
        assert row["threads"] == "1" and row["cpu"] and row["commit"] and row["data"] == "digits"
        assert row["command"].startswith("gsb-vit study") and str(out.parent) not in row["command"]
    sizes = {row["variant"]: row for row in rows if row["final"] == "1"}
    assert int(sizes["gsb"]["packed_bytes"]) > 0 and sizes["authors"]["packed_bytes"] == ""
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "minus gsb" in table and str(out) not in table
    assert (out / "plot.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_what_is_finished_is_not_run_again(done, monkeypatch) -> None:
    file, out, _ = done
    document = out / "doc.md"
    document.write_text("before\n<!-- study tiny -->\nold\n<!-- /study tiny -->\nafter\n", encoding="utf-8")
    assert run_here(monkeypatch, file, out, document=document) == ({}, [])
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text and "| GSB |" in text
    assert (out / "tiny.svg").is_file() and (out / "tiny.json").is_file()


def test_recorded_rows_outlive_the_runs_as_long_as_the_recipe_is_theirs(done, tmp_path: Path, monkeypatch) -> None:
    file, out, _ = done
    document = tmp_path / "doc.md"
    document.write_text("<!-- study tiny -->\n<!-- /study tiny -->\n", encoding="utf-8")
    assert run_here(monkeypatch, file, out, jobs=0, document=document) == ({}, [])
    first, kept = document.read_text(encoding="utf-8"), tmp_path / "tiny.json"
    recorded = kept.read_text(encoding="utf-8")
    assert run_here(monkeypatch, file, tmp_path / "nothing", document=document) == ({}, [])
    assert document.read_text(encoding="utf-8") == first and kept.read_text(encoding="utf-8") == recorded
    assert (tmp_path / "nothing" / "results.csv").read_bytes() == (out / "results.csv").read_bytes()

    changed = write_study(tmp_path, STUDY.replace('scheme = "bit"', 'scheme = "xnor"'))
    said = quiet()
    errors, started = run_here(monkeypatch, changed, tmp_path / "new", document=document, console=said)
    assert "tiny.json: the rows of bit-s0 will go: they are of another recipe" in said.file.getvalue().replace(
        "\n", " "
    )
    assert errors == {} and sorted(name.split("-")[0] for name in started) == ["bit", "stage1", "teacher"]
    assert '"scheme": "xnor"' not in recorded and '"stage2.quantization.scheme": "xnor"' in kept.read_text("utf-8")

    kept.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot read the rows in .*tiny\.json .*; restore that file, or delete it"):
        run_here(monkeypatch, file, out, document=document)


def test_a_printed_table_stays_while_nothing_is_found(done, tmp_path: Path, monkeypatch) -> None:
    file, _, _ = done
    document = tmp_path / "doc.md"
    document.write_text("<!-- study tiny -->\nprinted\n<!-- /study tiny -->\n", encoding="utf-8")
    assert run_here(monkeypatch, file, tmp_path / "nothing", jobs=0, document=document) == ({}, [])
    assert "\nprinted\n" in document.read_text(encoding="utf-8") and not (tmp_path / "tiny.json").exists()


def test_a_moved_study_stays_finished_and_a_changed_one_is_refused(done, tmp_path: Path, monkeypatch) -> None:
    file, out, _ = done
    out.rename(tmp_path / "moved")
    try:
        assert run_here(monkeypatch, file, tmp_path / "moved") == ({}, [])
        changed = write_study(tmp_path, STUDY.replace("stage2.epochs = EPOCHS", "stage2.epochs = 3"))
        with pytest.raises(InputError, match=r"gsb-s0 holds a run with stage2\.epochs = 1, the study says 3; delete"):
            run_here(monkeypatch, changed, tmp_path / "moved")
    finally:
        (tmp_path / "moved").rename(out)


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, monkeypatch) -> None:
    text = STUDY.replace('stage2.quantization.scheme = "bit"', "stage1.learning_rate = 1e18")
    text = text.replace('stage1.quantization.preset = "authors_stage1"\n', "")
    errors, started = run_here(monkeypatch, write_study(tmp_path, text, 2), tmp_path / "out")
    (broken,) = (name for name in errors if name.startswith("stage1-"))
    assert "stage1, epoch" in errors[broken]
    assert errors["bit-s0"] == f"not run: {broken} failed" and len(errors) == 2
    assert {"gsb-s0", "authors-s0"} <= set(started) and "bit-s0" not in started
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| GSB |" in table and "| bit |" not in table


def test_no_two_studies_fill_one_folder(done, monkeypatch) -> None:
    file, out, _ = done
    with locked(out, "gsb-vit study"), pytest.raises(InputError, match="another gsb-vit study is at work"):
        run_here(monkeypatch, file, out)


def test_executors_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for name, options in (("slurm", {}), ("local", {"timeout_min": 3}), ("submitit:", {})):
        with pytest.raises(InputError, match="--executor"):
            make_executor(name, tmp_path, options)
    assert parse_options(["timeout_min=5", "slurm_partition=gpu"]) == {
        "timeout_min": 5,
        "slurm_partition": "gpu",
    }


def test_shots_and_label_noise_of_train_are_recorded(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text(dump_recipe(load_study(write_study(tmp_path / "s")).cells[0].recipe), encoding="utf-8")
    options = ["--shots", "3", "--label-noise", "0.25", "--set", "stage2.epochs=0", "--set", "stage1.epochs=0"]
    options += ["--set", "data.validation_fraction=0", "--set", "teacher.select=last"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "digits", "--recipe", str(base), "--out", str(tmp_path / "run"), *options])
    assert stop.value.code in (0, None)
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (recipe.data.shots, recipe.data.label_noise) == (3, 0.25)
    measure_size(tmp_path / "run")
    assert '"not_packed"' in (tmp_path / "run" / "size.json").read_text()
