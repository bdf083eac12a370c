"""Views: student and teacher see the same one, mixed alike; cached views equal live ones and survive a stop."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch import nn
from torch.nn import functional

pytest.importorskip("accelerate")

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.models.trained import write_tensors
from gsb_vit.train import views as views_module
from gsb_vit.train.augment import Mixing, reduced
from gsb_vit.train.batches import TrainingPictures
from gsb_vit.train.distill import DistillationTask
from gsb_vit.train.recipe import AugmentRecipe, DistillationRecipe
from gsb_vit.train.seeds import seed_everything
from gsb_vit.train.views import CachedViews, LiveViews

STUDENT = Preprocessing(size=(16, 16))
TEACHER = Preprocessing(size=(40, 40), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LIVELY = AugmentRecipe(vertical_flip=0.5, random_erasing=0.5)


def random_pictures(count: int, size: int = 60) -> LabelledPictures:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    sources = tuple(np.kron(p, np.ones((size // 12, size // 12, 1), np.uint8)) for p in small)
    return LabelledPictures(sources, np.arange(count, dtype=np.int64) % 3)


def pixels(images: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return images * std + mean


def training(count: int = 12, teacher: Preprocessing = TEACHER, recipe: AugmentRecipe = LIVELY) -> TrainingPictures:
    return TrainingPictures(random_pictures(count), STUDENT, recipe, teacher=teacher)


@pytest.mark.parametrize("policy", ["batch", "timm"])
def test_the_students_view_is_the_teachers_reduced(policy: str) -> None:
    recipe = dataclasses.replace(LIVELY, policy=policy, random_erasing=0.0, rand_augment="")
    for images, labels, taught, _ in training(recipe=recipe).views((1, 2), 6):
        assert images.shape == (6, 3, 16, 16) and taught.shape == (6, 3, 40, 40) and labels.shape == (6,)
        seen = pixels(taught, TEACHER)
        assert torch.allclose(pixels(images, STUDENT), reduced(seen, (16, 16)), atol=1e-5)
        # by another way of reducing, about the same; a mirrored picture would be far off
        other = functional.adaptive_avg_pool2d(seen, 16)
        assert float((pixels(images, STUDENT) - other).abs().mean()) < 0.03
        assert float((pixels(images, STUDENT) - other.flip(3)).abs().mean()) > 0.08


def test_a_view_is_nearly_the_one_that_is_drawn_in_the_students_own_size() -> None:
    smooth = np.stack(np.meshgrid(np.arange(60), np.arange(60)), 2).astype(np.uint8) * 4
    source = LabelledPictures((np.concatenate([smooth, smooth[..., :1]], 2),) * 6, np.zeros(6, dtype=np.int64))
    alone = TrainingPictures(source, STUDENT, dataclasses.replace(LIVELY, random_erasing=0.0))
    both = TrainingPictures(source, STUDENT, alone.recipe, teacher=TEACHER)
    for (expected, _), (images, *_) in zip(alone.epoch((1, 2), 6), both.views((1, 2), 6), strict=True):
        assert float((pixels(expected, STUDENT) - pixels(images, STUDENT)).abs().mean()) < 0.02


def test_a_smaller_teacher_sees_the_students_view_reduced() -> None:
    small = Preprocessing(size=(8, 8))
    plain = list(TrainingPictures(random_pictures(12), STUDENT, LIVELY).epoch((1, 2), 6))
    for (expected, _), (images, _, taught, _) in zip(plain, training(teacher=small).views((1, 2), 6), strict=True):
        assert torch.equal(images, expected)
        assert torch.allclose(taught, reduced(images, (8, 8)), atol=1e-5)


def test_without_variation_each_sees_its_own_evaluation_picture() -> None:
    recipe = dataclasses.replace(LIVELY, policy="none")
    images, _, taught, _ = next(training(recipe=recipe).views((1, 2), 12))
    assert images.shape[-1] == 16 and taught.shape[-1] == 40
    source = random_pictures(12).sources
    order = np.random.default_rng((1, 2)).permutation(12)
    assert np.allclose(pixels(taught, TEACHER)[0].permute(1, 2, 0) * 255, TEACHER(source[order[0]]), atol=1e-2)


def test_one_tensor_serves_both_where_they_read_alike() -> None:
    view = next(training(teacher=STUDENT).views((1, 2), 6))
    assert view.images is view.taught


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixing_is_timms_to_the_last_bit(mixup: float, cutmix: float) -> None:
    images, labels = torch.rand(8, 3, 16, 12), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    seed_everything(3)
    expected = Mixup(mixup, cutmix, mode="elem", label_smoothing=0.0, num_classes=3)(images.clone(), labels)
    seed_everything(3)
    found = Mixing(mixup, cutmix, classes=3)(images, labels)
    assert torch.equal(found[0], expected[0]) and torch.allclose(found[1], expected[1])


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_both_sizes_are_mixed_alike(mixup: float, cutmix: float) -> None:
    """A picture is constant, so its mixed parts show at any size; 48 is three times 16, so boxes fall on pixels."""
    values = torch.arange(7.0).view(-1, 1, 1, 1)
    small, large = values.expand(-1, 3, 16, 16), values.expand(-1, 3, 48, 48)
    seed_everything(0)
    (first, second), shares = Mixing(mixup, cutmix, classes=7).together([small, large], torch.arange(7))
    assert torch.allclose(functional.interpolate(first, scale_factor=3, mode="nearest"), second)
    assert torch.allclose(second.mean(dim=(1, 2, 3)), shares @ torch.arange(7.0), atol=1e-5)
    assert not torch.equal(first, small)


class Means(nn.Module):
    """A teacher whose logits are smooth in the picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(3 * 16, 3)
        self.asked = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += len(images)
        return self.line(functional.adaptive_avg_pool2d(images, 4).flatten(1))


