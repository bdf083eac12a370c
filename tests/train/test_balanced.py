"""A run on classes of far different size shows them equally often, records it, and resumes to the same weights."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate")

from class_folders import fill
from small_runs import stopped_after, train_small

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.stored_split import read_split
from gsb_vit.train.batches import TrainingPictures
from gsb_vit.train.recipe import AugmentRecipe

FILES = [f"{stage}/{name}.safetensors" for stage in ("teacher", "stage1", "stage2") for name in ("best", "last")]


@pytest.mark.parametrize("policy", ["batch", "timm", "none"])
def test_an_epoch_of_every_policy_shows_the_classes_equally_often(policy: str) -> None:
    labels = np.repeat([0, 1, 2], [20, 20, 2])
    sources = tuple(np.full((8, 8, 3), 5 * i, np.uint8) for i in range(42))
    pictures = LabelledPictures(sources, labels)
    training = TrainingPictures(pictures, Preprocessing(size=(8, 8)), AugmentRecipe(policy=policy), balanced=True)
    shown = np.concatenate([view.labels.numpy() for view in training.views((0, 1, 2), 7)])
    assert np.bincount(shown).tolist() == [14, 14, 14]


def test_a_balanced_run_is_recorded_and_resumes_exactly(tmp_path: Path) -> None:
    for name, count in (("a", 20), ("b", 20), ("c", 5)):
        fill(tmp_path / "mine" / name, count)
    train_small(tmp_path / "mine", tmp_path / "whole")
    assert read_split(tmp_path / "whole").balance == "sampling"
    with stopped_after(3):
        train_small(tmp_path / "mine", tmp_path / "run")
    train_small(tmp_path / "mine", tmp_path / "run", resume=True)
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
