"""Instructions of a forward pass on another processor, from its shape: counted ones, put together.

``benchmarks/board_instructions.py`` runs ``gsb-vit-classify``, or the C file of ``gsb-vit export --c``, under QEMU for
models of many shapes, counts instructions of a picture, and fits what each kind of work below costs. ``counted.json``
holds the result and how far models that were not fitted are off.
"""

import json
from dataclasses import dataclass, field
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
    tokenizer = _c_tokenizer_work(a)
    products = [  # how many, and of how many words
        (every * 3 * width + read * (width + hidden), -(-width // 32)),
        (read * width, -(-hidden // 32)),
        (rows * tokens, -(-width // heads // 32)),
        (read * width * groups, -(-tokens // 32)),
        *tokenizer.rows,
    ]
    quads, threes, ones = 0, 0, tokenizer.window_words
    for count, words in products:
        whole = words // 4 if helium else 0
        quads += count * whole
        threes += count * ((words - 4 * whole) // 3)
        ones += count * ((words - 4 * whole) % 3)
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
        "patch_products": 0 if a.channels else 3 * a.image_size[0] * a.image_size[1] * width,
        "patch_outputs": 0 if a.channels else a.num_patches * width,
        "convolved_products": tokenizer.products,
        "convolved_outputs": tokenizer.outputs,
        "bit_convolved_outputs": tokenizer.bit_outputs,
        "class_products": len(a.heads) * a.num_classes * width,
        "pictures": 1,
    }


@dataclass
class _CTokenizerWork:
    """8-bit multiply-adds of convolutions and their outputs; those of one-bit levels, and rows of their windows.

    ``rows``: how many products of bits, and of how many words. ``window_words``: words whose ones are counted alone.
    """

    products: int = 0
    outputs: int = 0
    bit_outputs: int = 0
    window_words: int = 0
    rows: list[tuple[int, int]] = field(default_factory=list)


def _c_tokenizer_work(a: Architecture) -> _CTokenizerWork:
    """A window has no row above the picture and no column before it; one-bit levels skip them, 8-bit ones hardly do."""
    found = _CTokenizerWork()
    height, width = a.image_size
    for (inputs, outputs), bits in zip(pairwise((3, *a.channels)), (8, *a.level_bits), strict=False):
        height, width = height // 2, width // 2
        if bits == 8:
            found.products += 9 * inputs * height * width * outputs
            found.outputs += height * width * outputs
            continue
        words, lines = -(-inputs // 32), 3 * height - 1
        found.bit_outputs += height * width * outputs
        found.window_words += lines * (3 * width - 1) * words
        found.rows += [(lines * (width - 1) * outputs, 3 * words), (lines * outputs, 2 * words)]
    return found


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