def cached(folder: Path, count: int = 13, mixup: float = 0.4, cutmix: float = 1.0) -> tuple[CachedViews, Means]:
    teacher = Means()
    task = DistillationTask(nn.Flatten(), teacher, DistillationRecipe("match"))
    pictures, mixing = training(count), Mixing(mixup, cutmix, classes=3)
    return CachedViews(pictures, mixing, task, 2, (0, 4), folder / "views" / "teacher"), teacher


@pytest.mark.parametrize("mixup, cutmix", [(0.0, 0.0), (0.4, 1.0)])
@pytest.mark.parametrize("count, batch", [(12, 4), (13, 5)])
def test_cached_views_equal_live_ones(tmp_path: Path, mixup: float, cutmix: float, count: int, batch: int) -> None:
    """What the file holds is what the teacher says of the pictures that the student is shown."""
    views, teacher = cached(tmp_path, count, mixup, cutmix)
    shown = []
    for epoch in (0, 1, 2):
        for step in views.batches((0, 3, epoch), epoch, batch, 0, 1):
            shown.append(step.images)
            assert views.lesson(step).logits.shape == (batch, 3)
            assert step.targets.ndim == (2 if mixup else 1)
    assert teacher.asked == 2 * count  # each of two views once, and in the third epoch none
    plan = views.plan(0)
    places = np.arange(count)
    (small, large), labels, _ = views.pictures(plan, places)
    (alone,), _, _ = views.pictures(plan, places, own_only=True)
    assert torch.equal(alone, small)
    with torch.inference_mode():
        live = teacher(large)
    assert torch.allclose(views.logits(0, plan, write=False).float(), live, atol=2e-3)
    # every picture of an epoch is one of the view's, whatever its batch
    for picture in torch.cat(shown[: count // batch]):
        assert float((small - picture).abs().amax(dim=(1, 2, 3)).min()) < 1e-5
    assert not torch.equal(views.plan(0).draws, views.plan(1).draws)
    assert sorted(labels.tolist()) == sorted(random_pictures(count).labels.tolist())


def test_cached_lessons_belong_to_their_pictures(tmp_path: Path) -> None:
    views, teacher = cached(tmp_path, 12)
    live = LiveViews(views.training, views.mixing, views.task)
    for step in views.batches((0, 3, 5), 5, 4, 0, 1):
        plan = views.plan(1)
        (small, large), _, _ = views.pictures(plan, np.arange(12))
        for picture, said in zip(step.images, views.lesson(step).logits, strict=True):
            place = int((small - picture).abs().amax(dim=(1, 2, 3)).argmin())
            assert torch.allclose(said, teacher(large[place : place + 1])[0], atol=2e-3)
    assert live.lesson(step._replace(taught=large)).logits.shape == (12, 3)


def test_two_processes_share_the_cached_batches_of_one(tmp_path: Path) -> None:
    views, _ = cached(tmp_path, 12)
    whole = list(views.batches((0, 3, 0), 0, 4, 0, 1))
    halves = [list(views.batches((0, 3, 0), 0, 4, rank, 2)) for rank in (0, 1)]
    for one, left, right in zip(whole, *halves, strict=True):
        assert torch.allclose(one.images, torch.cat([left.images, right.images]), atol=1e-6)
        assert torch.equal(one.taught, torch.cat([left.taught, right.taught]))


def test_a_view_is_asked_for_once_and_drawing_it_leaves_the_generators_alone(tmp_path: Path, monkeypatch) -> None:
    first, teacher = cached(tmp_path)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    list(first.batches((0, 3, 0), 0, 4, 0, 1))
    assert torch.equal(torch.rand(3), expected[0]) and np.array_equal(np.random.rand(3), expected[1])
    second, other = cached(tmp_path)
    again = list(second.batches((0, 3, 0), 0, 4, 0, 1))
    assert teacher.asked == 13 and other.asked == 0
    assert [p.name for p in (tmp_path / "views").iterdir()] == ["teacher-000.safetensors"]
    assert all(step.taught.shape == (4, 3) for step in again)

    def breaks(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(views_module, "write_tensors", breaks)
    with pytest.raises(KeyboardInterrupt):
        list(second.batches((0, 3, 1), 1, 4, 0, 1))
    monkeypatch.setattr(views_module, "write_tensors", write_tensors)
    assert len(list((tmp_path / "views").iterdir())) == 1
    list(second.batches((0, 3, 1), 1, 4, 0, 1))
    assert len(list((tmp_path / "views").iterdir())) == 2
