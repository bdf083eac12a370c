"""Training as a module: pictures and labels in, ``{"loss", "output"}`` out, with or without a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gsb_vit.errors import InputError

from .precision import quick_inference
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
    * match: ``½·τ²·KL(softmax(t/τ) ‖ softmax(c/τ)) + ½·τ²·KL(softmax(t/τ) ‖ softmax(d/τ))``: function matching
      (https://arxiv.org/abs/2106.05237), no label; the factor τ², not in the paper, keeps the gradient's size
    * none, or no teacher: ``½·CE(c, y) + ½·CE(d, y)``

    With ``feature_weight`` w the loss gains ``w·mean(1 − cos(x, x'))`` over blocks, pictures and tokens, x and x' the
    student's and the teacher's token behind the same block: one-bit layers are to keep the residual stream's direction.

    A model with one head uses its logits for both. The teacher is in evaluation mode, gets no gradient and is not a
    submodule: it is neither saved nor wrapped. Equal teacher logits: the first class wins. A ``fast`` teacher computes
    channels-last, in bfloat16 where the machine has instructions for it.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        recipe: DistillationRecipe,
        smoothing: float = 0.0,
        fast: bool = False,
    ):
        super().__init__()
        self.student = student
        self.recipe = recipe
        self.smoothing = smoothing
        self._teacher: list[nn.Module] = (
            [teacher.eval().requires_grad_(False)] if teacher is not None and recipe.kind != "none" else []
        )
        self._fast = fast
        if self._teacher and fast:
            teacher.to(memory_format=torch.channels_last)  # type: ignore[union-attr, call-overload]
        self._features = bool(self._teacher) and recipe.feature_weight > 0
        if teacher is not None and self._features:
            _require_same_tokens(student, teacher)
        if callable(enable := getattr(student, "set_distilled_training", None)):
            enable(True)

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher is asked."""
        return bool(self._teacher)

    @property
    def models(self) -> list[nn.Module]:
        """The student and, where it is asked, the teacher."""
        return [self.student, *self._teacher]

    def lesson(self, images: Tensor) -> Lesson | None:
        """What the teacher says of the images, or None without one."""
        if not self._teacher:
            return None
        teacher = self._teacher[0]
        if self._fast:
            images = images.contiguous(memory_format=torch.channels_last)
        with quick_inference(images.device, self._fast), block_outputs(teacher, self._features) as features:
            logits = teacher(images)
        return Lesson(logits.clone(), [tokens.clone() for tokens in features])

    def forward(self, images: Tensor, labels: Tensor, lesson: Lesson | None = None) -> dict[str, Tensor]:
        """Images (B, 3, H, W), labels (B,) or shares of the classes (B, K) → loss (), mean of the heads' logits (B, K).

        The logits are detached.
        """
        with block_outputs(self.student, self._features) as features:
            out = self.student(images)
        class_logits, distilled = out if isinstance(out, tuple) else (out, out)
        if lesson is not None and self.recipe.kind == "match":
            wanted = lesson.logits.float()
            loss = 0.5 * sum(softened_divergence(x.float(), wanted, self.recipe.tau) for x in (class_logits, distilled))
        else:
            loss = self._loss_with_labels(class_logits.float(), distilled.float(), labels, lesson)
        if lesson is not None and self._features:
            loss = loss + self.recipe.feature_weight * direction_loss(features, lesson.features)
        return {"loss": loss, "output": (0.5 * (class_logits + distilled)).detach()}

    def _loss_with_labels(
        self, class_logits: Tensor, distilled: Tensor, labels: Tensor, lesson: Lesson | None
    ) -> Tensor:
        class_loss = functional.cross_entropy(class_logits, labels, label_smoothing=self.smoothing)
        if lesson is None:
            other = functional.cross_entropy(distilled, labels, label_smoothing=self.smoothing)
            return 0.5 * class_loss + 0.5 * other
        wanted, alpha = lesson.logits.float(), self.recipe.alpha
        if self.recipe.kind == "hard":
            other = functional.cross_entropy(distilled, wanted.argmax(dim=-1))
        else:
            other = softened_divergence(distilled, wanted, self.recipe.tau)
        return (1 - alpha) * class_loss + alpha * other


def softened_divergence(logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """τ²·KL(softmax(t/τ) ‖ softmax(x/τ)), mean over the batch: logits x and t (B, K) → ()."""
    student, teacher = (functional.log_softmax(x / tau, dim=-1) for x in (logits, teacher_logits))
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
