"""Checks that stop a run before it saves a broken model; the message names the layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gsb_vit.errors import InputError

from .optimize import quantizer_scales

COLLAPSED = 1e-5


class TrainingError(InputError):
    """Training cannot go on: a number is not finite, or a quantizer's scale collapsed. The last checkpoint is good."""


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
    """Raise TrainingError for a parameter that is not finite or a quantizer scale that is at most 1e-5.

    Of a superposition's scales only the first counts: an increment may be at its floor. Of a scale per channel all
    must have collapsed.
    """
    if (name := first_non_finite_parameter(model)) is not None:
        raise TrainingError(f"{place}: {name} is not finite; lower the learning rate; the last checkpoint is good")
    for name, parameter in quantizer_scales(model):
        values = parameter.detach()
        scale = values.max() if name.endswith("weight_scale") else values.flatten()[0]
        if float(scale) <= COLLAPSED:
            raise TrainingError(
                f"{place}: the scale {name} collapsed to {float(scale):.3g} (at most {COLLAPSED:g}); "
                "lower the learning rate; the last checkpoint is good"
            )


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
