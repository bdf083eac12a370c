"""Early stopping: where it stops, that it is recorded, and that a resumed run stops at the same epoch."""

import json
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from small_runs import stopped_after, train_small, write_pictures

from gsb_vit.errors import InputError
from gsb_vit.train.recipe_io import load_recipe

# On random pictures no epoch is better for long.
PATIENT = ["stage1.epochs=30", "stage1.patience=3", "teacher.epochs=1", "stage2.epochs=1", "validate_every=1"]
FILES = [f"{stage}/{name}.safetensors" for stage in ("teacher", "stage1", "stage2") for name in ("best", "last")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train_small(data, out, *PATIENT)
    return out


def lines(run: Path, stage: str) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["stage"] == stage]


def test_a_stage_stops_when_no_epoch_is_better_for_so_long(whole: Path) -> None:
    scores = [(one["validation_top1"], -one["validation_loss"]) for one in lines(whole, "stage1")]
    best = scores.index(max(scores)) + 1
    assert len(scores) == best + 3 < 30
    summary = json.loads((whole / "summary.json").read_text())["stages"]
    assert summary["stage1"]["stopped_after"] == len(scores) and summary["stage1"]["chosen_epoch"] == best
    assert "stopped_after" not in summary["stage2"] and len(lines(whole, "stage2")) == 1


@pytest.mark.parametrize("where", ["inside", "at the end", "after it"])
def test_a_resumed_run_stops_at_the_same_epoch_with_the_same_weights(
    whole: Path, data: Path, tmp_path: Path, where: str
) -> None:
    epochs = len(lines(whole, "stage1"))
    with stopped_after({"inside": 3, "at the end": 1 + epochs, "after it": 2 + epochs}[where]):
        train_small(data, tmp_path / "run", *PATIENT)
    train_small(data, tmp_path / "run", *PATIENT, resume=True)
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name
    assert len(lines(tmp_path / "run", "stage1")) == epochs
    results = [json.loads((run / "summary.json").read_text())["stages"]["stage1"] for run in (tmp_path / "run", whole)]
    assert results[0]["stopped_after"] == results[1]["stopped_after"]


def test_patience_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"stage1\.patience = -1 is out of range"):
        load_recipe(None, ["stage1.patience=-1"])
    with pytest.raises(InputError, match=r"patience needs stage2\.select"):
        load_recipe(None, ["stage2.patience=5", "stage2.select=last"])


def test_no_shipped_recipe_stops_early() -> None:
    for name in ("default", "fast", "best", "best_own", "quickstart", "authors"):
        recipe = load_recipe(name)
        assert not any(getattr(recipe, stage).patience for stage in ("teacher", "twin", "stage1", "stage2"))
