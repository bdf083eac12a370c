"""Modules of the two superpositions: attention matrix and Value as several one-bit planes with learned scales."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gsb_vit.errors import InputError

from .input_quantizers import Quantizer
from .quantize import scale_ste
from .superpose import (
    attention_groups,
    attention_levels,
    attention_planes,
    attention_superposition,
    group_factors,
    increments,
    value_groups,
    value_levels,
    value_planes,
    value_superposition,
)

ThresholdScope = Literal["sample", "batch", "fixed"]
InitialScales = Literal["increment", "mean", "authors"]
EXTREME_MOMENTUM = 0.1


class Superposition(Quantizer):
    """Base of the two superpositions: ``scale`` (G,), thresholds as ratios of the extremes, and their scope.

    Scopes: ``sample`` takes the extremes of each picture, ``batch`` of the whole tensor (the released code; a
    prediction then depends on the picture's neighbours), ``fixed`` those stored in the buffer ``running_extremes``.
    The stored ones are the means over pictures of each picture's extremes: set by the first batch, moved by 0.1 of
    the way to each further training batch before they are used, constant in eval mode, or set by
    ``convert.calibrate_thresholds``.

    Initial scales: ``increment`` starts each further group at the difference of two levels, because the groups add
    up. ``authors`` (the released code) uses these differences in the first forward pass only and then goes on with
    the levels themselves. ``mean`` is ``increment`` with the attention matrix's further levels at the mean of their
    bands instead of four times that.
    """

    extremes_count: int
    running_extremes: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = (0.7, 0.9),
        threshold_scope: ThresholdScope = "sample",
        initial_scales: InitialScales = "increment",
    ) -> None:
        super().__init__((len(thresholds) + 1,))
        self.thresholds = tuple(thresholds)
        self.threshold_scope = threshold_scope
        self.initial_scales = initial_scales
        self.calibration: list[Tensor] | None = None
        if threshold_scope == "fixed":
            self.register_buffer("running_extremes", torch.zeros(self.extremes_count))

    def extremes(self, x: Tensor) -> Tensor:
        """Return the extremes of every picture in x (B, h, ., .): (E, B, 1, 1, 1)."""
        raise NotImplementedError

    def _of_batch(self, extremes: Tensor) -> Tensor:
        """The extremes (E, 1, 1, 1, 1) of the whole batch, from those of its pictures."""
        raise NotImplementedError

    def _levels(self, x: Tensor, limits: Tensor) -> Tensor:
        raise NotImplementedError

    def _ratio_limits(self, extremes: Tensor) -> Tensor:
        """The limits (G - 1, E, ...) that go with extremes (E, ...)."""
        if not self.thresholds:
            return extremes.new_zeros((0, *extremes.shape))
        return torch.stack([extremes * ratio for ratio in self.thresholds])

    def fixed_limits(self) -> Tensor:
        """Return the stored limits (G - 1, E), E = 1 (maximum) or 2 (maximum, minimum); scope ``fixed`` only.

        Raises InputError for other scopes, which have no stored limits.
        """
        if self.threshold_scope != "fixed":
            raise InputError(f"threshold_scope={self.threshold_scope!r} stores no limits; only 'fixed' does")
        return self._ratio_limits(self.running_extremes)

    @torch.no_grad()
    def set_extremes(self, extremes: Tensor) -> None:
        """Store the extremes (E,) that scope ``fixed`` uses."""
        self.running_extremes.copy_(extremes)

    @torch.no_grad()
    def _limits(self, x: Tensor) -> Tensor:
        if self.threshold_scope == "fixed" and self.is_ready and not self.training and self.calibration is None:
            return self._ratio_limits(self.running_extremes.clone().to(x.dtype).view(-1, 1, 1, 1, 1))
        return self.limits_of(self.extremes(x.detach()))

    @torch.no_grad()
    def limits_of(self, extremes: Tensor) -> Tensor:
        """Return the limits (G - 1, E, B | 1, 1, 1, 1) that the scope makes of the pictures' extremes (E, B, 1, 1, 1).

        In training scope ``fixed`` moves the stored extremes.
        """
        if self.threshold_scope == "batch":
            return self._ratio_limits(self._of_batch(extremes))
        if self.threshold_scope == "sample":
            return self._ratio_limits(extremes)
        if self.calibration is not None:
            self.calibration.append(extremes.flatten(1).to(torch.float32))
            return self._ratio_limits(extremes)
        if self.training or not self.is_ready:
            batch_mean = extremes.flatten(1).mean(1, dtype=torch.float32)
            self.running_extremes.lerp_(batch_mean, EXTREME_MOMENTUM if self.is_ready else 1.0)
        return self._ratio_limits(self.running_extremes.clone().to(extremes.dtype).view(-1, 1, 1, 1, 1))

    def initial_scale(self, x: Tensor) -> Tensor:
        levels = self._levels(x, self._limits(x))
        return levels if self.initial_scales == "authors" else increments(levels)

    def _prepare(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scales (G,) and the limits (G - 1, E, B | 1, 1, 1, 1) for x, after initialization where needed."""
        if self.is_ready:
            return self.scale, self._limits(x)
        self.initialize(x)
        limits = self._limits(x)
        if self.initial_scales == "authors":
            levels = self.scale.detach()
            return self.scale + (increments(levels) - levels), limits
        return self.scale, limits


class AttentionSuperposition(Superposition):
    """Superposition of the attention matrix A (B, h, N, N): A_b = s_1·1[A > s_1/2] + Σ s_g·1[A > ratio_g·max A].

    Gradients and ties: ``superposition.attention_superposition``. Initial levels: ``superposition.attention_levels``;
    of a single group that would leave everything out (a flat matrix, max A ≤ 2·mean|A|), s_1 = max A instead, because
    behind a matrix of zeros nothing learns. Further groups always have a member.
    """

    extremes_count = 1

    def initial_scale(self, x: Tensor) -> Tensor:
        scale, largest = super().initial_scale(x), x.amax().float()
        return scale if self.thresholds else torch.where(largest > scale / 2, scale, largest)

    def extremes(self, x: Tensor) -> Tensor:
        return x.amax((1, 2, 3), keepdim=True).unsqueeze(0)

    def _of_batch(self, extremes: Tensor) -> Tensor:
        return extremes.amax(1, keepdim=True)

    def _levels(self, x: Tensor, limits: Tensor) -> Tensor:
        return attention_levels(x, limits[:, 0], 1.0 if self.initial_scales == "mean" else 4.0)

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        scale, limits = self._prepare(x)
        limits = limits[:, 0]
        scale = scale_ste(scale, group_factors(attention_groups(x.detach(), limits), x))
        return attention_planes(x, scale[0], limits), scale

    def forward(self, x: Tensor) -> Tensor:
        scale, limits = self._prepare(x)
        return attention_superposition(x, scale, limits[:, 0])


class ValueSuperposition(Superposition):
    """Superposition of the Value V (B, h, N, d): V_b = s_1·sign(V) + Σ s_g·T_g·sign(V).

    T_g = 1[V > ratio_g·max V or V < ratio_g·min V]. Gradients (``aligned`` or the released code's) and ties:
    ``superposition.value_superposition``. Initial levels: ``superposition.value_levels``.
    """

    extremes_count = 2

    def __init__(
        self,
        thresholds: Sequence[float] = (0.7, 0.9),
        threshold_scope: ThresholdScope = "sample",
        initial_scales: InitialScales = "increment",
        gradient: Literal["aligned", "authors"] = "aligned",
    ) -> None:
        super().__init__(thresholds, threshold_scope, initial_scales)
        self.gradient = gradient

    def extremes(self, x: Tensor) -> Tensor:
        return torch.stack([x.amax((1, 2, 3), keepdim=True), x.amin((1, 2, 3), keepdim=True)])

    def _of_batch(self, extremes: Tensor) -> Tensor:
        largest, smallest = extremes
        return torch.stack([largest.amax(0, keepdim=True), smallest.amin(0, keepdim=True)])

    def _levels(self, x: Tensor, limits: Tensor) -> Tensor:
        return value_levels(x, limits)

    def quantize(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        scale, limits = self._prepare(x)
        scale = scale_ste(scale, group_factors(value_groups(x.detach(), limits), x))
        return value_planes(x, scale, limits, self.gradient == "aligned"), scale

    def forward(self, x: Tensor) -> Tensor:
        scale, limits = self._prepare(x)
        return value_superposition(x, scale, limits, self.gradient == "aligned")
