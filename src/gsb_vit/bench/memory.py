"""Bytes of memory that the native engine takes for a model, from its shape alone: what a board must have.

One thread, its arrays as ``native/src/forward/workspace.cpp`` and ``native/src/weights/`` make them, each on a cache
line. The program itself, its stack and the operating system come on top.
"""

from dataclasses import dataclass

from gsb_vit.runtime.schema import Architecture, expected_tensors

from .cost import summarize

_LINE = 64  # bytes
_LANES, _ATTENTION_ROWS, _SCORE_ROWS, _PIECE, _EXP_COPIES = 16, 32, 8, 16, 192
_HEADER_PER_TENSOR = 105  # bytes of the file's header


@dataclass(frozen=True)
class Memory:
    """Bytes by what holds them: the file, which is read whole, its weights as kernels want them, and a forward pass."""

    file: int
    weights: int
    forward: int

    @property
    def total(self) -> int:
        """All three."""
        return self.file + self.weights + self.forward


def memory_of(a: Architecture, file_bytes: int | None = None) -> Memory:
    """Return what the engine takes for one picture at a time; within a few percent of what it counts (tested).

    ``file_bytes``: those of the packed file, where there is one; else they are estimated.
    """
    if file_bytes is None:
        file_bytes = summarize(a).packed.bytes + _HEADER_PER_TENSOR * len(expected_tensors(a)) + 1000
    return Memory(file_bytes, _weights(a), _forward(a))


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _arrays(*sizes: int) -> int:
    """Bytes of arrays of so many bytes each: begun on a cache line, with another one behind them."""
    return sum(_up(size, _LINE) + _LINE for size in sizes)


def _head_channels(a: Architecture) -> int:
    return _up(a.embed_dim // a.num_heads, 32)


def _words(bits: int) -> int:
    return 2 * -(-bits // 64)


def _map_sizes(a: Architecture) -> list[tuple[int, int, int, int]]:
    """Height, width, channels and bits of the tokenizer's feature maps."""
    height, width = a.image_size
    maps = zip(a.channels, a.level_bits, strict=False)
    return [(height >> i, width >> i, channels, bits) for i, (channels, bits) in enumerate(maps, 1)]


def _taps(channels: int) -> int:
    """Words of a window of one-bit levels."""
    return 9 * -(-channels // 32)


def _patch_area(a: Architecture) -> int:
    return _up(3 * a.channels[-2] if a.channels else a.patch_height * a.patch_width, 4)


def _weights(a: Architecture) -> int:
    width, hidden = _up(a.embed_dim, 16), _up(a.mlp_hidden, 16)
    inner = a.num_heads * _head_channels(a)
    wide, residual = _words(a.embed_dim), _arrays(4 * width, 4 * width, 4 * width)
    block = _arrays(*[4 * inner * wide] * 3, 4 * width * _words(inner), 4 * hidden * wide, 4 * width * _words(hidden))
    block += 2 * residual + _arrays(4 * inner, 4 * inner, 2 * inner, 4 * inner, 4 * hidden, 4 * hidden)
    block += 2 * _arrays(4 * width, width // 8) + _arrays(4 * (_EXP_COPIES + a.embed_dim // a.num_heads + 1))
    if a.attention_bias == "full":
        block += _arrays(2 * a.num_heads * a.num_tokens**2)
    total = a.depth * block + _arrays(4 * a.num_patches * width)
    inputs, bits = 3, 8
    for index, (_, columns, channels, given) in enumerate(_map_sizes(a)):
        padded = _up(channels, 16 if bits == 8 else 32)
        if bits == 8:
            lines = 2 if index == 0 else 1
            total += _arrays(padded * 3 * _up(3 * inputs, 4), 12 * padded, 4 * columns * padded * lines)
        else:
            total += _arrays(4 * padded * _taps(inputs), *[4 * padded] * (5 if given == 1 else 3))
        inputs, bits = channels, given
    if bits == 1:
        return total + _arrays(4 * width * _taps(inputs), *[4 * width] * 3)
    return total + _arrays(width * 3 * _patch_area(a), 12 * width)


def _forward(a: Architecture) -> int:
    tokens, heads, groups, planes = a.num_tokens, a.num_heads, a.attention_groups, a.value_groups
    channels, width = _head_channels(a), _up(a.embed_dim, 16)
    inner, stride, token_words = heads * channels, _up(tokens, 64), _words(tokens)
    plane_words = _up(channels * token_words, 16)
    query, wide, deep = _words(inner), _words(width), _words(_up(a.mlp_hidden, 16))
    maps = _map_sizes(a)
    total = sum(
        _arrays(0, (rows + 1) * (columns + 1) * (count if bits == 8 else 4 * -(-count // 32)))
        for rows, columns, count, bits in maps
    )
    total += _arrays(4 * tokens * width, 4 * tokens * query, *[4 * query * stride] * 2, 2 * tokens * inner)
    total += _arrays(2 * inner, 2 * inner, *[2 * (planes - 1) * inner] * 2, heads * planes * channels // _PIECE)
    total += _arrays(4 * heads * tokens * token_words, 4 * heads * planes * plane_words, 4 * heads * planes * channels)
    if groups > 1:
        room, rows = _up(tokens * tokens // 16 + tokens + 16, 16), _up(tokens, 16)
        total += _arrays(heads * planes * tokens * _up(channels, 64), *[4 * heads * room] * 2)
        total += _arrays(8 * heads * rows, 4 * heads * rows)
    windows, bit_windows, line, bit_line, inputs, bits = 0, 0, 0, 0, 3, 8
    for _, columns, count, given in maps:
        if bits == 8:
            windows = max(windows, columns * 3 * _up(3 * inputs, 4))
        else:
            bit_windows = max(bit_windows, columns * _up(_taps(inputs), 2))
            bit_line = max(bit_line, columns * _words(count) if given == 1 else 0)
        line, inputs, bits = max(line, columns * _up(count, 32)), count, given
    if bits == 8:
        windows = max(windows, tokens * 3 * _patch_area(a))
    else:
        bit_windows = max(bit_windows, tokens * _up(_taps(inputs), 2))
    picture_lines = 9 * _up(a.image_size[1] + 4, 16) if a.channels else 0
    total += _arrays(windows, picture_lines, 4 * line, 4 * bit_windows, 4 * bit_line)
    total += _arrays(4 * tokens * wide, *[4 * tokens * query] * 2, 4 * tokens * deep)
    total += _arrays(4 * max(tokens * max(wide, query, deep), _ATTENTION_ROWS * token_words, bit_windows))
    bias = 2 * _LANES + (2 * a.grid[0] - 1) * a.grid[1] ** 2 + a.prefix_tokens * stride
    total += _arrays(4 * stride, 4 * _SCORE_ROWS * stride, 4 * bias if a.attention_bias == "relative" else 0)
    total += _arrays(4 * (a.prefix_tokens + 1) * _LANES, 4 * planes * _ATTENTION_ROWS * channels)
    total += _arrays(4 * _ATTENTION_ROWS * (groups - 1) * tokens, 8 * _ATTENTION_ROWS * (groups - 1))
    total += _arrays(4 * _ATTENTION_ROWS * (groups - 1), *[4 * (tokens + _LANES)] * 2, a.embed_dim, 4 * a.num_classes)
    return total
