"""The ways in: ``python -m gsb_vit``, shell completion, and ``--json`` of every command, errors included."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT
from processes import HANG_SECONDS
from random_packed import write_random_packed
from small_runs import train_small, write_pictures

from gsb_vit.cli import app, main

NO_JSON = set()  # every command has it


def run_module(*arguments, **variables):
    path = {"PYTHONPATH": str(ROOT / "src"), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "gsb_vit", *arguments]
    return subprocess.run(
        command, env={**os.environ, **path, **variables}, capture_output=True, text=True, timeout=HANG_SECONDS
    )


def call(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return (stop.value.code, *capsys.readouterr())


def test_the_module_is_the_command():
    assert run_module("--version").stdout.startswith("gsb-vit ")
    refused = run_module("predict", "nowhere.safetensors", "a.png")
    assert refused.returncode == 2 and refused.stderr.startswith("gsb-vit: ") and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_every_shell_can_be_shown(shell):
    shown = run_module("--show-completion", shell)
    assert shown.returncode == 0 and "_GSB_VIT_COMPLETE" in shown.stdout and "gsb-vit" in shown.stdout


@pytest.mark.parametrize(
    "words, wanted, others",
    [("gsb-vit pre", ["predict"], ["train"]), ("gsb-vit s", ["study", "summary", "sensitivity"], ["predict"]),
     ("gsb-vit predict --un", ["--unknown"], ["--top"])],
)  # fmt: skip
def test_completion_names_commands_and_options(words, wanted, others):
    place = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_GSB_VIT_COMPLETE": "complete_bash"}
    found = run_module(**place).stdout.split()
    assert set(wanted) <= set(found) and not set(others) & set(found)


def test_every_command_prints_json(capsys):
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        assert name in NO_JSON or "--json" in call(capsys, name, "--help")[1], name


NOWHERE = "nowhere.safetensors"
REFUSED = {
    "train": ["nowhere"],
    "study": ["nowhere.toml", "--out", "x"],
    "quickstart": ["--out", "/dev/null/x"],
    "export": ["nowhere", "-o", "x"],
    "evaluate": [NOWHERE, "--data", "digits"],
    "report": [NOWHERE],
    "predict": [NOWHERE, "a.png"],
    "add-class": [NOWHERE, "x", "a.png", "-o", "y"],
    "push": [NOWHERE, "user/name"],
    "app": [NOWHERE, "-o", "x.html"],
    "models": ["nowhere"],
    "summary": [NOWHERE],
    "sensitivity": ["nowhere"],
    "bench": [NOWHERE],
}


def test_the_table_of_refusals_names_every_command():
    assert set(REFUSED) == {one.name or one.callback.__name__.replace("_", "-") for one in app.registered_commands}


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_is_one_line_and_one_json_object(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output, errors = call(capsys, command, *REFUSED[command], "--json")
    assert status == 2
    assert set(json.loads(output)) == {"error"}
    lines = errors.splitlines()
    assert lines[-1].startswith("gsb-vit: ") and json.loads(output)["error"] in lines[-1]


def test_wrong_usage_is_json_too(capsys):
    for wrong in (["evaluate", "--json"], ["nonsense", "--json"], ["predict", "a", "b", "--nonsense", "--json"]):
        status, output, _ = call(capsys, *wrong)
        assert status == 2 and set(json.loads(output)) == {"error"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    train_small(write_pictures(folder / "data", 8), folder / "run")
    return folder / "run"


def test_training_prints_its_result_and_progress_beside_it(run, tmp_path, capsys):
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "model.img_size=8", "threads=1"]
    small += [f"{stage}.epochs=1" for stage in ("teacher", "stage1", "stage2")]
    options = [word for one in small for word in ("--set", one)]
    data, out = run.parent / "data", tmp_path / "run"
    status, output, errors = call(capsys, "train", data, "--out", out, "--recipe", "quickstart", *options, "--json")
    found = json.loads(output)
    assert status == 0 and found["run"] == str(out) and found["final_stage"] == "stage2" and "top1" in found["test"]
    assert "3 classes" in errors


def test_export_report_and_page_print_what_they_made(run, tmp_path, capsys):
    model, page = tmp_path / "model.safetensors", tmp_path / "page.html"
    status, output, _ = call(capsys, "export", run, "-o", model, "--json")
    found = json.loads(output)
    assert status == 0 and found["bytes"] == model.stat().st_size and found["same_answer"] == 1.0
    status, output, _ = call(capsys, "app", model, "-o", page, "--json")
    assert status == 0 and json.loads(output) == {"page": str(page), "bytes": page.stat().st_size}
    status, output, _ = call(capsys, "report", run, "-o", tmp_path / "report.html", "--json")
    assert status == 0 and json.loads(output) == {"report": str(tmp_path / "report.html")}


def test_summary_names_the_classes_and_evaluate_has_figures_of_each(run, tmp_path, capsys):
    model = tmp_path / "model.safetensors"
    write_random_packed(model, seed=5, image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, mlp_hidden=40,
                        num_classes=3)  # fmt: skip
    assert "class 0, class 1, class 2" in call(capsys, "summary", model)[1]
    found = json.loads(call(capsys, "evaluate", run, "--data", run.parent / "data", "--json")[1])
    assert [one["class"] for one in found["classes"]] == ["a", "b", "c"]
    assert {"n", "recall", "precision", "f1"} < set(found["classes"][0])
