"""The switches of a one-bit vision transformer, their presets, and which of them go together (no PyTorch)."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gsb_vit.errors import InputError

DEFAULT_THRESHOLDS = (0.7, 0.9)
# The values of the switches that a packed file can hold.
PACKED_VALUES: dict[str, tuple[Any, ...]] = {
    "scheme": ("gsb", "bit"),
    "weight_bits": (1,),
    "activation_bits": (1,),
    "weights": ("all",),
    "activations": ("binary",),
    "edge_bits": (8,),
    "threshold_scope": ("sample", "fixed"),
    "patch_norm": (False,),
}


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The switches of a one-bit vision transformer; each has this name in recipes and packed files too.

    The table in docs/design.md says what each one does. Groups belong to scheme ``gsb`` with one-bit activations; the
    others have one group, so the default thresholds become () there. Raises InputError for a value that is not
    allowed, or for values that do not go together.
    """

    scheme: Literal["gsb", "xnor", "reactnet", "bibert", "bit"] = "gsb"
    weights: Literal["all", "mlp", "none"] = "all"
    activations: Literal["binary", "full"] = "binary"
    weight_bits: Literal[1, 2, 8] = 1
    activation_bits: Literal[1, 2, 4, 8] = 1
    weight_scale: Literal["row", "layer", "learned_row"] = "row"
    edge_bits: Literal[8, 32] = 8
    tokenizer_bits: Literal[1, 8] = 8
    attention_thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    value_thresholds: tuple[float, ...] = DEFAULT_THRESHOLDS
    threshold_scope: Literal["sample", "batch", "fixed"] = "sample"
    value_gradient: Literal["aligned", "authors"] = "aligned"
    initial_scales: Literal["increment", "mean", "authors"] = "increment"
    attention_bias: Literal["relative", "full", "none"] = "relative"
    patch_norm: bool = False

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and (value not in get_args(hint) or isinstance(value, bool)):
                allowed = ", ".join(repr(choice) for choice in get_args(hint))
                raise InputError(f"quantization {name} is {value!r}; it must be one of {allowed}")
        for name in ("attention_thresholds", "value_thresholds"):
            object.__setattr__(self, name, _checked_thresholds(name, getattr(self, name)))
        if not isinstance(self.patch_norm, bool):
            raise InputError(f"quantization patch_norm is {self.patch_norm!r}; it must be true or false")
        if self.tokenizer_bits == 1 and self.edge_bits != 8:
            raise InputError(
                "quantization tokenizer_bits = 1 goes with edge_bits = 8, which quantizes the tokenizer; set it"
            )
        self._check_groups()

    def _check_groups(self) -> None:
        if self.activation_bits > 1 and self.scheme != "gsb":
            raise InputError(
                f"quantization scheme = {self.scheme!r} is about one-bit activations; leave it at 'gsb' with "
                f"activation_bits = {self.activation_bits}"
            )
        if self.scheme == "gsb" and self.activation_bits == 1:
            return
        bits = self.activation_bits
        switch = f"activation_bits = {bits}" if bits > 1 else f"scheme = {self.scheme!r}"
        for name in ("attention_thresholds", "value_thresholds"):
            if getattr(self, name) not in (DEFAULT_THRESHOLDS, ()):
                raise InputError(f"quantization {switch} has one group only; leave {name} out or give []")
            object.__setattr__(self, name, ())

    @classmethod
    def full_precision(cls) -> "Quantization":
        """Return the switches of a plain timm ViT: nothing is quantized, nothing is added."""
        return cls(weights="none", activations="full", edge_bits=32, attention_bias="none")

    @classmethod
    def stage1(cls) -> "Quantization":
        """Return the first training stage: one-bit weights in the MLPs, all else in full precision."""
        return cls(weights="mlp", activations="full", edge_bits=32)

    @classmethod
    def stage2(cls) -> "Quantization":
        """Return the second training stage, the defaults: one-bit weights and activations, 8-bit edges."""
        return cls()

    @classmethod
    def authors_stage1(cls) -> "Quantization":
        """Return the released code's first stage: one-bit MLP weights, BatchNorm after the patch embedding."""
        return dataclasses.replace(
            cls.authors_stage2(),
            weights="mlp",
            activations="full",
            edge_bits=32,
            attention_bias="none",
            patch_norm=True,
        )

    @classmethod
    def authors_stage2(cls) -> "Quantization":
        """Return the released code's second stage."""
        return cls(
            weight_scale="layer",
            threshold_scope="batch",
            value_gradient="authors",
            initial_scales="authors",
            attention_bias="full",
        )

    @classmethod
    def create(cls, value: "Quantization | dict[str, Any] | str | None") -> "Quantization":
        """Return a Quantization from one, from a dict of switches, from a preset's name, or the defaults for None.

        Raises InputError for an unknown preset, switch or value.
        """
        if value is None:
            return cls()
        if isinstance(value, Quantization):
            return value
        if isinstance(value, str):
            if value not in PRESETS:
                raise InputError(f"there is no quantization preset {value!r}; choose one of {', '.join(PRESETS)}")
            return getattr(cls, value)()
        if not isinstance(value, dict):
            raise InputError(f"quantization is {value!r}; give a preset's name, a dict of switches or a Quantization")
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(value) - set(names)):
            raise InputError(f"there is no quantization switch {unknown[0]!r}; the switches are {', '.join(names)}")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Return the switches as JSON-ready values; ``create`` reads them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @property
    def changes_blocks(self) -> bool:
        """Whether the transformer blocks differ from timm's at all."""
        return (self.weights, self.activations, self.attention_bias) != ("none", "full", "none")


PRESETS = ("full_precision", "stage1", "stage2", "authors_stage1", "authors_stage2")


def _checked_thresholds(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(ratio, int | float) for ratio in value):
        raise InputError(f"quantization {name} is {value!r}; it must be a list of numbers such as [0.7, 0.9]")
    ratios = tuple(float(ratio) for ratio in value)
    if any(not 0 < ratio < 1 for ratio in ratios) or any(a >= b for a, b in pairwise(ratios)):
        raise InputError(f"quantization {name} is {value!r}; the ratios must increase and lie between 0 and 1")
    return ratios
