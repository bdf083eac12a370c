"""Instructions of a forward pass on another processor, from its shape: counted ones, put together.

``benchmarks/board_instructions.py`` runs ``gsb-vit-classify``, or the C file of ``gsb-vit export --c``, under QEMU for
models of many shapes, counts instructions of a picture, and fits what each kind of work below costs. ``counted.json``
holds the result and how far models that were not fitted are off.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Any

from gsb_vit.runtime.schema import Architecture

_TOKENIZER_WORK = ("products", "outputs", "words", "hidden_outputs", "residual_outputs")
HELIUM_BUILD = "c99-cortex-m55"


def work(a: Architecture) -> dict[str, float]:
    """Return what a forward pass does, by kind of work, in the units that it grows with.

    Products of bits are counted in words of 32 bits, rows and channels padded as by ``native/src/weights/shape.h``.
    """
    tokens, heads, depth = a.num_tokens, a.num_heads, a.depth
    width, hidden = _up(a.embed_dim, 16), _up(a.mlp_hidden, 16)
    head = _up(a.embed_dim // heads, 32)
    inner = heads * head
    wide, deep = -(-a.embed_dim // 32), -(-hidden // 32)
    upper = a.attention_groups * a.value_groups - 1
    tokenizer = _tokenizer_work(a)
    patches = 0 if a.channels else 3 * _up(a.patch_height * a.patch_width, 4) * a.num_patches * width
    # Queries, keys and Values of all tokens; behind the last block's only those that a head reads.
    first, end = min(one.reads.first for one in a.heads), max(one.reads.end for one in a.heads)
    every, read = depth * tokens, (depth - 1) * tokens + end - first
    linear = every * 3 * inner * wide + read * (width * inner // 32 + hidden * wide + width * deep)
    return {
        "linear_words": linear + tokenizer["words"],
        "query_outputs": every * 3 * inner,
        "residual_outputs": read * 2 * width + tokenizer["residual_outputs"],
        "hidden_outputs": read * hidden + tokenizer["hidden_outputs"],
        "score_words": depth * heads * tokens * tokens * head // 32,
        "score_entries": depth * heads * tokens * tokens,
        "value_words": read * inner * -(-tokens // 32),
        "value_outputs": read * inner,
        "value_planes": every * inner * a.value_groups,
        "upper_products": read * inner * upper,
        "head_rows": depth * heads * tokens,
        "patch_products": patches,
        "tokenizer_products": tokenizer["products"],
        "tokenizer_outputs": tokenizer["outputs"],
        "class_products": len(a.heads) * a.num_classes * a.embed_dim,
        "pixels": a.image_size[0] * a.image_size[1],
        "pictures": 1,
    }


def c_work(a: Architecture, helium: bool = False) -> dict[str, float]:
    """Return what a forward pass of the C file does, by kind of work: ``src/gsb_vit/export/c``.

    Products of bits are counted in words of 32 bits: in quads where there is Helium, the rest in threes and ones.
    """
    tokens, heads, depth, width, hidden = a.num_tokens, a.num_heads, a.depth, a.embed_dim, a.mlp_hidden
    groups, planes = a.attention_groups, a.value_groups
    first, end = min(one.reads.first for one in a.heads), max(one.reads.end for one in a.heads)
    every, read = depth * tokens, (depth - 1) * tokens + end - first
    fixed = groups == 1 or a.threshold_scope == "fixed"
    rows = heads * (read + (0 if fixed else every))  # of attention matrices: once for their largest number
    products = [  # how many, and of how many bits
        (every * 3 * width + read * (width + hidden), width),
        (read * width, hidden),
        (rows * tokens, width // heads),
        (read * width * groups, tokens),
    ]
    quads = threes = ones = 0
    for count, bits in products:
        words = -(-bits // 32)
        whole = words // 4 if helium else 0
        quads += count * whole
        threes += count * ((words - 4 * whole) // 3)
        ones += count * ((words - 4 * whole) % 3)
    patches, convolved, outputs = _c_tokenizer_work(a)
    return {
        "quads": quads,
        "threes": threes,
        "ones": ones,
        "qkv_outputs": every * 3 * width,
        "residual_outputs": read * 2 * width,
        "hidden_outputs": read * hidden,
        "score_entries": rows * tokens,
        "score_rows": rows,
        "mask_entries": read * heads * tokens * groups,
        "plane_bits": every * width * planes,
        "dense_outputs": read * width * groups,
        "upper_words": read * width * groups * (planes - 1) * -(-tokens // 32),
        "norm_numbers": (every + read) * width,
        "patch_products": patches,
        "patch_outputs": 0 if a.channels else a.num_patches * width,
        "convolved_products": convolved,
        "convolved_outputs": outputs,
        "class_products": len(a.heads) * a.num_classes * width,
        "pictures": 1,
    }


def _c_tokenizer_work(a: Architecture) -> tuple[int, int, int]:
    """8-bit multiply-adds of patches, those of convolutions, and the convolutions' outputs."""
    places, convolved, outputs = a.image_size[0] * a.image_size[1], 0, 0
    if not a.channels:
        return 3 * places * a.embed_dim, 0, 0
    for inputs, channels in pairwise((3, *a.channels)):
        places //= 4
        convolved += 9 * inputs * places * channels
        outputs += places * channels
    return 0, convolved, outputs


def work_of(build: str, a: Architecture) -> dict[str, float]:
    """Return what a forward pass of a build does: the engine's, or, with ``c99-`` before it, the C file's."""
    return c_work(a, helium=build == HELIUM_BUILD) if build.startswith("c99-") else work(a)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _tokenizer_work(a: Architecture) -> dict[str, int]:
    """Of convolutions on bytes multiply-adds, each row of a sum padded to four, channels to 16, and outputs.

    On one-bit levels words of products, each tap in whole words, and outputs: those that become bits at once, as the
    hidden ones of an MLP, and those that become numbers, as a residual's.
    """
    places, work = a.image_size[0] * a.image_size[1], dict.fromkeys(_TOKENIZER_WORK, 0)
    if not a.channels:
        return work
    levels = (8, *a.level_bits, 32)
    for (inputs, outputs), (taken, given) in zip(pairwise((3, *a.channels)), pairwise(levels), strict=True):
        places //= 4
        count = places * _up(outputs, 16)
        if taken == 1:
            work["words"] += 9 * -(-inputs // 32) * count
            work["hidden_outputs" if given == 1 else "residual_outputs"] += count
        else:
            work["products"] += 3 * _up(3 * inputs, 4) * count
            work["outputs"] += count
    return work


@dataclass(frozen=True)
class Counted:
    """What was counted for one build of the engine, or of the C file.

    ``per_unit``: instructions of a unit of :func:`work_of`. ``largest_error``: of models that were not fitted, the
    largest relative difference between what this gives and what was counted. ``program``: bytes of gsb-vit-classify, or
    of the C file's code.
    """

    build: str
    how: str
    per_unit: dict[str, float]
    largest_error: float
    models: int
    program: int

    def instructions(self, a: Architecture) -> float:
        """Return the instructions of one picture."""
        units = work_of(self.build, a)
        return sum(cost * units[kind] for kind, cost in self.per_unit.items())


@cache
def counted(build: str) -> Counted | None:
    """Return what was counted for a build (``aarch64``, ``c99-cortex-m55`` …), None where nothing was."""
    rows: dict[str, Any] = json.loads(files("gsb_vit.bench").joinpath("counted.json").read_text(encoding="utf-8"))
    return Counted(build, **rows[build]) if build in rows else None
