"""Instructions of a forward pass on another processor, from its shape: counted ones, put together.

``benchmarks/board_instructions.py`` runs ``gsb-vit-classify`` under QEMU for models of many shapes, counts
instructions of a picture, and fits what each kind of work below costs. ``counted.json`` holds the result and how far
models that were not fitted are off.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from gsb_vit.runtime.schema import Architecture


def work(a: Architecture) -> dict[str, float]:
    """Return what a forward pass does, by kind of work, in the units that it grows with.

    Products of bits are counted in words of 32 bits, rows and channels padded as by ``native/src/weights/shape.h``.
    """
    tokens, heads, depth = a.num_tokens, a.num_heads, a.depth
    width, hidden = _up(a.embed_dim, 16), _up(a.mlp_hidden, 16)
    head = _up(a.embed_dim // heads, 32)
    inner = heads * head
    wide, deep = -(-a.embed_dim // 32), -(-hidden // 32)
    linear = 3 * inner * wide + width * inner // 32 + hidden * wide + width * deep
    upper = a.attention_groups * a.value_groups - 1
    tokenizer = _tokenizer_products(a)
    patches = 0 if a.channels else 3 * _up(a.patch_height * a.patch_width, 4) * a.num_patches * width
    return {
        "linear_words": depth * tokens * linear,
        "query_outputs": depth * tokens * 3 * inner,
        "residual_outputs": depth * tokens * 2 * width,
        "hidden_outputs": depth * tokens * hidden,
        "score_words": depth * heads * tokens * tokens * head // 32,
        "score_entries": depth * heads * tokens * tokens,
        "value_words": depth * tokens * inner * -(-tokens // 32),
        "value_outputs": depth * tokens * inner,
        "value_planes": depth * tokens * inner * a.value_groups,
        "upper_products": depth * tokens * inner * upper,
        "head_rows": depth * heads * tokens,
        "patch_products": patches,
        "tokenizer_products": tokenizer,
        "class_products": len(a.heads) * a.num_classes * a.embed_dim,
        "pixels": a.image_size[0] * a.image_size[1],
        "pictures": 1,
    }


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _tokenizer_products(a: Architecture) -> int:
    """8-bit multiply-adds of the convolutions, each row of a sum padded to four, channels to 16."""
    places, total = a.image_size[0] * a.image_size[1], 0
    for inputs, outputs in pairwise((3, *a.channels) if a.channels else ()):
        places //= 4
        total += 3 * _up(3 * inputs, 4) * places * _up(outputs, 16)
    return total


@dataclass(frozen=True)
class Counted:
    """What was counted for one build of the engine.

    ``per_unit``: instructions of a unit of :func:`work`. ``largest_error``: of models that were not fitted, the largest
    relative difference between what this gives and what was counted. ``program``: bytes of gsb-vit-classify.
    """

    build: str
    how: str
    per_unit: dict[str, float]
    largest_error: float
    models: int
    program: int

    def instructions(self, a: Architecture) -> float:
        """Return the instructions of one picture."""
        units = work(a)
        return sum(cost * units[kind] for kind, cost in self.per_unit.items())


@cache
def counted(build: str) -> Counted | None:
    """Return what was counted for a build (``aarch64``, ``armv7``, ``riscv64`` …), None where nothing was."""
    rows: dict[str, Any] = json.loads(files("gsb_vit.bench").joinpath("counted.json").read_text(encoding="utf-8"))
    return Counted(build, **rows[build]) if build in rows else None
