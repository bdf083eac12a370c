"""Batches: evaluation pictures are the device's, variations depend on seeds alone and move pictures as they should."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("timm")

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.train.augment import Mixing
from gsb_vit.train.batches import EvaluationPictures, TrainingPictures, _policy_operations, _posterize, _TimmDataset
from gsb_vit.train.recipe import AugmentRecipe
from gsb_vit.train.seeds import seed_everything

SIZE = Preprocessing(size=(16, 16), resize="crop", crop_ratio=0.875, interpolation="bilinear")
STILL = AugmentRecipe(scale=(1.0, 1.0), ratio=(1.0, 1.0), horizontal_flip=0.0, rotation=0.0)
STILL = dataclasses.replace(STILL, brightness=0.0, contrast=0.0, saturation=0.0)
LIVELY = AugmentRecipe(vertical_flip=0.5, random_erasing=0.5)


def gradient_pictures(count: int, size: int = 20) -> LabelledPictures:
    """Pictures that grow brighter to the right (red) and downwards (green)."""
    ramp = np.linspace(0, 220, size).astype(np.uint8)
    one = np.stack(
        [np.tile(ramp, (size, 1)), np.tile(ramp[:, None], (1, size)), np.full((size, size), 90, np.uint8)], 2
    )
    return LabelledPictures(tuple(one + np.uint8(i) for i in range(count)), np.arange(count, dtype=np.int64) % 3)


def batches(pictures: TrainingPictures, rank: int = 0, world: int = 1, seed=(1, 2)) -> list[tuple]:
    return list(pictures.epoch(seed, 8, rank, world))


def test_evaluation_pictures_are_those_of_the_device(tmp_path: Path) -> None:
    for name, size in (("a.png", (40, 20)), ("b.png", (20, 40))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    pictures = LabelledPictures((tmp_path / "a.png", tmp_path / "b.png"), np.array([0, 1]))
    expected = np.stack([SIZE(tmp_path / "b.png"), SIZE(tmp_path / "a.png")])
    for limit in (4096, 0):
        found = EvaluationPictures(pictures, SIZE, limit)
        for _ in range(2):
            assert np.array_equal(found.batch(np.array([1, 0])), expected)


def test_a_file_that_is_not_a_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    pictures = LabelledPictures((tmp_path / "broken.jpg",), np.array([0]))
    with pytest.raises(InputError, match=r"broken\.jpg"):
        EvaluationPictures(pictures, SIZE).batch(np.array([0]))


def test_normalise_is_the_formula() -> None:
    setting = Preprocessing(size=(2, 2), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    values = np.random.default_rng(0).integers(0, 256, (2, 2, 2, 3), dtype=np.uint8)
    expected = (values / 255 - np.array(setting.mean)) / np.array(setting.std)
    assert np.allclose(normalize(values, setting).numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


@pytest.mark.parametrize("policy", ["batch", "none"])
def test_an_epoch_shows_every_picture_once_and_repeats_with_its_seed(policy: str) -> None:
    source = gradient_pictures(24)
    pictures = TrainingPictures(source, SIZE, dataclasses.replace(LIVELY, policy=policy))
    first, second = batches(pictures), batches(pictures)
    assert len(first) == pictures.steps(8) == 3
    for (a, labels), (b, _) in zip(first, second, strict=True):
        assert a.shape == (8, 3, 16, 16) and torch.equal(a, b) and labels.dtype == torch.int64
    assert torch.bincount(torch.cat([labels for _, labels in first])).tolist() == [8, 8, 8]
    assert not torch.equal(first[0][0], batches(pictures, seed=(1, 3))[0][0])


@pytest.mark.parametrize("policy", ["batch", "timm"])
def test_two_processes_share_the_batches_of_one(policy: str) -> None:
    recipe = dataclasses.replace(LIVELY, policy=policy)
    pictures = TrainingPictures(gradient_pictures(16), SIZE, recipe)
    whole, left, right = batches(pictures), batches(pictures, 0, 2), batches(pictures, 1, 2)
    for one, *halves in zip(whole, left, right, strict=True):
        assert torch.allclose(one[0], torch.cat([h[0] for h in halves]), atol=1e-6)
        assert torch.equal(one[1], torch.cat([h[1] for h in halves]))


def test_timm_variations_leave_the_generators_alone() -> None:
    pictures = TrainingPictures(gradient_pictures(8), SIZE, dataclasses.replace(LIVELY, policy="timm"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    batches(pictures)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("policy", ["rand-m10-mstd0.0-inc1", "augmix-m10-w1", "original"])
def test_every_operation_of_timms_policies_runs_at_its_strongest(policy: str) -> None:
    """Pillow 13 refuses to keep no bits, which timm's strongest posterizing asks for."""
    recipe = dataclasses.replace(LIVELY, policy="timm", rand_augment=policy)
    dataset = _TimmDataset(gradient_pictures(3), SIZE, recipe)
    operations = list(_policy_operations(dataset.transform))
    assert any(one.name.startswith("Posterize") for one in operations)
    for one in operations:
        one.prob, one.magnitude = 1.0, 10
        assert one(Image.new("RGB", (16, 16), (100, 150, 200))).size == (16, 16)


