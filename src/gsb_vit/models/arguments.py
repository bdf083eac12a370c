"""What a model file or a recipe may ask of an architecture: names that are registered, known arguments, bounded sizes.

Everything else that timm's factory takes is refused: ``checkpoint_path`` loads a pickle in timm 1.0.22 to 1.0.25,
``pretrained_cfg`` and the prefix ``hf-hub:`` fetch files, ``norm_layer`` and the like name code.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import timm
from timm.models import get_pretrained_cfg

from gsb_vit.errors import InputError, shown
from gsb_vit.limits import RAISE_MEMORY, memory_limit, shown_bytes
from gsb_vit.nn.tokenizer import MOST_CONVOLUTIONS

from . import zoo  # noqa: F401  (registers the models with timm)

# Bytes of a model's float32 weights and of its N² attention, unless the caller or MAX_MEMORY_VARIABLE says otherwise.
MAX_MEMORY = 16_000_000_000
MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class _Range:
    """Numbers from ``low`` to ``high``; ``pair``: or two of them, height and width."""

    low: float
    high: float
    whole: bool = True
    pair: bool = False

    def holds(self, value: Any) -> bool:
        if self.pair and isinstance(value, (list, tuple)):
            return len(value) == 2 and all(self.holds(one) and not isinstance(one, (list, tuple)) for one in value)
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        kind = "whole number" if self.whole else "number"
        return f"a {kind} from {self.low:,g} to {self.high:,g}" + ", or two of them" * self.pair


@dataclass(frozen=True)
class _Choice:
    """One of some texts."""

    choices: tuple[str, ...]

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.choices

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.choices))


@dataclass(frozen=True)
class _List:
    """A list of at most ``most`` values of a range."""

    item: _Range
    most: int

    def holds(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) <= self.most and all(map(self.item.holds, value))

    def __str__(self) -> str:
        return f"a list of at most {self.most}, each {self.item}"


ARGUMENTS: dict[str, _Range | _Choice | _List] = {
    "img_size": _Range(1, 8192, pair=True),
    "patch_size": _Range(1, 8192, pair=True),
    "embed_dim": _Range(1, 16384),
    "depth": _Range(1, 256),
    "num_heads": _Range(1, 1024),
    "mlp_ratio": _Range(1e-3, 64, whole=False),
    "drop_rate": _Range(0, 1, whole=False),
    "proj_drop_rate": _Range(0, 1, whole=False),
    "attn_drop_rate": _Range(0, 1, whole=False),
    "drop_path_rate": _Range(0, 1, whole=False),
    "global_pool": _Choice(("token", "avg")),
    "reg_tokens": _Range(0, 1024),
    "tokenizer_channels": _List(_Range(1, 16384), MOST_CONVOLUTIONS - 1),
    "shown_size": _Range(1, 8192),
}
_TAKE_A_SIZE = ("vit", "deit", "gsb_vit", "beit", "eva", "swin")  # families whose models are built for a picture size
_TAKEN_BY_ALL = ("drop_rate", "drop_path_rate", "shown_size")  # what models of every other family are asked for


def takes_a_size(name: str) -> bool:
    """Whether a model of timm is built for one picture size, as transformers are; others take pictures of any."""
    config = get_pretrained_cfg(name)
    return name.partition(".")[0].startswith(_TAKE_A_SIZE) or (config is not None and bool(config.fixed_input_size))


def taken_arguments(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a student's arguments that its architecture takes: of no vision transformer the rates that are not 0.

    Raises InputError for an unknown name, with the nearest.
    """
    require_architecture(name)
    if takes_a_size(name):
        return dict(args)
    return {key: value for key, value in args.items() if key in _TAKEN_BY_ALL and value}


def require_architecture(name: str) -> None:
    """Raise InputError for a name timm does not know, with the nearest one, and for one that names a place."""
    known = timm.list_models()
    if not isinstance(name, str) or not re.fullmatch(r"\w+(\.\w+)?", name) or name.partition(".")[0] not in known:
        near = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.0)
        raise InputError(f"unknown architecture {shown(name)}; the nearest is {near[0]!r}; timm.list_models() has all")


def check_arguments(
    architecture: str, args: Mapping[str, Any], num_classes: int, *, max_memory: int | None = None
) -> None:
    """Raise InputError for an argument that is not in ``ARGUMENTS`` or out of its range, and for a model too large.

    A model may take ``max_memory`` bytes, by default those of the environment variable ``GSB_VIT_MAX_MEMORY`` or else
    16 GB.
    """
    for name, value in args.items():
        if name not in ARGUMENTS:
            raise InputError(f"{architecture} takes no argument {shown(name)} here; it takes {', '.join(ARGUMENTS)}")
        if not ARGUMENTS[name].holds(value):
            raise InputError(f"{architecture}: {name} = {shown(value)} must be {ARGUMENTS[name]}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 0 <= num_classes <= MOST_CLASSES:
        raise InputError(f"{architecture}: {shown(num_classes)} classes must be a whole number up to {MOST_CLASSES:,}")
    needed = least_bytes(args, num_classes)
    most = memory_limit(max_memory, MAX_MEMORY)
    if needed > most:
        raise InputError(
            f"{architecture} with {dict(args)} needs at least {shown_bytes(needed)}, more than {shown_bytes(most)}; "
            f"make it narrower or shallower or its patches larger, or {RAISE_MEMORY}"
        )


def least_bytes(args: Mapping[str, Any], num_classes: int) -> float:
    """Estimate from below what a vision transformer of these arguments takes: float32 weights, and N² indices a block.

    What is left out counts as little as any architecture has: width 48, depth 1, ratio 1, one token.
    """
    width, depth, ratio = args.get("embed_dim", 48), args.get("depth", 1), args.get("mlp_ratio", 1)
    tokens = 1
    if "img_size" in args:
        patch = _pair(args.get("patch_size", 32))
        tokens = math.prod(max(size // side, 1) for size, side in zip(_pair(args["img_size"]), patch, strict=True))
    weights = depth * (4 + 2 * ratio) * width**2 + (tokens + num_classes) * width
    channels = [3, *args.get("tokenizer_channels", ()), width]
    if len(channels) > 2:
        weights += 9 * sum(inputs * outputs for inputs, outputs in pairwise(channels))
    else:
        weights += 3 * math.prod(_pair(args.get("patch_size", 1))) * width
    return 4 * weights + 8 * depth * tokens**2


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, (list, tuple)) else (value, value)
