"""What a packed file must hold: the architecture, every tensor's type and shape, and the values allowed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.errors import InputError

from .bits import pad_is_zero, words_for

THRESHOLD_SCOPES = ("sample", "fixed")
ATTENTION_BIASES = ("none", "relative", "full")
# Largest value of each whole number. Popcounts of width C are stored as int16; the other limits only keep a hostile
# header from asking for absurd amounts of work.
LIMITS = {
    "image_size": 65535,
    "patch_size": 1024,
    "embed_dim": 32767,
    "depth": 1024,
    "num_heads": 32767,
    "mlp_hidden": 1 << 20,
    "num_classes": 1 << 20,
}
MAX_TOKENS = 1 << 20
MAX_THRESHOLDS = 15


@dataclass(frozen=True)
class Architecture:
    """The shape of a packed model; field names are those of the file's metadata.

    Raises:
        InputError: for a value out of range or two that do not fit together, naming the field.
    """

    name: str
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    prefix_tokens: int
    num_heads_out: int
    num_classes: int
    layer_norm_eps: float
    attention_thresholds: tuple[float, ...]
    value_thresholds: tuple[float, ...]
    threshold_scope: str
    attention_bias: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"architecture: name {self.name!r} must be text")
        for name in ("image_size", "patch_size"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        for name in ("embed_dim", "depth", "num_heads", "mlp_hidden", "num_classes"):
            _whole(name, getattr(self, name), LIMITS[name])
        for name in ("attention_thresholds", "value_thresholds"):
            object.__setattr__(self, name, _ratios(name, getattr(self, name)))
        _choice("threshold_scope", self.threshold_scope, THRESHOLD_SCOPES)
        _choice("attention_bias", self.attention_bias, ATTENTION_BIASES)
        _choice("prefix_tokens", self.prefix_tokens, (1, 2))
        if self.num_heads_out != self.prefix_tokens:
            raise InputError(f"architecture: num_heads_out {self.num_heads_out} must equal prefix_tokens")
        eps = self.layer_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 <= eps <= 1:
            raise InputError(f"architecture: layer_norm_eps {eps!r} must be a number from 0 to 1")
        if any(side % patch for side, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise InputError(
                f"architecture: image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.embed_dim % self.num_heads:
            raise InputError(f"architecture: embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")
        if self.num_tokens > MAX_TOKENS:
            raise InputError(f"architecture: {self.num_tokens} tokens are more than {MAX_TOKENS}; use larger patches")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        """Np."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """N = P + Np."""
        return self.prefix_tokens + self.num_patches

    @property
    def head_dim(self) -> int:
        """d = C / h."""
        return self.embed_dim // self.num_heads

    @property
    def attention_groups(self) -> int:
        """A, the number of attention groups."""
        return len(self.attention_thresholds) + 1

    @property
    def value_groups(self) -> int:
        """V, the number of Value groups."""
        return len(self.value_thresholds) + 1

    @property
    def relative_bias_size(self) -> int:
        """T, the entries a head of the relative attention bias."""
        rows, columns = self.grid
        return (2 * rows - 1) * (2 * columns - 1) + self.prefix_tokens**2 + 2 * self.prefix_tokens

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: numbers, text and lists."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Any) -> "Architecture":
        """Read what :meth:`to_json` wrote. Raises InputError for a missing or unknown key or a value out of range."""
        if not isinstance(values, Mapping):
            raise InputError("architecture must be a JSON object")
        names = [item.name for item in fields(cls)]
        wrong = [name for name in names if name not in values] + [str(name) for name in values if name not in names]
        if wrong:
            raise InputError(f"architecture: key {wrong[0]!r} is missing or unknown")
        return cls(**values)


def expected_tensors(architecture: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return every tensor of a packed file by name: NumPy dtype name and shape. Reader and writer share it."""
    a = architecture
    width, hidden, classes = a.embed_dim, a.mlp_hidden, a.num_classes
    specs: dict[str, tuple[str, tuple[int, ...]]] = {
        "patch_embed.weight": ("int8", (width, 3, *a.patch_size)),
        "patch_embed.scale": ("float32", (width, 3)),
        "patch_embed.position": ("float32", (a.num_patches, width)),
        "prefix_tokens": ("float32", (a.prefix_tokens, width)),
        "norm.weight": ("float32", (width,)),
        "norm.bias": ("float32", (width,)),
    }
    for head in range(a.num_heads_out):
        specs[f"heads.{head}.shift"] = ("float32", (width,))
        specs[f"heads.{head}.input_scale"] = ("float32", (1,))
        specs[f"heads.{head}.weight"] = ("int8", (classes, width))
        specs[f"heads.{head}.scale"] = ("float32", (classes,))
        specs[f"heads.{head}.bias"] = ("float32", (classes,))
    block: dict[str, tuple[str, tuple[int, ...]]] = {
        "attn.qkv.weight": ("uint64", (3 * width, words_for(width))),
        "attn.qkv.threshold": ("int16", (3 * width,)),
        "attn.exp_table": ("float32", (a.head_dim + 1,)),
        "attn.attention_half_scale": ("float32", (1,)),
        "attn.product_scale": ("float32", (a.attention_groups, a.value_groups)),
        "attn.proj.weight": ("uint64", (width, words_for(width))),
        "mlp.fc1.weight": ("uint64", (hidden, words_for(width))),
        "mlp.fc1.zero_interval": ("int16", (hidden, 2)),
        "mlp.fc2.weight": ("uint64", (width, words_for(hidden))),
    }
    for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "attn.v_scale", "attn.v_bias"):
        block[name] = ("float32", (width,))
    for name in ("attn.proj.shift", "attn.proj.scale", "attn.proj.bias", "mlp.fc2.scale", "mlp.fc2.bias"):
        block[name] = ("float32", (width,))
    if a.attention_bias == "relative":
        block["attn.bias"] = ("float32", (a.num_heads, a.relative_bias_size))
    elif a.attention_bias == "full":
        block["attn.bias"] = ("float16", (a.num_heads, a.num_tokens, a.num_tokens))
    if a.threshold_scope == "fixed":
        block["attn.attention_limits"] = ("float32", (a.attention_groups - 1,))
        block["attn.value_limits"] = ("float32", (a.value_groups - 1, 2))
    for index in range(a.depth):
        specs.update({f"blocks.{index}.{name}": spec for name, spec in block.items()})
    return specs


