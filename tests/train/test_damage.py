"""Nothing lost: damaged files, flipped bits, disks that fail, two processes; every run ends as if undisturbed."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from paths import SOURCE
from small_runs import train_small, write_pictures

from gsb_vit import files
from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.files import locked
from gsb_vit.models.trained import load_model, read_tensors
from gsb_vit.runs import Run
from gsb_vit.train import prepare
from gsb_vit.train.checkpoint import PREVIOUS, STATE
from gsb_vit.train.log import RunLog

STAGES = ("teacher", "stage1", "stage2")
MODELS = [f"{stage}/{name}.safetensors" for stage in STAGES for name in ("best", "last")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "mine", 12)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train_small(data, out)
    return out


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def require_undisturbed(run: Path, whole: Path) -> None:
    for name in MODELS:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    results = [json.loads((folder / "summary.json").read_text())["test"] for folder in (run, whole)]
    assert results[0] == results[1]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def flip(path: Path, where: float) -> None:
    """Change one bit of a file, at a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


DAMAGED_JSON = [b"", b"{", b"[]", b"7", b"\xff\xfe", b"{}", b"[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED_JSON)
def test_a_damaged_run_json_is_named_and_the_way_on_is_one(data, run, whole, content) -> None:
    (run / "run.json").write_bytes(content)
    said = refusal(train_small, data, run, resume=True)
    assert str(run / "run.json") in said and "remove it and add --resume" in said
    if content == b"{":
        (run / "run.json").unlink()
        train_small(data, run, resume=True)
        require_undisturbed(run, whole)


@pytest.mark.parametrize("threads", [1_000_000, 0, -1, 1.5, "2", True, [1]])
def test_threads_that_no_machine_has_are_refused(data, run, threads) -> None:
    values = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**values, "threads": threads}))
    said = refusal(train_small, data, run, resume=True)
    assert str(run / "run.json") in said and "threads = " in said
    assert "threads = 1000000 is out of range" in refusal(train_small, data, run.parent / "new", "threads=1000000")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"seed = 3", b"seed = 'a'", b"[model]\nnothing = 1"])
def test_a_damaged_recipe_is_named_and_the_way_on_is_one(data, run, whole, content) -> None:
    (run / "recipe.toml").write_bytes(content)
    said = refusal(train_small, data, run, resume=True)
    assert str(run / "recipe.toml") in said and "run's own recipe" in said
    if content == b"{":
        (run / "recipe.toml").unlink()
        train_small(data, run, resume=True)
        require_undisturbed(run, whole)
        assert (run / "recipe.toml").read_bytes() == (whole / "recipe.toml").read_bytes()


def test_another_recipe_does_not_go_on_with_a_state(data, run) -> None:
    (run / "recipe.toml").unlink()
    said = refusal(train_small, data, run, "model.embed_dim=32", resume=True)
    assert "state of another model than the recipe's" in said and STATE in said


@pytest.mark.parametrize("content", DAMAGED_JSON)
def test_a_damaged_summary_is_named_and_written_again(data, run, whole, content) -> None:
    (run / "summary.json").write_bytes(content)
    said = refusal(Run, run)
    assert str(run / "summary.json") in said and "resume" in said
    if content == b"{":
        train_small(data, run, resume=True)
        require_undisturbed(run, whole)


