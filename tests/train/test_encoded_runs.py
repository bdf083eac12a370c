"""A run on a zip archive: it goes on with the folder that was unpacked, and is judged on a list."""

import csv
import shutil
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from small_runs import stopped_after, train_small, write_pictures

from gsb_vit.data.stored_split import read_split
from gsb_vit.models.trained import read_tensors
from gsb_vit.train.evaluate import evaluate_run

FILES = [f"{stage}/{name}.safetensors" for stage in ("teacher", "stage1", "stage2") for name in ("best", "last")]

WORKERS = ("augment.policy=timm", "augment.workers=2", 'augment.rand_augment=""')  # each opens the archive itself


def test_a_run_on_an_archive_goes_on_with_the_folder_and_is_judged_on_a_list(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "mine")
    shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "mine")
    train_small(tmp_path / "packed.zip", tmp_path / "whole", *WORKERS)
    with stopped_after(3):
        train_small(tmp_path / "packed.zip", tmp_path / "run", *WORKERS)
    (tmp_path / "packed.zip").unlink()
    train_small(data, tmp_path / "run", *WORKERS, resume=True)
    for name in FILES:
        one, other = (read_tensors(tmp_path / run / name)[0] for run in ("run", "whole"))
        assert one.keys() == other.keys() and all(bool((one[key] == other[key]).all()) for key in one), name
    names = read_split(tmp_path / "run").parts["train"].names
    assert names[0] == f"{tmp_path}/packed.zip/mine/a/{Path(names[0]).name}"
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = [(path.relative_to(tmp_path), path.parent.name) for path in sorted(data.rglob("*.png"))]
        csv.writer(file).writerows([("path", "label"), *rows])
    found = evaluate_run(tmp_path / "run", str(tmp_path / "list.csv"))
    assert (found["n"], found["n_given"], found["n_seen"]) == (18, 60, 42)
