"""The losses of a distilled student against their formulas."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from gsb_vit.errors import InputError
from gsb_vit.train.distill import DistillationTask
from gsb_vit.train.recipe import DistillationRecipe


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
        self.distilled = False

    def set_distilled_training(self, enable: bool) -> None:
        self.distilled = enable

    def forward(self, x: torch.Tensor):
        return (self.a(x), self.b(x)) if self.distilled and self.training else (self.a(x) + self.b(x)) / 2


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


@pytest.fixture
def case() -> tuple:
    torch.manual_seed(0)
    student, teacher = TwoHeads().double(), nn.Linear(3, 4).double()
    return student, teacher, torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])


def losses(case: tuple, recipe: DistillationRecipe) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    student, teacher, x, y = case
    task = DistillationTask(student, teacher, recipe).train()
    out = task(x, y, task.lesson(x))
    heads = [log_softmax(head(x).detach().numpy()) for head in (student.a, student.b)]
    assert torch.allclose(out["output"], (student.a(x) + student.b(x)) / 2)
    return float(out["loss"].detach()), *heads, teacher(x).detach().numpy()


def test_hard(case: tuple) -> None:
    found, a, b, t = losses(case, DistillationRecipe("hard", alpha=0.3))
    rows, y = np.arange(5), case[3].numpy()
    assert found == pytest.approx(-0.7 * a[rows, y].mean() - 0.3 * b[rows, t.argmax(1)].mean(), rel=1e-5)


def test_soft(case: tuple) -> None:
    found, a, _, t = losses(case, DistillationRecipe("soft", alpha=0.3, tau=2.0))
    b = log_softmax(case[0].b(case[2]).detach().numpy() / 2)
    target = log_softmax(t / 2)
    divergence = 4 * (np.exp(target) * (target - b)).sum(1).mean()
    assert found == pytest.approx(-0.7 * a[np.arange(5), case[3].numpy()].mean() + 0.3 * divergence, rel=1e-5)


def test_matching_compares_both_heads_with_the_teacher_and_no_label(case: tuple) -> None:
    found, _, _, t = losses(case, DistillationRecipe("match", alpha=0.3, tau=2.0))
    target = log_softmax(t / 2)
    heads = [log_softmax(head(case[2]).detach().numpy() / 2) for head in (case[0].a, case[0].b)]
    divergences = [4 * (np.exp(target) * (target - head)).sum(1).mean() for head in heads]
    assert found == pytest.approx(0.5 * sum(divergences), rel=1e-5)
    student, teacher, x, y = case
    other = losses((student, teacher, x, y.flip(0)), DistillationRecipe("match", tau=2.0))[0]
    assert other == found
    same = DistillationTask(teacher, teacher, DistillationRecipe("match", tau=2.0))
    assert float(same(x, y, same.lesson(x))["loss"]) == pytest.approx(0.0, abs=1e-6)


def test_a_fast_teacher_says_nearly_the_same_and_a_loss_can_keep_it(case: tuple) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    student, x, y = nn.Sequential(nn.Flatten(), nn.Linear(300, 4)), torch.randn(6, 3, 10, 10), torch.tensor([0, 1] * 3)
    exact, fast = (DistillationTask(student, teacher, DistillationRecipe("match"), fast=f) for f in (False, True))
    expected, found = exact.lesson(x).logits, fast.lesson(x).logits
    assert torch.allclose(found.float(), expected, atol=0.03) and not found.is_inference()
    fast(x, y, fast.lesson(x))["loss"].backward()
    assert student[1].weight.grad is not None


def test_none_trains_both_heads_on_the_labels(case: tuple) -> None:
    found, a, b, _ = losses(case, DistillationRecipe("none"))
    rows, y = np.arange(5), case[3].numpy()
    assert found == pytest.approx(-0.5 * (a[rows, y].mean() + b[rows, y].mean()), rel=1e-5)


@pytest.mark.parametrize("kind", ["hard", "soft", "none"])
def test_whole_shares_are_labels_and_mixed_shares_mix_the_losses(case: tuple, kind: str) -> None:
    student, teacher, x, y = case
    task = DistillationTask(student, teacher, DistillationRecipe(kind, alpha=0.3)).train()

    def loss(targets: torch.Tensor) -> float:
        return float(task(x, targets, task.lesson(x))["loss"].detach())

    one, other = torch.nn.functional.one_hot(y, 4).double(), torch.nn.functional.one_hot(y.flip(0), 4).double()
    assert loss(one) == pytest.approx(loss(y), rel=1e-6)
    assert loss(0.3 * one + 0.7 * other) == pytest.approx(0.3 * loss(y) + 0.7 * loss(y.flip(0)), rel=1e-6)


def test_the_teacher_gets_no_gradient_and_is_not_saved(case: tuple) -> None:
    student, teacher, x, y = case
    task = DistillationTask(student, teacher, DistillationRecipe()).train()
    task(x, y, task.lesson(x))["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(name.startswith("student.") for name in task.state_dict())


class Tokens(nn.Module):
    """Two blocks on tokens (B, N, 3), then the mean token's logits."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, width), nn.Linear(width, width)])
        self.pos_embed = nn.Parameter(torch.zeros(1, 2, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def test_features_add_one_minus_the_cosine_of_every_token() -> None:
    torch.manual_seed(1)
    student, teacher, x, y = Tokens(), Tokens(), torch.randn(4, 2, 3), torch.tensor([0, 1, 2, 0])
    plain, with_features = (
        DistillationTask(student, teacher, DistillationRecipe(feature_weight=w)).train() for w in (0.0, 0.3)
    )
    found = with_features(x, y, with_features.lesson(x))["loss"] - plain(x, y, plain.lesson(x))["loss"]
    ours, theirs, cosines = x, x, []
    for a, b in zip(student.blocks, teacher.blocks, strict=True):
        ours, theirs = a(ours), b(theirs)
        for u, v in zip(ours.reshape(-1, 3).tolist(), theirs.reshape(-1, 3).tolist(), strict=True):
            cosines.append(np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v))
    assert found.item() == pytest.approx(0.3 * (1 - np.mean(cosines)), rel=1e-4)
    found.backward()
    assert student.blocks[0].weight.grad is not None and not student.blocks[0]._forward_hooks
    assert all(p.grad is None for p in teacher.parameters())


def test_features_need_a_teacher_of_the_same_shape() -> None:
    with pytest.raises(InputError, match="feature_weight"):
        DistillationTask(Tokens(), Tokens(4), DistillationRecipe(feature_weight=1.0))
