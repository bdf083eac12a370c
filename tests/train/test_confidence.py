"""Mean probabilities of training pictures: what the training step saw, over all epochs, kept through a stop."""

import numpy as np
import pytest
import torch

pytest.importorskip("accelerate")

from accelerate import Accelerator
from rich.console import Console

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.train import confidence
from gsb_vit.train.batches import TrainingPictures
from gsb_vit.train.confidence import Confidence, read_confidence
from gsb_vit.train.recipe import AugmentRecipe
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import train

TINY = ["model.depth=1", "model.embed_dim=32", "data.shots=20", "threads=1", "stage1.epochs=0", "stage2.epochs=0"]


def test_means_are_over_all_that_was_seen(tmp_path):
    generator = torch.Generator().manual_seed(0)
    kept, accelerator = Confidence(3, 4), Accelerator(cpu=True)
    seen = {0: [], 1: [], 2: []}
    for batches in ([[0, 2], [1]], [[2, 2]], [[1, 0]]):
        for indices in batches:
            logits = torch.randn(len(indices), 4, generator=generator)
            kept.add(torch.tensor(indices), logits)
            for index, row in zip(indices, logits.double().softmax(-1), strict=True):
                seen[index].append(row.numpy())
        kept.finish_epoch(accelerator)
    resumed = Confidence(3, 4)
    resumed.restore(kept.tensors())
    resumed.write(tmp_path)
    expected = np.stack([np.mean(rows, axis=0) for rows in seen.values()])
    np.testing.assert_allclose(read_confidence(tmp_path), expected, atol=1e-3)


def test_what_was_not_seen_whole_is_not_written(tmp_path, monkeypatch):
    kept = Confidence(2, 3)
    kept.add(torch.tensor([0]), torch.zeros(1, 3))
    kept.finish_epoch(Accelerator(cpu=True))
    kept.write(tmp_path)
    assert read_confidence(tmp_path) is None
    older = Confidence(2, 3)
    older.restore({})
    assert not older.active
    monkeypatch.setattr(confidence, "MOST_NUMBERS", 5)
    assert not Confidence(2, 3).active and Confidence(2, 3).sums.numel() == 0


@pytest.mark.parametrize("policy", ["batch", "none", "timm"])
def test_every_batch_names_its_pictures(policy):
    sources = [np.full((8, 8, 3), 20 * k, np.uint8) for k in range(10)]
    labels = np.arange(10)[::-1].copy()
    recipe = AugmentRecipe(policy=policy, rand_augment="", color_jitter=0.0, brightness=0, contrast=0, saturation=0)
    preprocessing = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    training = TrainingPictures(LabelledPictures(tuple(sources), labels), preprocessing, recipe)
    seen = []
    for view in training.views((0, 1), 5):
        assert view.labels.tolist() == labels[view.indices.numpy()].tolist()
        values = (255 * view.images.mean(dim=(1, 2, 3)) / 20).round().long()
        assert values.tolist() == view.indices.tolist()
        seen += view.indices.tolist()
    assert sorted(seen) == list(range(10))


def test_a_run_records_what_its_stages_saw(tmp_path):
    recipe = load_recipe("quickstart", [*TINY, "teacher.epochs=12", "data.label_noise=0.1"])
    train(recipe, "digits", tmp_path / "run", console=Console(quiet=True))
    found = read_confidence(tmp_path / "run" / "teacher")
    assert found.shape == (170, 10)  # 15 % of the 200 are for validation
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=0.01)


def test_mixed_pictures_are_not_recorded(tmp_path):
    recipe = load_recipe("quickstart", [*TINY, "teacher.epochs=1", "teacher.mixup=1.0"])
    train(recipe, "digits", tmp_path / "run", console=Console(quiet=True))
    assert read_confidence(tmp_path / "run" / "teacher") is None
