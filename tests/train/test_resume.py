"""A run that is killed, at any moment, and resumed ends with the very weights of one that never was."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import HELPERS, SOURCE
from processes import HANG_SECONDS

pytest.importorskip("accelerate")

from gsb_vit.errors import InputError
from gsb_vit.models.trained import read_tensors, write_tensors
from gsb_vit.train import folder as run_folder
from gsb_vit.train.checkpoint import STATE
from gsb_vit.train.recipe import Recipe

SCRIPT = HELPERS / "resume_script.py"
# Counted anew in every launch; two epochs a stage, two steps an epoch. The kills come inside an epoch, between a line
# of metrics.jsonl and its state, after a state, and before a file has its name.
KILLS = ["step:3", "log:2", "replaced:2", "replace:5"]


def launch(folder: Path, mode: str, event: str = "never") -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(folder), mode, event]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    timed = {"seconds", "images_per_s", "data_wait", "teacher_wait"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = launch(folder, "start")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_a_run_leaves_the_documented_files(whole: Path) -> None:
    files = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file() and "tensorboard" not in p.parts}
    names = ("best", "last", "state", "previous")
    stages = [f"{stage}/{name}.safetensors" for stage in ("teacher", "stage1", "stage2") for name in names]
    # Stage 2 mixes pictures, and keeps nothing of what it said of them.
    stages += [f"{stage}/confidence.safetensors" for stage in ("teacher", "stage1")]
    assert files == {".lock", "recipe.toml", "run.json", "split.json", "metrics.jsonl", "summary.json", *stages}
    assert json.loads((whole / "run.json").read_text())["status"] == "finished"
    summary = json.loads((whole / "summary.json").read_text())
    assert sum(map(sum, summary["confusion_matrix"])) == summary["test"]["n"] == 539
    assert any((whole / "tensorboard" / "stage2").iterdir())


# Five processes one after the other, each of which loads PyTorch and trains.
@pytest.mark.slow
def test_killed_and_resumed_runs_end_with_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """One run is killed again and again, later each time, so that every resume starts from a resumed state."""
    folder = tmp_path / "run"
    for number, event in enumerate(KILLS):
        killed = launch(folder, "resume" if number else "start", event)
        assert killed.returncode == -signal.SIGKILL, (event, killed.stderr[-3000:])
    finished = launch(folder, "resume")
    assert finished.returncode == 0, finished.stderr[-3000:]
    for stage in ("teacher", "stage1", "stage2"):
        for name in ("best.safetensors", "last.safetensors"):
            assert (folder / stage / name).read_bytes() == (whole / stage / name).read_bytes(), f"{stage}/{name}"
    assert metrics(folder) == metrics(whole)
    results = [json.loads((f / "summary.json").read_text()) for f in (folder, whole)]
    assert results[0]["test"] == results[1]["test"]


def test_a_folder_in_use_is_refused_and_resuming_needs_the_same_recipe_and_data(whole: Path, tmp_path: Path) -> None:
    from gsb_vit.errors import InputError
    from gsb_vit.train.folder import prepare_folder
    from gsb_vit.train.recipe_io import load_recipe

    recipe = load_recipe(whole / "recipe.toml")
    with pytest.raises(InputError, match="--resume"):
        prepare_folder(whole, recipe, "digits", resume=False)
    prepare_folder(whole, recipe, "digits", resume=True)
    with pytest.raises(InputError, match="differs"):
        prepare_folder(whole, load_recipe(whole / "recipe.toml", ["seed=9"]), "digits", resume=True)
    old = shutil.copytree(whole, tmp_path / "run")
    (old / "split.json").unlink()  # a run of before splits were kept knows its data by name only
    with pytest.raises(InputError, match="trained on 'digits'"):
        prepare_folder(old, recipe, "flowers102:x", resume=True)


def test_a_state_of_another_version_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    tensors, state = read_tensors(folder / "stage1" / STATE)
    del state["scale_factors"]
    write_tensors(folder / "stage1" / STATE, tensors, state)
    refused = launch(folder, "resume")
    assert refused.returncode != 0
    assert "was written by another version of gsb-vit" in refused.stderr


def test_a_run_names_every_commit_that_went_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipe = tmp_path / "run", Recipe()
    for name, status in (("first", "running"), ("first", "running"), ("second", "running"), ("third", "finished")):
        monkeypatch.setattr(run_folder, "commit", lambda name=name: name)
        if folder.exists():
            run = json.loads((folder / "run.json").read_text())
            run_folder.write_json(folder / "run.json", {**run, "status": status})
        run_folder.prepare_folder(folder, recipe, "digits", resume=True)
    assert json.loads((folder / "run.json").read_text())["commit"] == "first, second"


def test_a_file_is_no_runs_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    for resume in (False, True):
        with pytest.raises(InputError, match="file is a file, and a run is a folder; give a folder"):
            run_folder.check_folder(tmp_path / "file", Recipe(), "digits", resume)
