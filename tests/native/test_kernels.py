"""Every kernel of every backend of this machine against plain integer loops, or against NumPy for floats."""

from pathlib import Path

import numpy as np
import pytest

from gsb_vit.runtime.reference import layer_norm, sum16

_native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
kernels = _native.kernels

DEPTHS = [1, 31, 32, 33, 63, 64, 65, 95, 96, 127, 128, 129, 192, 198, 384, 511, 512, 513, 1536, 3072]
ROWS = [1, 2, 3, 7]
CHANNELS = [1, 16, 17, 33, 64, 100, 208]


@pytest.fixture(params=_native.backends())
def backend(request):
    return request.param


def words(bits):
    """Booleans (n, k) → uint32 (n, an even number of words)."""
    packed = np.packbits(bits, axis=1, bitorder="little")
    padded = np.zeros((bits.shape[0], -(-bits.shape[1] // 64) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u4")


def bits_of(packed, count):
    return np.unpackbits(packed.view(np.uint8), axis=1, count=count, bitorder="little").astype(bool)


def operands(depth, rows, channels, seed=0):
    rng = np.random.default_rng([seed, depth, rows, channels])
    x, w = rng.random((rows, depth)) < 0.5, rng.random((channels, depth)) < 0.5
    # The extremes: every bit differs, none does.
    x[0], w[0], w[-1] = True, False, True
    differing = np.array([[int(np.count_nonzero(a != b)) for b in w] for a in x])
    return words(x), words(w), differing


def test_the_machine_runs_every_backend_it_could():
    """A backend that the processor has but the build lacks would otherwise go unnoticed: it would just never run."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line for line in lines if line.startswith(("flags", "Features"))).split()
    except (OSError, StopIteration):
        pytest.skip("this machine does not say what its processor can")
    expected = {"portable"}
    if {"avx2", "f16c"} <= set(flags):
        expected.add("avx2")
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vpopcntdq", "avx512_vnni"} <= set(flags):
        expected.add("avx512")
    if "asimd" in flags:
        expected.add("neon")
    if "asimddp" in flags:
        expected.add("neon_dot")
    assert set(_native.backends()) == expected


@pytest.mark.parametrize("depth", DEPTHS)
def test_counts(backend, depth):
    for rows, channels in zip(ROWS, [33, 208, 100, 64], strict=True):
        x, w, differing = operands(depth, rows, channels)
        grouped = kernels.product_count(backend, x, w, depth)
        counts = grouped.transpose(1, 0, 2).reshape(rows, -1)[:, :channels]
        assert np.array_equal(counts, differing)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rows", ROWS)
def test_threshold_bits_and_ties(backend, rows, channels):
    depth = 130
    x, w, differing = operands(depth, rows, channels)
    threshold = np.random.default_rng(1).integers(-1, depth + 1, channels).astype(np.int32)
    threshold[::3] = differing[0, ::3]
    threshold[1::5] = -1
    packed = kernels.product_threshold(backend, x, w, depth, threshold)
    assert np.array_equal(bits_of(packed, channels), differing <= threshold)
    assert not bits_of(packed, packed.shape[1] * 32)[:, channels:].any(), "pad bits are not zero"


@pytest.mark.parametrize("channels", CHANNELS)
def test_interval_bits_and_ties(backend, channels):
    depth, rows = 384, 5
    x, w, differing = operands(depth, rows, channels)
    rng = np.random.default_rng(2)
    low = rng.integers(0, depth, channels).astype(np.int32)
    high = np.minimum(low + rng.integers(0, 60, channels), depth)
    low[::4], high[1::4] = differing[0, ::4], differing[0, 1::4]
    low = np.minimum(low, high).astype(np.int32)
    packed = kernels.product_interval(backend, x, w, depth, low, (high - low).astype(np.uint32))
    assert np.array_equal(bits_of(packed, channels), ~((low <= differing) & (differing <= high)))
    assert not bits_of(packed, packed.shape[1] * 32)[:, channels:].any(), "pad bits are not zero"


@pytest.mark.parametrize("depth", [1, 64, 198, 384, 1536, 3072])
def test_integers_and_residual(backend, depth):
    for rows, channels, shift in [(1, 32, 0), (6, 64, 1), (3, 100, 1), (2, 208, 0)]:
        x, w, differing = operands(depth, rows, channels)
        rng = np.random.default_rng(3)
        base = rng.integers(-depth, depth + 1, channels).astype(np.int32)
        integers = kernels.product_integers(backend, x, w, depth, base)
        assert np.array_equal(integers[:, :channels], base - differing)
        scale, bias = rng.normal(size=(2, channels)).astype(np.float32)
        stream = np.zeros((rows, integers.shape[1]), dtype=np.float32)
        stream[:, :channels] = rng.normal(size=(rows, channels))
        out = kernels.product_residual(backend, x, w, depth, base, shift, scale, bias, stream)
        expected = stream[:, :channels] + ((base - (differing << shift)).astype(np.float32) * scale + bias)
        assert out[:, :channels].tobytes() == expected.tobytes()


@pytest.mark.parametrize("width", [1, 15, 16, 17, 48, 100, 192, 384, 391])
def test_norm_bits(backend, width):
    rng = np.random.default_rng(width)
    x = rng.normal(size=(7, width)).astype(np.float32)
    x[1] = 0.5  # no spread: every bit is that of the bias
    weight, bias = rng.normal(size=(2, width)).astype(np.float32)
    bias[::3] = -0.0
    weight[::3] = 0.0
    expected = layer_norm(x, weight, bias, 1e-12) >= 0
    packed = kernels.norm_bits(backend, x, weight, bias, 1e-12)
    assert np.array_equal(bits_of(packed, width), expected)
    assert not bits_of(packed, packed.shape[1] * 32)[:, width:].any(), "pad bits are not zero"


@pytest.mark.parametrize(
    ("width", "taps", "count"), [(64, 256, 9), (16, 1, 1), (100, 35, 6), (208, 36, 13), (48, 1024, 2)]
)
def test_patch_embedding(backend, width, taps, count):
    rng = np.random.default_rng(width)
    area, channels = -(-taps // 4) * 4, -(-width // 16) * 16
    pixels = rng.integers(0, 256, (count, 3, area)).astype(np.uint8)
    weights = rng.integers(-128, 128, (width, 3, taps)).astype(np.int8)
    # The largest sums there are: a saturating instruction would lose them.
    pixels[0, :, :taps], weights[0], weights[-1] = 255, 127, -128
    scale, position = np.zeros((3, channels), np.float32), np.zeros((count, channels), np.float32)
    scale[:, :width], position[:, :width] = rng.normal(size=(3, width)), rng.normal(size=(count, width))
    sums = np.einsum("nck,ock->cno", pixels[:, :, :taps].astype(np.int64), weights.astype(np.int64)).astype(np.float32)
    parts = sums * scale[:, None, :width]
    expected = ((parts[0] + parts[1]) + parts[2]) + position[:, :width]
    out = kernels.patches_embed(backend, pixels, weights, scale, position)
    assert out[:, :width].tobytes() == expected.tobytes()


@pytest.mark.parametrize("depth", [1, 15, 31, 32, 33, 64, 100, 384, 1024])
def test_dot_bytes(backend, depth):
    rng = np.random.default_rng(depth)
    x, w = rng.integers(-128, 128, depth).astype(np.int8), rng.integers(-128, 128, (11, depth)).astype(np.int8)
    x[:], w[0], w[1] = np.where(rng.random(depth) < 0.5, x, -128), -128, 127
    assert np.array_equal(kernels.dot_bytes(backend, x, w), w.astype(np.int64) @ x.astype(np.int64))


def exp_tables(head_dim, step):
    """The layout of native/src/kernels/contract.h: period 32, period 64, plain; what would be below 1e-30 is 0."""
    table = np.exp(-step * np.arange(head_dim + 1)).astype(np.float32)
    table[table < 1e-30] = 0
    longer = np.zeros(max(64, head_dim + 1), dtype=np.float32)
    longer[: head_dim + 1] = table
    return np.concatenate([np.tile(longer[:32], 2), np.tile(longer[:64], 2), table])


# Spread 0: all scores equal. 0.02: the keys are near copies of one query or of its opposite: distances 0 … d.
@pytest.mark.parametrize("spread", [0, 0.02, 0.5])
@pytest.mark.parametrize(
    ("tokens", "head_dim"), [(5, 32), (16, 64), (17, 64), (50, 48), (66, 80), (198, 64), (130, 128)]
)
def test_scores(backend, tokens, head_dim, spread):
    rng = np.random.default_rng([tokens, head_dim])
    one = rng.random(head_dim) < 0.5
    flip = rng.random((2, tokens, head_dim)) < spread
    if spread:
        flip ^= rng.random((2, tokens, 1)) < 0.5
    query, key = one ^ flip
    bias = (rng.normal(size=(tokens, tokens)) / tokens * (spread > 0)).astype(np.float16)
    tables = exp_tables(head_dim, 2 / np.sqrt(head_dim))
    distance = (query[:, None] != key[None]).sum(axis=-1)
    powers = tables[kernels.EXP_TABLE :][distance - distance.min(axis=1, keepdims=True)]
    attention = powers * (np.float32(1) / sum16(powers)) + bias.astype(np.float32)
    half_scale = np.float32(attention[0, 0])  # a tie: outside
    masks, columns, values, begin, count, maximum = kernels.scores(
        backend, rows(query, head_dim), rows(key, head_dim), tables, bias.view(np.uint16), half_scale, 0.5, 10**6
    )
    assert np.array_equal(bits_of(masks, tokens), attention > half_scale)
    assert not bits_of(masks, masks.shape[1] * 32)[:, tokens:].any(), "pad bits are not zero"
    assert maximum == attention.max()
    limit = np.float32(0.5) * attention.max()
    for row in range(tokens):
        listed = slice(int(begin[row]), int(begin[row]) + int(count[row]))
        assert np.array_equal(values[listed], attention[row, columns[listed]])
        wanted = np.flatnonzero(attention[row] > limit)
        assert set(wanted) <= set(columns[listed])
        assert len(set(columns[listed])) == count[row]


def test_rows_that_do_not_fit_are_marked(backend):
    query = np.ones((40, 64), dtype=bool)
    bias = np.zeros((40, 40), np.uint16)
    _, columns, _, _, count, _ = kernels.scores(
        backend, rows(query, 64), rows(query, 64), exp_tables(64, 0.25), bias, 0.0, 0.5, 100
    )
    assert list(count) == [40, 40] + [-1] * 38
    assert list(columns) == list(range(40)) * 2


def rows(bits, head_dim):
    """Booleans (n, d) → uint32 (n, ⌈d/32⌉), as queries and keys are kept."""
    return np.ascontiguousarray(words(bits)[:, : -(-head_dim // 32)])


def test_an_unknown_backend_is_refused():
    with pytest.raises(_native.NativeError, match=r"'sse9' cannot run on this machine; there is .*portable"):
        kernels.dot_bytes("sse9", np.zeros(4, np.int8), np.zeros((1, 4), np.int8))
