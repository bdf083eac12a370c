"""Training as a module: pictures and labels in, ``{"loss", "output"}`` out, with or without a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsb_vit.errors import InputError

from .recipe import DistillationRecipe


class Lesson(NamedTuple):
    """What the teacher says of a batch: logits (B, K), and its tokens (B, N, C) behind every block where asked for."""

    logits: Tensor
    features: list[Tensor]


@contextmanager
def block_outputs(model: nn.Module, record: bool) -> Iterator[list[Tensor]]:
    """Give the list that forward passes fill with the tokens (B, N, C) behind every block, if ``record``."""
    outputs: list[Tensor] = []

    def keep(block: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output)

    blocks = cast(Iterable[nn.Module], model.blocks) if record else ()
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class DistillationTask(nn.Module):
    """Loss of a model with a class head and, maybe, a distillation head.

    With logits c and d of the two heads, label y, teacher logits t, weight α and temperature τ:

    * hard: ``(1 − α)·CE(c, y) + α·CE(d, argmax t)`` (DeiT, https://arxiv.org/abs/2012.12877; α = ½)
    * soft: ``(1 − α)·CE(c, y) + α·τ²·KL(softmax(t/τ) ‖ softmax(d/τ))``
    * none, or no teacher: ``½·CE(c, y) + ½·CE(d, y)``

    With ``feature_weight`` w the loss gains ``w·mean(1 − cos(x, x'))`` over blocks, pictures and tokens, x and x' the
    student's and the teacher's token behind the same block: one-bit layers are to keep the residual stream's direction.

    A model with one head uses its logits for both. The teacher is in evaluation mode, gets no gradient and is not a
    submodule: it is neither saved nor wrapped. Equal teacher logits: the first class wins.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, recipe: DistillationRecipe, smoothing: float = 0.0
    ):
        super().__init__()
        self.student = student
        self.recipe = recipe
        self.smoothing = smoothing
        self._teacher: list[nn.Module] = (
            [teacher.eval().requires_grad_(False)] if teacher is not None and recipe.kind != "none" else []
        )
        self._features = bool(self._teacher) and recipe.feature_weight > 0
        if teacher is not None and self._features:
            _require_same_tokens(student, teacher)
        if callable(enable := getattr(student, "set_distilled_training", None)):
            enable(True)

    @property
    def models(self) -> list[nn.Module]:
        """The student and, where it is asked, the teacher."""
        return [self.student, *self._teacher]

    def lesson(self, images: Tensor) -> Lesson | None:
        """What the teacher says of the images, or None without one."""
        if not self._teacher:
            return None
        teacher = self._teacher[0]
        with torch.no_grad(), block_outputs(teacher, self._features) as features:
            return Lesson(teacher(images), features)

    def forward(self, images: Tensor, labels: Tensor, lesson: Lesson | None = None) -> dict[str, Tensor]:
        """Images (B, 3, H, W), labels (B,) or shares of the classes (B, K) → loss (), mean of the heads' logits (B, K).

        The logits are detached.
        """
        with block_outputs(self.student, self._features) as features:
            out = self.student(images)
        class_logits, distilled = out if isinstance(out, tuple) else (out, out)
        class_loss = functional.cross_entropy(class_logits.float(), labels, label_smoothing=self.smoothing)
        if lesson is None:
            other = functional.cross_entropy(distilled.float(), labels, label_smoothing=self.smoothing)
            loss = 0.5 * class_loss + 0.5 * other
        else:
            alpha = self.recipe.alpha
            loss = (1 - alpha) * class_loss + alpha * self._distillation_loss(distilled.float(), lesson.logits.float())
            if self._features:
                loss = loss + self.recipe.feature_weight * direction_loss(features, lesson.features)
        return {"loss": loss, "output": (0.5 * (class_logits + distilled)).detach()}

    def _distillation_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if self.recipe.kind == "hard":
            return functional.cross_entropy(logits, teacher_logits.argmax(dim=-1))
        tau = self.recipe.tau
        student, teacher = (
            functional.log_softmax(logits / tau, dim=-1),
            functional.log_softmax(teacher_logits / tau, dim=-1),
        )
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * tau**2


def direction_loss(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean of 1 - cos over blocks and tokens; two lists of tokens (B, N, C), one entry a block → ()."""
    terms = [
        1 - functional.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


def _require_same_tokens(student: nn.Module, teacher: nn.Module) -> None:
    if _tokens(student) != _tokens(teacher):
        raise InputError(
            "distillation.feature_weight compares tokens behind every block, but teacher and student differ in width, "
            'depth or tokens; use teacher.source = "twin", or distillation.feature_weight = 0'
        )


def _tokens(model: nn.Module) -> tuple:
    """Number of blocks, and shape of the position embedding (1, tokens, width)."""
    position = getattr(model, "pos_embed", None)
    return len(cast(Sized, getattr(model, "blocks", ()))), None if position is None else position.shape
