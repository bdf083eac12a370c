"""The path through a packed model on one page: start reading here.

NumPy, one picture, step by step as ``docs/numerics.md`` defines it; the oracle of the runtime. ``native/src/forward``
takes the same steps on packed bits and several threads; ``forward.h`` lists them beside these.
Every float operation is one NumPy operation on float32 arrays, so each is rounded once and nothing is fused.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.errors import InputError, ModelError
from gsb_vit.limits import RAISE_MEMORY, memory_limit, shown_bytes

from .bits import unpack
from .packed_file import PackedModel
from .relative_bias import relative_bias_index
from .schema import BLOCK_TENSORS, MAX_MEMORY, SIGNS, Architecture, convolution_of, expected_tensors, tensors_of

F32 = np.float32
_LANES = 16
NOT_FINITE = "the model's numbers overflow; export it again, or give another model"

FloatArray = NDArray[np.float32]
Trace = dict[str, NDArray[Any]]


def sum16(x: FloatArray) -> FloatArray:
    """Sum the last axis in sixteen lanes: (..., n) → (..., 1).

    Lane l adds x[l], x[l + 16], … in that order, starting from 0; then the lanes are folded onto
    their first half: 16 → 8 → 4 → 2 → 1. Zeros fill the last round, which changes no lane: no lane is ever −0.
    """
    rounds = -(-x.shape[-1] // _LANES)
    padded = np.zeros((*x.shape[:-1], rounds * _LANES), dtype=F32)
    padded[..., : x.shape[-1]] = x
    lanes = np.zeros((*x.shape[:-1], _LANES), dtype=F32)
    for start in range(0, padded.shape[-1], _LANES):
        lanes += padded[..., start : start + _LANES]
    width = _LANES
    while width > 1:
        width //= 2
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes


def layer_norm(x: FloatArray, weight: FloatArray, bias: FloatArray, eps: float) -> FloatArray:
    """Normalise the last axis: ``((x − μ) · r) · weight + bias``, ``r = 1/sqrt(v + eps)``, sums by :func:`sum16`.

    A row of which r is infinite, 0 or NaN becomes NaN: its numbers overflow, or are all equal where eps is 0.
    """
    share = F32(1) / F32(x.shape[-1])
    centred = x - sum16(x) * share
    variance = sum16(centred * centred) * share
    factor = F32(1) / np.sqrt(variance + F32(eps))
    holds = (factor > 0) & np.isfinite(factor)
    return (centred * np.where(holds, factor, F32(np.nan))) * weight + bias


def _dot(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.int32]:
    """(..., n, k) · (..., m, k)ᵀ over {−1, 0, 1}, exact, as int32 (..., n, m).

    Done by BLAS in float32: every partial sum, in whatever order and fused or not, is a whole number of at most
    k ≤ 2^20 < 2^24 and so exact. ``bitpack`` gives the same integers from the packed words (tested).
    """
    product = left.astype(F32, copy=False) @ np.swapaxes(right.astype(F32, copy=False), -1, -2)
    return product.astype(np.int32)


def reference_bytes(a: Architecture) -> int:
    """Return the most bytes that :class:`ReferenceModel` and a forward pass take, estimated from above.

    The file, its bits as float32, and in the block at work arrays of (h, N, N): a score of three int32, two float32
    of attention and its bias, and for each group a mask and a float32; for each pair of groups (N, C) as float32, int32
    and float32. Measured by ``tests/runtime/test_memory.py``.
    """
    tokens, width, pairs = a.num_tokens, a.embed_dim, a.attention_groups * a.value_groups
    area = 3 * a.patch_height * a.patch_width
    stored = unpacked = 0
    shapes = expected_tensors(a)
    for name, tensor in tensors_of(a):
        dtype, sides = shapes[name]
        stored += math.prod(sides) * np.dtype(dtype).itemsize
        if tensor.rule.kind == "bits":
            unpacked += 4 * sides[0] * tensor.rule.high.of(a, convolution_of(name))
    # float64 patches and weights, then sums as float64, int32 and twice float32
    patches = 8 * area * (a.num_patches + width) + 3 * width * a.num_patches * 32
    cells, inputs = a.num_patches << 2 * len(a.channels), 3
    for outputs in a.channels:  # windows twice as int32, then sums of three rows as int32 and float32
        cells >>= 2
        patches = max(patches, cells * (72 * inputs + 48 * outputs))
        inputs = outputs
    scores = tokens**2 * (a.num_heads * (28 + 5 * a.attention_groups) + 8 * (a.attention_bias == "relative"))
    rows = tokens * width * (16 * pairs + 5 * a.value_groups + 64) + tokens * a.mlp_hidden * 16
    heads = a.num_classes * (8 * width + 300)  # float64 weights; class names
    return stored + unpacked + heads + 5 * 3 * width**2 + max(patches, scores + rows)


@dataclass
class ReferenceModel:
    """Run a packed model in NumPy.

    ``logits`` and ``trace`` treat one picture at a time, so a picture's result cannot depend on its batch.

    Raises:
        InputError: for a model that takes more than ``max_memory`` bytes, by default those of the environment variable
            ``GSB_VIT_MAX_MEMORY`` or else 1 GiB. Traces are not counted: they keep the steps of every block.
    """

    packed: PackedModel
    max_memory: int | None = field(default=None, repr=False)
    _blocks: list[dict[str, NDArray[Any]]] = field(init=False, repr=False)
    _bias_index: NDArray[np.intp] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        a = self.packed.architecture
        most, needed = memory_limit(self.max_memory, MAX_MEMORY), reference_bytes(a)
        if needed > most:
            raise InputError(
                f"{a.name} takes {shown_bytes(needed)} in the reference engine, and a model may take "
                f"{shown_bytes(most)}; use the native engine, or {RAISE_MEMORY}"
            )
        self._blocks = [self._unpacked(index) for index in range(a.depth)]
        if a.attention_bias == "relative":
            self._bias_index = relative_bias_index(a.grid, a.prefix_tokens)

    def _unpacked(self, index: int) -> dict[str, NDArray[Any]]:
        block = self.packed.block(index)
        for tensor in BLOCK_TENSORS:
            if tensor.rule.kind == "bits":
                depth = tensor.rule.high.of(self.packed.architecture)
                block[tensor.name] = SIGNS.numbers(unpack(block[tensor.name], depth))
        return block

    def logits(self, pictures: NDArray[np.uint8]) -> FloatArray:
        """Classify a batch: uint8 (B, H, W, 3) → float32 (B, K).

        Raises:
            InputError: for another shape or type, and where the model's numbers overflow: a norm does not hold or a
                logit is not finite.
        """
        check_batch(pictures, self.packed.architecture.image_size)
        results = [self._forward(picture, {}) for picture in pictures]
        logits = np.stack(results) if results else np.empty((0, self.packed.architecture.num_classes), dtype=F32)
        if not np.isfinite(logits).all():
            raise ModelError(NOT_FINITE)
        return logits

    def embed(self, pictures: NDArray[np.uint8]) -> FloatArray:
        """Return what the heads read, side by side: uint8 (B, H, W, 3) → float32 (B, heads · C).

        Raises:
            InputError: for another shape or type.
        """
        check_batch(pictures, self.packed.architecture.image_size)
        a = self.packed.architecture
        names = [f"heads.{index}.norm" for index in range(len(a.heads))]
        features = np.empty((len(pictures), len(names) * a.embed_dim), dtype=F32)
        for row, picture in zip(features, pictures, strict=True):
            trace: Trace = {}
            self._forward(picture, trace)
            row[:] = np.concatenate([trace[name] for name in names])
        return features

    def trace(self, picture: NDArray[np.uint8]) -> Trace:
        """Classify one picture, uint8 (H, W, 3), and return every step by name.

        N tokens, h heads, d head channels, C width, M hidden, K classes, A and V groups; bits are bool:

        ============================================ ======================================================
        ``patch_embed.sum``                          int32 (Np, C, 3), S_c
        ``tokenizer.i.levels``                       uint8 (H/2^(i+1), W/2^(i+1), C_i), but of the last convolution
        ``tokens``                                   float32 (N, C) before the first block
        ``blocks.i.attn.qkv.input``                  bits (N, C)
        ``blocks.i.attn.qkv.popcount``               int32 (N, 3C)
        ``blocks.i.attn.query|key|value.bits``       bits (h, N, d)
        ``blocks.i.attn.score``                      int32 (h, N, N), z
        ``blocks.i.attn.attention``                  float32 (h, N, N), A
        ``blocks.i.attn.attention_masks``            bits (A, h, N, N), M_a
        ``blocks.i.attn.value``                      float32 (h, N, d), v
        ``blocks.i.attn.value_masks``                bits (V, h, N, d), T_b (T_0 is all ones)
        ``blocks.i.attn.product``                    int32 (A, V, h, N, d), I_ab
        ``blocks.i.attn.output``                     float32 (N, C), y, heads side by side
        ``blocks.i.attn.proj.input``, ``.dot``       bits (N, C), int32 (N, C)
        ``blocks.i.mlp.fc1.input``, ``.popcount``    bits (N, C), int32 (N, M)
        ``blocks.i.mlp.fc2.input``, ``.dot``         bits (N, M), int32 (N, C)
        ``blocks.i.output``                          float32 (N, C), the residual stream behind the block
        ``heads.j.norm``                             float32 (C), the normalised token, or mean, the head reads
        ``heads.j.input``, ``heads.j.sum``           int8 (C), int32 (K)
        ``logits``                                   float32 (K)
        ============================================ ======================================================

        Raises:
            InputError: for another shape or type, and where a norm does not hold.
        """
        check_batch(np.asarray(picture)[None], self.packed.architecture.image_size)
        trace: Trace = {}
        trace["logits"] = self._forward(picture, trace, every_step=True)
        return trace

    @np.errstate(all="ignore")  # what overflows is found in the norms and the logits
    def _forward(self, picture: NDArray[np.uint8], trace: Trace, every_step: bool = False) -> FloatArray:
        """Return the logits; ``trace`` receives the steps outside the blocks, with ``every_step`` also those inside."""
        x = self._embed(picture, trace)
        trace["tokens"] = x
        reads = [head.reads for head in self.packed.architecture.heads]
        read = slice(min(part.first for part in reads), max(part.end for part in reads))
        for index, block in enumerate(self._blocks):
            steps: Trace = {}
            x = x + self._attention(x, block, steps)
            last = index + 1 == len(self._blocks)
            x = x + self._mlp(x, block, steps, read if last else slice(None))
            steps["output"] = x
            if every_step:
                trace.update({f"blocks.{index}.{name}": value for name, value in steps.items()})
        return self._heads(x, trace)

    def _embed(self, picture: NDArray[np.uint8], trace: Trace) -> FloatArray:
        a, packed = self.packed.architecture, self.packed
        if a.channels:
            embedded = self._convolve(picture, trace) + packed["patch_embed.position"]
            return np.concatenate([packed["prefix_tokens"], embedded])
        (rows, columns), (height, width) = a.grid, a.patch_size
        patches = picture.reshape(rows, height, columns, width, 3).transpose(0, 2, 4, 1, 3)
        patches = patches.reshape(a.num_patches, 3, height * width).astype(np.float64)
        weight = packed["patch_embed.weight"].reshape(a.embed_dim, 3, -1).astype(np.float64)
        # float64 holds the int32 sums exactly, in any order.
        sums = np.stack([patches[:, c] @ weight[:, c].T for c in range(3)], axis=-1).astype(np.int32)
        trace["patch_embed.sum"] = sums
        scaled = sums.astype(F32) * packed["patch_embed.scale"]
        embedded = ((scaled[..., 0] + scaled[..., 1]) + scaled[..., 2]) + packed["patch_embed.position"]
        return np.concatenate([packed["prefix_tokens"], embedded])

    def _convolve(self, picture: NDArray[np.uint8], trace: Trace) -> FloatArray:
        """Return what the tokenizer's last convolution gives (Np, C), without the position."""
        y = self._first_convolution(picture)
        for index, bits in enumerate(self.packed.architecture.level_bits, 1):
            levels = np.rint(np.minimum(np.where(y > 0, y, F32(0)), F32(2**bits - 1))).astype(np.uint8)
            trace[f"tokenizer.{index - 1}.levels"] = levels
            y = self._convolution_of_bits(levels, index) if bits == 1 else self._convolution(levels, index)
            if index < len(self.packed.architecture.level_bits):
                y = y + self.packed[f"tokenizer.{index}.bias"]
        return y.reshape(-1, y.shape[-1])

    def _first_convolution(self, picture: NDArray[np.uint8]) -> FloatArray:
        windows = _windows(picture)  # (H/2, W/2, 3 lines, 3 columns, 3 colours)
        sums = np.einsum("yxijc,ocij->yxoc", windows, self.packed["tokenizer.0.weight"].astype(np.int32))
        scaled = sums.astype(F32) * self.packed["tokenizer.0.scale"]
        first_line, first_column = (np.arange(side) == 0 for side in windows.shape[:2])
        offset = self.packed["tokenizer.0.offset"][2 * first_line[:, None] + first_column]
        return ((scaled[..., 0] + scaled[..., 1]) + scaled[..., 2]) + offset

    def _convolution(self, levels: NDArray[np.uint8], index: int) -> FloatArray:
        weight = self.packed[f"tokenizer.{index}.weight"].astype(np.int32)
        sums = np.einsum("yxijc,oijc->yxoi", _windows(levels), weight, optimize=True)
        scaled = sums.astype(F32) * self.packed[f"tokenizer.{index}.scale"][:, None]
        return (scaled[..., 0] + scaled[..., 1]) + scaled[..., 2]

    def _convolution_of_bits(self, levels: NDArray[np.uint8], index: int) -> FloatArray:
        windows = _windows(levels)
        rows = windows.reshape(*windows.shape[:2], -1)
        weight = SIGNS.numbers(unpack(self.packed[f"tokenizer.{index}.weight"], rows.shape[-1]))
        return _dot(rows, weight).astype(F32) * self.packed[f"tokenizer.{index}.scale"]

    def _attention(self, x: FloatArray, block: dict[str, NDArray[Any]], steps: Trace) -> FloatArray:
        a = self.packed.architecture
        bits = _held(layer_norm(x, block["norm1.weight"], block["norm1.bias"], a.layer_norm_eps)) >= 0
        steps["attn.qkv.input"] = bits
        popcount = (a.embed_dim - _dot(a.formats.qkv.numbers(bits), block["attn.qkv.weight"])) // 2
        steps["attn.qkv.popcount"] = popcount
        query, key, value_bits = (
            self._by_head(part) for part in np.split(popcount <= block["attn.qkv.threshold"], 3, axis=-1)
        )
        steps["attn.query.bits"], steps["attn.key.bits"], steps["attn.value.bits"] = query, key, value_bits
        masks = self._attention_masks(query, key, block, steps)
        planes = self._value_planes(popcount[:, 2 * a.embed_dim :], value_bits, block, steps)
        # (A, 1, h, N, N) · (1, V, h, d, N)ᵀ → (A, V, h, N, d)
        products = _dot(a.formats.attention.numbers(masks)[:, None], np.swapaxes(planes, -1, -2)[None])
        steps["attn.product"] = products
        output = self._combine(products, block["attn.product_scale"])
        steps["attn.output"] = output
        bits = output + block["attn.proj.shift"] >= 0
        dot = _dot(a.formats.proj.numbers(bits), block["attn.proj.weight"])
        steps["attn.proj.input"], steps["attn.proj.dot"] = bits, dot
        return dot.astype(F32) * block["attn.proj.scale"] + block["attn.proj.bias"]

    def _by_head(self, x: NDArray[Any]) -> NDArray[Any]:
        """(N, C) → (h, N, d)."""
        a = self.packed.architecture
        return x.reshape(x.shape[0], a.num_heads, a.head_dim).transpose(1, 0, 2)

    def _attention_masks(
        self, query: NDArray[np.bool_], key: NDArray[np.bool_], block: dict[str, NDArray[Any]], steps: Trace
    ) -> NDArray[np.bool_]:
        """Return the groups (A, h, N, N)."""
        a = self.packed.architecture
        numbers = a.formats.query_key.numbers
        score = (a.head_dim - _dot(numbers(query), numbers(key))) // 2
        steps["attn.score"] = score
        weights = block["attn.exp_table"][score - score.min(axis=-1, keepdims=True)]
        attention = weights * (F32(1) / sum16(weights))
        if self._bias_index is not None:
            attention = attention + block["attn.bias"][:, self._bias_index]
        elif a.attention_bias == "full":
            attention = attention + block["attn.bias"].astype(F32)
        if a.threshold_scope == "fixed":
            limits = block["attn.attention_limits"]
        else:
            limits = np.array(a.attention_thresholds, dtype=F32) * attention.max()
        limits = np.concatenate([block["attn.attention_half_scale"], limits])
        masks = attention > limits[:, None, None, None]
        steps["attn.attention"], steps["attn.attention_masks"] = attention, masks
        return masks

    def _value_planes(
        self, popcount: NDArray[np.int32], bits: NDArray[np.bool_], block: dict[str, NDArray[Any]], steps: Trace
    ) -> FloatArray:
        """Return the planes (V, h, N, d): ±1, and 0 outside a group."""
        a = self.packed.architecture
        value = (a.embed_dim - 2 * popcount).astype(F32) * block["attn.v_scale"] + block["attn.v_bias"]
        value = self._by_head(value)
        if a.threshold_scope == "fixed":
            limits = block["attn.value_limits"]
        else:
            limits = np.array(a.value_thresholds, dtype=F32)[:, None] * np.array([value.max(), value.min()])
        masks = [np.ones(value.shape, dtype=bool)]
        masks += [(value > upper) | (value < lower) for upper, lower in limits]
        steps["attn.value"], steps["attn.value_masks"] = value, np.stack(masks)
        return np.stack(masks) * a.formats.value.numbers(bits)

    @staticmethod
    def _combine(products: NDArray[np.int32], scales: FloatArray) -> FloatArray:
        """Σ_ab I_ab · S_ab, a outer, b inner, each step rounded: (A, V, h, N, d) → (N, C)."""
        floats = products.astype(F32)
        total = floats[0, 0] * scales[0, 0]
        for a, b in list(np.ndindex(*scales.shape))[1:]:
            total = total + floats[a, b] * scales[a, b]
        heads, tokens, channels = total.shape
        return total.transpose(1, 0, 2).reshape(tokens, heads * channels)

    def _mlp(self, x: FloatArray, block: dict[str, NDArray[Any]], steps: Trace, read: slice) -> FloatArray:
        """``read`` are the rows that something reads later."""
        a = self.packed.architecture
        y = layer_norm(x, block["norm2.weight"], block["norm2.bias"], a.layer_norm_eps)
        _held(y[read])
        bits = y >= 0
        popcount = (a.embed_dim - _dot(a.formats.fc1.numbers(bits), block["mlp.fc1.weight"])) // 2
        low, high = block["mlp.fc1.zero_interval"].T
        hidden = ~((low <= popcount) & (popcount <= high))
        dot = _dot(a.formats.fc2.numbers(hidden), block["mlp.fc2.weight"])
        steps["mlp.fc1.input"], steps["mlp.fc1.popcount"] = bits, popcount
        steps["mlp.fc2.input"], steps["mlp.fc2.dot"] = hidden, dot
        return dot.astype(F32) * block["mlp.fc2.scale"] + block["mlp.fc2.bias"]

    def _heads(self, x: FloatArray, trace: Trace) -> FloatArray:
        a, packed = self.packed.architecture, self.packed
        results = []
        for index, head in enumerate(a.heads):
            y = x[head.reads.first : head.reads.end]
            if a.pool_norm == "after":
                y = _mean(y)
            y = _held(layer_norm(y, packed["norm.weight"], packed["norm.bias"], a.layer_norm_eps))
            (y,) = _mean(y)
            name = f"heads.{index}"
            levels = np.rint((y + packed[f"{name}.shift"]) / packed[f"{name}.input_scale"])
            levels = np.clip(levels, -128, 127)
            # float64: the sums may exceed 2^24.
            sums = (packed[f"{name}.weight"].astype(np.float64) @ levels.astype(np.float64)).astype(np.int32)
            trace[f"{name}.norm"] = y
            trace[f"{name}.input"], trace[f"{name}.sum"] = levels.astype(np.int8), sums
            results.append(sums.astype(F32) * packed[f"{name}.scale"] + packed[f"{name}.bias"])
        return results[0] if len(results) == 1 else (results[0] + results[1]) * F32(0.5)