@pytest.mark.parametrize("where", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("name", ["stage2/best.safetensors", "stage1/last.safetensors"])
def test_a_flipped_bit_in_a_model_is_noticed(run, name, where) -> None:
    flip(run / name, where)
    said = refusal(load_model, run / name)
    assert str(run / name) in said


def test_a_damaged_chosen_model_says_how_to_train_it_again(data, run, whole) -> None:
    flip(run / "stage1" / "best.safetensors", 0.9)
    said = refusal(train_small, data, run, resume=True)
    assert "checksum differs" in said and f"remove the folder {run / 'stage1'} and resume" in said
    shutil.rmtree(run / "stage1")
    train_small(data, run, resume=True)
    require_undisturbed(run, whole)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text"])
def test_a_damaged_state_falls_back_to_the_one_before(data, run, whole, damage) -> None:
    state = run / "stage1" / STATE
    kept = state.read_bytes()
    damaged = {"cut": kept[: len(kept) // 2], "empty": b"", "text": b"not a state"}.get(damage)
    flip(state, 0.7) if damaged is None else state.write_bytes(damaged)
    said = io.StringIO()
    train_small(data, run, resume=True, stream=said)
    assert "going on from the state before it, previous.safetensors, after epoch 1" in said.getvalue()
    assert str(state) in said.getvalue()
    require_undisturbed(run, whole)


def test_without_a_whole_state_the_stage_begins_anew(data, run, whole) -> None:
    for name in (STATE, PREVIOUS):
        flip(run / "stage2" / name, 0.5)
    said = io.StringIO()
    train_small(data, run, resume=True, stream=said)
    assert "there is no whole state before it, so stage2 begins anew" in said.getvalue()
    require_undisturbed(run, whole)


def test_a_damaged_view_of_the_teacher_is_asked_for_again(data, tmp_path) -> None:
    settings = ["teacher.cache_views=2"]
    train_small(data, tmp_path / "whole", *settings)
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    views = sorted((run / "views").iterdir())
    assert views
    flip(views[0], 0.9)
    shutil.rmtree(run / "stage2")
    shutil.rmtree(run / "stage1")
    train_small(data, run, *settings, resume=True)
    require_undisturbed(run, tmp_path / "whole")
    assert read_tensors(views[0])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("at", [1, 9, 14])
def test_a_disk_that_fails_is_one_line_and_the_run_resumes(data, whole, tmp_path, monkeypatch, number, at) -> None:
    out, left, write = tmp_path / "run", [at], Path.write_bytes

    def failing(self, content):
        left[0] -= 1
        if left[0] == 0:
            write(self, content[: len(content) // 2])
            raise OSError(number, os.strerror(number), str(self))
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", failing)
        said = refusal(train_small, data, out)
    assert left == [0] and f"the run in {out} stopped: {os.strerror(number)}" in said and "--resume" in said
    assert not list(out.rglob("*.tmp"))
    train_small(data, out, resume=True)
    require_undisturbed(out, whole)


def after_epoch(number: int, what, monkeypatch) -> None:
    """Let something happen after so many epochs."""
    epoch, left = RunLog.epoch, [number]

    def then(self, *arguments):
        epoch(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            what()

    monkeypatch.setattr(RunLog, "epoch", then)


@pytest.mark.parametrize("lost", [".", "teacher", "stage1"])
def test_a_folder_that_vanishes_is_one_line_and_the_run_resumes(data, whole, tmp_path, monkeypatch, lost) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_epoch(3, lambda: shutil.rmtree(out / lost), patch)
        assert str(out) in refusal(train_small, data, out)
    train_small(data, out, resume=True)
    require_undisturbed(out, whole)


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_the_clock_may_jump(data, whole, tmp_path, monkeypatch, jump) -> None:
    now, out = time.time, tmp_path / "run"
    with monkeypatch.context() as patch:
        after_epoch(2, lambda: patch.setattr(time, "time", lambda: now() + jump), patch)
        train_small(data, out)
    require_undisturbed(out, whole)


def test_what_a_kill_leaves_behind_is_removed(data, run) -> None:
    left = run / "stage1" / ".state.safetensors.x1y2.tmp"
    left.write_bytes(b"half a state")
    train_small(data, run, resume=True)
    assert not left.exists()


HOLD = """
import sys, time
from pathlib import Path
from gsb_vit.files import locked
with locked(Path(sys.argv[1]), "gsb-vit train"):
    print("held", flush=True)
    time.sleep(3600)
"""


def test_a_second_process_is_refused_until_the_first_has_ended(data, run, whole) -> None:
    command = [sys.executable, "-c", HOLD, str(run)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(SOURCE)})
    try:
        assert holder.stdout.readline() == b"held\n"
        assert f"another gsb-vit train is at work in {run}" in refusal(train_small, data, run, resume=True)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    train_small(data, run, resume=True)
    require_undisturbed(run, whole)


def test_two_runs_that_begin_at_once_do_not_share_a_folder(data, tmp_path, monkeypatch) -> None:
    """The other one takes the folder while this one verifies its pictures."""
    out, draw = tmp_path / "run", prepare.draw_split

    def late(*arguments, **options):
        drawn = draw(*arguments, **options)
        out.mkdir()
        held.enter_context(locked(out, "gsb-vit train"))
        return drawn

    with contextlib.ExitStack() as held, monkeypatch.context() as patch:
        patch.setattr(prepare, "draw_split", late)
        assert "another gsb-vit train is at work" in refusal(train_small, data, out)
        assert [path.name for path in out.iterdir()] == [files.LOCK]
    train_small(data, out)


def test_the_command_line_says_it_in_one_line(data, run, capsys) -> None:
    (run / "run.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", str(data), "--out", str(run), "--recipe", str(run / "recipe.toml"), "--resume"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and said.startswith(f"gsb-vit: {run / 'run.json'} is damaged")
