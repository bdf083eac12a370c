"""A run holds to the split it began with, and its models are judged on pictures that they have not seen."""

import io
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from class_folders import fill
from small_runs import CLASSES, stopped_after, train_small, write_pictures

import gsb_vit
from gsb_vit.data.stored_split import read_split
from gsb_vit.errors import InputError
from gsb_vit.export.run import export_run
from gsb_vit.models.trained import read_tensors
from gsb_vit.runtime.evaluate import evaluate_packed
from gsb_vit.runtime.packed_file import read
from gsb_vit.train.evaluate import evaluate_run

FILES = [f"{stage}/{name}.safetensors" for stage in ("teacher", "stage1", "stage2") for name in ("best", "last")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory) -> Path:
    """A run that nothing disturbed: 36 of 60 pictures to train on, 6 to choose an epoch, 18 to test."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_small(data, out)
    split = read_split(out)
    assert [len(split.parts[name].digests) for name in ("train", "validation", "test")] == [36, 6, 18]
    return out


def stopped(data: Path, out: Path, line: int = 3) -> Path:
    """A run that was stopped after so many epochs in all."""
    with stopped_after(line):
        train_small(data, out)
    return out


def judge(model: Path, spec: Path | str) -> tuple[int, int, int]:
    """Given, seen and judged pictures of a run, or of a packed file."""
    if model.is_dir():
        found = evaluate_run(model, str(spec))
    else:
        found = evaluate_packed(gsb_vit.load(model, engine="reference"), str(spec), read(model).provenance)
    return found["n_given"], found["n_seen"], found["n"]


@pytest.fixture(scope="module")
def packed(whole: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "model.safetensors"
    export_run(whole, path, engine="reference")
    return path


@pytest.mark.parametrize("kind", ["run", "packed"])
def test_judged_on_what_was_not_seen_whatever_the_folder_is_called(kind, whole, packed, data, tmp_path) -> None:
    model = whole if kind == "run" else packed
    assert judge(model, data) == (60, 42, 18)
    copy = shutil.copytree(data, tmp_path / "copy")
    assert judge(model, copy) == (60, 42, 18)
    for name in CLASSES:
        fill(copy / name, 1, start=900)
    assert judge(model, copy) == (63, 42, 21)
    for name in CLASSES:
        fill(tmp_path / "new" / "mine" / name, 24)
    assert judge(model, tmp_path / "new" / "mine") == (72, 0, 72)


@pytest.mark.parametrize("kind", ["run", "packed"])
def test_one_bad_picture_does_not_cost_the_others(kind, whole, packed, data, tmp_path) -> None:
    here = shutil.copytree(data, tmp_path / "mine")
    (here / "a" / "bad.png").write_bytes(b"no picture")

    def judged(**ways):
        if kind == "run":
            return evaluate_run(whole, str(here), **ways)
        model = gsb_vit.load(packed, engine="reference")
        return evaluate_packed(model, str(here), read(packed).provenance, **ways)

    with pytest.raises(InputError, match=r"1 of 19 pictures cannot be used: .*bad\.png.*--skip-bad"):
        judged()
    said = []
    found = judged(skip_bad=True, say=said.append)
    assert (found["n_given"], found["n_seen"], found["n_left_out"], found["n"]) == (61, 42, 1, 18)
    assert said[-2:] == ["  1 that cannot be used are left out:", f"    {here / 'a' / 'bad.png'}"]


def test_a_run_of_a_built_in_set_is_judged_by_digests_too(tmp_path) -> None:
    out = tmp_path / "run"
    run = train_small("digits", out, "data.shots=10", *(f"{stage}.epochs=1" for stage in ("teacher", "stage1")))
    assert judge(out, "digits:") == (1797, 100, 1697) and run.test["n"] == 539


def test_digests_can_be_left_out_of_a_packed_file(whole, tmp_path) -> None:
    path = tmp_path / "model.safetensors"
    export_run(whole, path, engine="reference", keep_digests=False)
    assert "seen" not in read(path).provenance


def test_resuming_goes_on_with_the_stored_split(whole, data, tmp_path) -> None:
    """Moved, with new pictures among the old ones: the very weights of the run that nothing disturbed."""
    here = shutil.copytree(data, tmp_path / "mine")
    out = stopped(here, tmp_path / "run")
    before = read_split(out)
    there = here.rename(tmp_path / "moved")
    for name in CLASSES:
        fill(there / name, 2, start=900)
        (there / name / "900.png").rename(there / name / "000a.png")
    said = io.StringIO()
    train_small(there, out, resume=True, stream=said)
    assert f"the run began with {here}; its pictures are found in {there} by their digests" in said.getvalue()
    assert "6 pictures are new since the run began; they are ignored" in said.getvalue()
    assert read_split(out) == before and json.loads((out / "run.json").read_text())["data"] == str(there)
    for name in FILES:
        ours, theirs = (read_tensors(folder / name)[0] for folder in (out, whole))
        assert all(ours[key].equal(theirs[key]) for key in theirs), name
    results = [json.loads((folder / "summary.json").read_text())["test"] for folder in (out, whole)]
    assert results[0] == results[1]


def test_resuming_without_a_test_picture_tests_on_no_other(data, tmp_path) -> None:
    here = shutil.copytree(data, tmp_path / "mine")
    out = stopped(here, tmp_path / "run")
    Path(read_split(out).parts["test"].names[0]).unlink()
    said = io.StringIO()
    run = train_small(here, out, resume=True, stream=said)
    assert "1 of the run's 18 test pictures are gone" in said.getvalue() and run.test["n"] == 17


def test_resuming_without_training_pictures_needs_a_word(data, tmp_path) -> None:
    here = shutil.copytree(data, tmp_path / "mine")
    out = stopped(here, tmp_path / "run")
    Path(read_split(out).parts["train"].names[0]).unlink()
    with pytest.raises(InputError, match=r"1 of the run's 36 training pictures are gone.*--allow-missing"):
        train_small(here, out, resume=True)
    run = train_small(here, out, resume=True, allow_missing=True)
    assert run.test["n"] == 18 and judge(out, here) == (59, 41, 18)


def test_other_data_is_refused(whole, tmp_path) -> None:
    with pytest.raises(InputError, match="holds none of the run's pictures"):
        train_small(write_pictures(tmp_path / "other"), whole, resume=True)


def test_a_run_that_lost_its_split_goes_on_only_with_the_same_data(data, tmp_path) -> None:
    here = shutil.copytree(data, tmp_path / "mine")
    out = stopped(here, tmp_path / "run")
    split = (out / "split.json").read_bytes()
    (out / "split.json").unlink()
    fill(here / "a", 5, start=900)
    with pytest.raises(InputError, match=r"lost its split\.json, and its data has changed since teacher"):
        train_small(here, out, resume=True)
    for path in (here / "a").glob("9*.png"):
        path.unlink()
    train_small(here, out, resume=True)
    assert (out / "split.json").read_bytes() == split


def test_the_report_shows_pictures_of_the_stored_test_part(whole, data, monkeypatch) -> None:
    from gsb_vit.report import page

    shown = {}
    monkeypatch.setattr(page, "write_report", lambda run, **given: shown.update(given))
    fill(data / "a", 6, start=900)
    try:
        gsb_vit.Run(whole).report(engine="reference")
    finally:
        for path in (data / "a").glob("9*.png"):
            path.unlink()
    assert [str(path) for path in shown["test"].sources] == list(read_split(whole).parts["test"].names)


def test_unreadable_pictures_stop_a_run_before_it_begins_or_are_left_out(data, tmp_path) -> None:
    here, out = shutil.copytree(data, tmp_path / "mine"), tmp_path / "run"
    (here / "b" / "003.png").write_bytes((here / "b" / "003.png").read_bytes()[:100])
    with pytest.raises(InputError, match=r"1 of 60 pictures cannot be used: .*b/003\.png.*--skip-bad") as caught:
        train_small(here, out)
    assert "\n" not in str(caught.value) and not out.exists()
    said = io.StringIO()
    train_small(here, out, skip_bad=True, stream=said)
    assert "1 undecodable picture left out" in said.getvalue()
    left_out = json.loads((out / "summary.json").read_text())["left_out"]
    assert list(left_out) == [str(here / "b" / "003.png")] and read_split(out).left_out == left_out
    assert train_small(here, out, resume=True).test["n"] == len(read_split(out).parts["test"].digests)
