"""What keeps a run sound: scales held at their floor, and checks that stop it before it saves a broken model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsb_vit.errors import InputError
from gsb_vit.nn.quantize import SCALE_MIN

from .optimize import quantizer_scales

_LISTED = 4  # scales named in one line


class TrainingError(InputError):
    """Training cannot go on: a number is not finite. The last checkpoint is good."""


class ScaleFloor:
    """Holds a model's learned scales at 1e-5 or above, which is what forward passes use of a smaller one.

    AdamW moves a parameter by about the learning rate whatever its size, so that a step may throw a scale of 0.003
    across zero. Left there it would come back as slowly as it went; held at the floor it grows again in the first step
    whose gradient says so. Scales above the floor are left alone, to the last bit.
    """

    def __init__(self, model: nn.Module) -> None:
        found = dict(quantizer_scales(model))
        self._names: list[str] = list(found)
        self._scales: list[Tensor] = list(found.values())
        self._sizes = [scale.numel() for scale in self._scales]
        self._held: Tensor | None = None
        self._told: set[str] = set()

    @torch.no_grad()
    def hold(self) -> None:
        """Raise every scale that is below the floor to it; call it after each step."""
        if not self._scales:
            return
        below = torch.cat([scale.detach().reshape(-1) for scale in self._scales]) < SCALE_MIN
        self._held = below if self._held is None else self._held.logical_or_(below)
        # Comparing costs less than writing, and on a CPU its answer is at hand.
        if below.device.type != "cpu" or bool(below.any()):
            torch._foreach_clamp_min_(self._scales, SCALE_MIN)

    def news(self) -> str | None:
        """Name the scales that had to be held since the last call and never before, in one line; None without any."""
        if self._held is None or not bool(self._held.any()):
            return None
        parts = self._held.split(self._sizes)
        self._held = None
        names = [name for name, part in zip(self._names, parts, strict=True) if bool(part.any())]
        fresh = [name for name in names if name not in self._told]
        self._told.update(fresh)
        if not fresh:
            return None
        more = f", … ({len(fresh)} in all)" if len(fresh) > _LISTED else ""
        return (
            f"scales that fell below {SCALE_MIN:g} are held there: {', '.join(fresh[:_LISTED])}{more}; a lower "
            'learning rate, or scale_learning_rate = "relative", keeps them above'
        )


def check_loss(loss: Tensor, model: nn.Module, images: Tensor, place: str) -> None:
    """Raise TrainingError, naming the first layer whose output is not finite, where the loss () is NaN or infinite."""
    if bool(torch.isfinite(loss)):
        return
    layer = first_non_finite_parameter(model) or first_non_finite_output(model, images) or "the loss itself"
    raise TrainingError(
        f"{place}: the loss is {float(loss)}; first not finite: {layer}; lower the learning rate; "
        "the last checkpoint is good"
    )


def check_parameters(model: nn.Module, place: str) -> None:
    """Raise TrainingError for a parameter or buffer that is not finite."""
    if (name := first_non_finite_parameter(model)) is not None:
        raise TrainingError(f"{place}: {name} is not finite; lower the learning rate; the last checkpoint is good")


def first_non_finite_parameter(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer with a NaN or infinite entry, or None."""
    tensors = {n: t for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_floating_point()}
    # One number tells that all is well, of most models; that it is infinite proves nothing: squares may overflow.
    if tensors and bool(torch.isfinite(torch.nn.utils.get_total_norm([t.detach() for t in tensors.values()]))):
        return None
    return next((name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())), None)


def first_non_finite_output(model: nn.Module, images: Tensor) -> str | None:
    """Name of the first module, in the order they finish, whose output is not finite for these images, or None."""
    found: list[str] = []

    def hook_for(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    hooks = [m.register_forward_hook(hook_for(name)) for name, m in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