def test_no_bits_are_black_and_eight_are_the_picture() -> None:
    picture = Image.new("RGB", (2, 2), (100, 150, 200))
    found = [_posterize(picture, bits).getpixel((0, 0)) for bits in (0, 1, 8)]
    assert found == [(0, 0, 0), (0, 128, 128), (100, 150, 200)]


def test_without_variation_the_whole_picture_is_seen() -> None:
    images, _ = batches(TrainingPictures(gradient_pictures(8, size=16), SIZE, STILL))[0]
    red = (images[0, 0] * 0.5 + 0.5) * 255
    expected = torch.linspace(0, 220, 16)
    assert float((red.mean(0) - red.mean(0)[0] - expected).abs().max()) < 3


def test_flips_mirror_the_picture() -> None:
    still = batches(TrainingPictures(gradient_pictures(8, 16), SIZE, STILL))[0][0]
    flipped = dataclasses.replace(STILL, horizontal_flip=1.0)
    assert torch.allclose(
        batches(TrainingPictures(gradient_pictures(8, 16), SIZE, flipped))[0][0], still.flip(3), atol=1e-4
    )
    flipped = dataclasses.replace(STILL, vertical_flip=1.0)
    assert torch.allclose(
        batches(TrainingPictures(gradient_pictures(8, 16), SIZE, flipped))[0][0], still.flip(2), atol=1e-4
    )


def test_a_quarter_turn_turns_the_picture() -> None:
    recipe = dataclasses.replace(STILL, rotation=90.0)
    still = batches(TrainingPictures(gradient_pictures(8, 16), SIZE, STILL))[0][0]
    turned = batches(TrainingPictures(gradient_pictures(8, 16), SIZE, recipe))[0][0]
    slopes = turned[:, 0].mean(1)[:, -1] - turned[:, 0].mean(1)[:, 0]
    assert float((still[:, 0].mean(1)[:, -1] - still[:, 0].mean(1)[:, 0]).min()) > 1.7
    assert float(slopes.std()) > 0.05


def test_a_crop_of_a_wide_picture_keeps_its_proportions() -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[5:15, 15:25] = 255
    pictures = LabelledPictures((wide,) * 8, np.zeros(8, dtype=np.int64))
    recipe = dataclasses.replace(STILL, scale=(0.5, 0.5))
    images, _ = batches(TrainingPictures(pictures, Preprocessing(size=(20, 20)), recipe))[0]
    for image in images[:, 0] > 0:
        rows, columns = image.any(1).sum(), image.any(0).sum()
        if columns > 0 and bool(image[:, 0].any() | image[:, -1].any()) is False:
            assert abs(int(rows) - int(columns)) <= 1


def test_fewer_pictures_than_a_batch_make_one_short_batch() -> None:
    pictures = TrainingPictures(gradient_pictures(5), SIZE, LIVELY)
    assert [len(labels) for _, labels in batches(pictures)] == [5]
    assert [len(labels) for _, labels in batches(pictures, 1, 2)] == [2]


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_pictures_have_the_shares_of_their_parts(mixup: float, cutmix: float) -> None:
    """Picture i is constant i, so a mixed picture's mean says how much of it comes from its partner."""
    labels = torch.arange(7)
    images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    seed_everything(0)
    mixed, shares = Mixing(mixup, cutmix, classes=7)(images, labels)
    assert torch.allclose(shares.sum(1), torch.ones(7))
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), shares @ torch.arange(7.0), atol=1e-5)
    assert ((shares > 0).sum(1) == torch.tensor([2, 2, 2, 2, 2, 2, 1])).sum() >= 5  # a box may be empty
    assert torch.equal(mixed[6], images[6])  # the last of an odd batch
    assert torch.equal(images[:, 0, 0, 0], torch.arange(7.0))
    whole = [len(picture.unique()) == 1 for picture in mixed]
    assert all(whole) if not cutmix else not all(whole)


def test_no_mixing_leaves_the_batch_alone() -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    mixed, same = Mixing(0.0, 0.0, classes=4)(images, labels)
    assert mixed is images and same is labels