def _mean(x: FloatArray) -> FloatArray:
    """The mean of rows (N, C) → (1, C): ``sum16`` of each column, times f32(1/N); one row is itself."""
    return x if len(x) == 1 else sum16(np.ascontiguousarray(x.T)).T * (F32(1) / F32(len(x)))


def _windows(x: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Windows of 3 × 3, two apart, of x (H, W, I), zeros before the first line and column: (H/2, W/2, 3, 3, I)."""
    padded = np.pad(x, ((1, 0), (1, 0), (0, 0))).astype(np.int32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))[::2, ::2]
    return np.moveaxis(windows, 2, -1)


def _held(y: FloatArray) -> FloatArray:
    """Return the norms as they are. Raises ModelError where one does not hold."""
    if np.isnan(y).any():
        raise ModelError(NOT_FINITE)
    return y


def check_batch(pictures: Any, size: tuple[int, int]) -> None:
    """Check that ``pictures`` is uint8 (B, H, W, 3) with (H, W) = ``size``. Raises InputError if not."""
    shape = tuple(np.shape(pictures))
    if getattr(pictures, "dtype", None) != np.uint8 or len(shape) != 4 or shape[1:] != (*size, 3):
        kind = getattr(pictures, "dtype", type(pictures).__name__)
        raise InputError(
            f"pictures of shape {shape} and type {kind} do not fit; "
            f"give uint8 (B, {size[0]}, {size[1]}, 3), as Preprocessing makes them"
        )