def bit_depth(architecture: Architecture, name: str) -> int:
    """Return the number of bits a row of the packed weight ``name`` holds."""
    return architecture.mlp_hidden if name.endswith("mlp.fc2.weight") else architecture.embed_dim


def check_specs(
    expected: Mapping[str, tuple[str, tuple[int, ...]]], found: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Compare the types and shapes found with those expected. Raises InputError naming the first that differs."""
    for name, (dtype, shape) in expected.items():
        if name not in found:
            raise InputError(f"tensor {name} is missing; export the model again")
        if found[name] != (dtype, shape):
            found_dtype, found_shape = found[name]
            raise InputError(
                f"tensor {name} is {found_dtype} {found_shape}, not {dtype} {shape}; export the model again"
            )
    for name in found:
        if name not in expected:
            raise InputError(f"tensor {name} does not belong in this model; export the model again")


def check_values(architecture: Architecture, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check that every number is in range (``docs/packed-format.md``). Raises InputError naming the tensor."""
    for name, array in tensors.items():
        what = _fault(architecture, name.split(".", 2)[-1] if name.startswith("blocks.") else name, array)
        if what:
            raise InputError(f"tensor {name} {what}; export the model again")


def _fault(architecture: Architecture, name: str, array: NDArray[Any]) -> str | None:
    """Say what is wrong with one tensor; ``name`` without its block."""
    width = architecture.embed_dim
    if array.dtype == np.uint64:
        return None if pad_is_zero(array, bit_depth(architecture, name)) else "has pad bits that are not zero"
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        return "holds numbers that are not finite"
    if name == "attn.qkv.threshold" and (array.min() < -1 or array.max() > width):
        return f"has thresholds outside -1 … {width}"
    if name == "mlp.fc1.zero_interval" and (array.min() < 0 or array.max() > width):
        return f"has bounds outside 0 … {width}"
    if name == "attn.exp_table" and (array[0] != 1 or array.min() < 0 or np.any(np.diff(array) > 0)):
        return "does not fall from 1 towards 0"
    if name.endswith(("attention_half_scale", "input_scale")) and array.min() <= 0:
        return "is not above 0"
    return None


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"architecture: {name} {value!r} must be two whole numbers")
    return _whole(name, value[0], LIMITS[name]), _whole(name, value[1], LIMITS[name])


def _whole(name: str, value: Any, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise InputError(f"architecture: {name} {value!r} must be a whole number from 1 to {largest}")
    return value


def _ratios(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_THRESHOLDS or not all(_is_ratio(v) for v in value):
        raise InputError(f"architecture: {name} {value!r} must be at most {MAX_THRESHOLDS} numbers between 0 and 1")
    if any(low >= high for low, high in pairwise(value)):
        raise InputError(f"architecture: {name} {value!r} must increase")
    return tuple(float(v) for v in value)


def _is_ratio(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 < value < 1


def _choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if isinstance(value, bool) or value not in allowed:
        raise InputError(f"architecture: {name} {value!r} must be one of {', '.join(map(str, allowed))}")
