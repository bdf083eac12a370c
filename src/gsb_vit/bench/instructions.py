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

    Products of bits are counted in words of 64, with rows padded as the kernels pad them.
    """
    tokens, width, hidden, heads = a.num_tokens, a.embed_dim, a.mlp_hidden, a.num_heads
    head, depth = width // heads, a.depth
    words, hidden_words, head_words = -(-width // 64), -(-hidden // 64), -(-head // 64)
    scores = depth * heads * tokens * tokens
    upper = a.attention_groups * a.value_groups - 1
    return {
        "linear_words": depth * tokens * (4 * width * words + hidden * words + width * hidden_words),
        "score_words": scores * head_words,
        "score_entries": scores,
        "value_words": depth * heads * tokens * head * -(-tokens // 64),
        "upper_values": depth * tokens * width * upper,
        "token_numbers": depth * tokens * width,
        "hidden_numbers": depth * tokens * hidden,
        "head_rows": depth * heads * tokens,
        "byte_products": _byte_products(a),
        "class_products": len(a.heads) * a.num_classes * width,
        "pixels": a.image_size[0] * a.image_size[1],
        "pictures": 1,
    }


def _byte_products(a: Architecture) -> float:
    """8-bit multiply-adds of what makes tokens of a picture, each row of a sum padded to four."""
    if not a.channels:
        return 3 * -(-a.patch_height * a.patch_width // 4) * 4 * a.num_patches * a.embed_dim
    places, total = a.image_size[0] * a.image_size[1], 0
    for inputs, outputs in pairwise((3, *a.channels)):
        places //= 4
        total += 3 * -(-3 * inputs // 4) * 4 * places * outputs
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
