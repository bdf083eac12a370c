"""Training as a module: pictures and labels in, ``{"loss", "output"}`` out, with or without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .recipe import DistillationRecipe


class DistillationTask(nn.Module):
    """Loss of a model with a class head and, maybe, a distillation head.

    With logits c and d of the two heads, label y, teacher logits t, weight α and temperature τ:

    * hard: ``(1 − α)·CE(c, y) + α·CE(d, argmax t)`` (DeiT, https://arxiv.org/abs/2012.12877; α = ½)
    * soft: ``(1 − α)·CE(c, y) + α·τ²·KL(softmax(t/τ) ‖ softmax(d/τ))``
    * none, or no teacher: ``½·CE(c, y) + ½·CE(d, y)``

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
        if callable(enable := getattr(student, "set_distilled_training", None)):
            enable(True)

    def teacher_logits(self, images: Tensor) -> Tensor | None:
        """Logits (B, K) of the teacher, or None without one."""
        if not self._teacher:
            return None
        with torch.no_grad():
            return self._teacher[0](images)

    def forward(self, images: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, Tensor]:
        """Images (B, 3, H, W), labels (B,) → loss () and the mean of the heads' logits, detached (B, K)."""
        out = self.student(images)
        class_logits, distilled = out if isinstance(out, tuple) else (out, out)
        class_loss = functional.cross_entropy(class_logits.float(), labels, label_smoothing=self.smoothing)
        if teacher_logits is None:
            other = functional.cross_entropy(distilled.float(), labels, label_smoothing=self.smoothing)
            loss = 0.5 * class_loss + 0.5 * other
        else:
            alpha = self.recipe.alpha
            loss = (1 - alpha) * class_loss + alpha * self._distillation_loss(distilled.float(), teacher_logits.float())
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
