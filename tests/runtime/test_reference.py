import numpy as np
import plain_forward
import pytest
from bit_products import mask_dot, popcount, sign_dot, xor_popcount
from random_packed import random_packed, random_pictures

from gsb_vit.errors import InputError
from gsb_vit.runtime.bits import pack
from gsb_vit.runtime.reference import ReferenceModel, layer_norm, sum16
from gsb_vit.runtime.relative_bias import relative_bias_index, relative_bias_size

TINY = dict(image_size=(8, 12), patch_size=4, embed_dim=20, depth=2, num_heads=2, mlp_hidden=37, num_classes=4)
SMALL = dict(image_size=32, patch_size=8, embed_dim=96, depth=2, num_heads=3, mlp_hidden=200, num_classes=7)
OPTIONS = [
    {},
    {"prefix_tokens": 1, "attention_bias": "none"},
    {"attention_bias": "full", "threshold_scope": "fixed"},
    {"attention_thresholds": (), "value_thresholds": ()},
    {"attention_thresholds": (0.3, 0.5, 0.8), "value_thresholds": (0.6,), "threshold_scope": "fixed"},
    {"patch_size": (4, 6), "num_heads": 5, "value_thresholds": (0.2, 0.5, 0.9)},
    {"global_pool": "avg", "prefix_tokens": 0},
    {"global_pool": "avg", "prefix_tokens": 2, "attention_bias": "full", "pool_norm": "before"},
    {"prefix_tokens": 4, "num_heads_out": 1},
    {"tokenizer_channels": (5,), "prefix_tokens": 1},
    {"tokenizer_channels": (4, 7), "image_size": (16, 24), "patch_size": 8, "global_pool": "avg", "prefix_tokens": 0},
    {"tokenizer_channels": (5,), "level_bits": (1,), "prefix_tokens": 1},
    {"tokenizer_channels": (9, 7), "image_size": (16, 24), "patch_size": 8, "level_bits": (1, 1)},
    {"tokenizer_channels": (9, 7), "image_size": (16, 24), "patch_size": 8, "level_bits": (8, 1)},
    {"tokenizer_channels": (9, 7), "image_size": (16, 24), "patch_size": 8, "level_bits": (1, 8)},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_logits_are_bit_identical_to_plain_loops(options):
    model = random_packed(seed=5, **{**TINY, **options})
    pictures = random_pictures(model.architecture, 2, seed=6)
    expected = np.stack([plain_forward.plain_logits(model, picture) for picture in pictures])
    found = ReferenceModel(model).logits(pictures)
    assert found.dtype == np.float32 and found.tobytes() == expected.astype(np.float32).tobytes()
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("options", OPTIONS)
def test_every_binary_product_equals_the_packed_one(options):
    model = random_packed(seed=8, **{**TINY, "embed_dim": 140, "mlp_hidden": 200, **options})
    a = model.architecture
    trace = ReferenceModel(model).trace(random_pictures(a, 1)[0])
    for index in range(a.depth):
        block = model.block(index)
        step = {name.split(".", 2)[2]: value for name, value in trace.items() if name.startswith(f"blocks.{index}.")}
        for name in ("attn.qkv", "mlp.fc1"):
            packed_count = xor_popcount(pack(step[f"{name}.input"]), block[f"{name}.weight"])
            assert np.array_equal(step[f"{name}.popcount"], packed_count)
        query, key = pack(step["attn.query.bits"]), pack(step["attn.key.bits"])
        assert np.array_equal(step["attn.score"], xor_popcount(query, key))
        proj = sign_dot(pack(step["attn.proj.input"]), block["attn.proj.weight"], a.embed_dim)
        assert np.array_equal(step["attn.proj.dot"], proj)
        fc2 = mask_dot(pack(step["mlp.fc2.input"]), block["mlp.fc2.weight"])
        assert np.array_equal(step["mlp.fc2.dot"], fc2)
        signs = step["attn.value.bits"]
        for i, j in np.ndindex(a.attention_groups, a.value_groups):
            mask = pack(step["attn.attention_masks"][i])
            inside = step["attn.value_masks"][j]
            # A plane of +1, 0, −1 is the difference of two masks, and {0,1} · {0,1} is a popcount of the AND.
            up, down = (pack(np.swapaxes(part, -1, -2)) for part in (inside & signs, inside & ~signs))
            expected = _and_popcount(mask, up) - _and_popcount(mask, down)
            assert np.array_equal(step["attn.product"][i, j], expected)


def _and_popcount(left, right):
    both = left[..., :, None, :] & right[..., None, :, :]
    return popcount(both).sum(axis=-1, dtype=np.int32)


def test_random_models_have_masks_that_are_neither_empty_nor_full():
    model = random_packed(seed=2, **SMALL)
    trace = ReferenceModel(model).trace(random_pictures(model.architecture, 1)[0])
    for index in range(2):
        masks = trace[f"blocks.{index}.attn.attention_masks"].mean(axis=(1, 2, 3))
        values = trace[f"blocks.{index}.attn.value_masks"].mean(axis=(1, 2, 3))
        assert 0.05 < masks[0] < 0.6 and 0 < masks[2] <= masks[1] < 0.2
        assert values[0] == 1 and 0 < values[2] <= values[1] < 0.3
        assert 0.2 < trace[f"blocks.{index}.mlp.fc2.input"].mean() < 0.8


def test_a_picture_does_not_depend_on_its_batch():
    model = ReferenceModel(random_packed(seed=9, **SMALL))
    pictures = random_pictures(model.packed.architecture, 5)
    together = model.logits(pictures)
    for index in range(5):
        assert model.logits(pictures[index : index + 1]).tobytes() == together[index].tobytes()
    assert model.logits(pictures[::-1]).tobytes() == together[::-1].tobytes()
    assert model.logits(pictures[:0]).shape == (0, 7)


def test_trace_ends_in_the_logits_and_names_its_shapes():
    packed = random_packed(seed=9, **SMALL)
    model = ReferenceModel(packed)
    picture = random_pictures(packed.architecture, 1)[0]
    trace = model.trace(picture)
    assert trace["logits"].tobytes() == model.logits(picture[None])[0].tobytes()
    tokens, heads, d = 18, 3, 32
    shapes = {
        "patch_embed.sum": (16, 96, 3),
        "tokens": (tokens, 96),
        "blocks.1.attn.qkv.popcount": (tokens, 288),
        "blocks.1.attn.query.bits": (heads, tokens, d),
        "blocks.1.attn.score": (heads, tokens, tokens),
        "blocks.1.attn.attention_masks": (3, heads, tokens, tokens),
        "blocks.1.attn.product": (3, 3, heads, tokens, d),
        "blocks.1.mlp.fc1.popcount": (tokens, 200),
        "blocks.1.output": (tokens, 96),
        "heads.1.sum": (7,),
    }
    assert {name: trace[name].shape for name in shapes} == shapes


@pytest.mark.parametrize("count", [1, 15, 16, 17, 20, 198, 384])
def test_sum16_is_the_documented_order(count):
    x = np.random.default_rng(count).normal(size=(3, count)).astype(np.float32)
    expected = np.array([[plain_forward.sum16(list(row))] for row in x])
    assert sum16(x).tobytes() == expected.astype(np.float32).tobytes()


def test_sum16_of_negative_zeros_is_zero():
    total = sum16(np.full((1, 3), -0.0, dtype=np.float32))
    assert total[0, 0] == 0 and not np.signbit(total[0, 0])


def test_layer_norm_is_close_to_float64():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(3, 2, (5, 100)), rng.normal(size=100), rng.normal(size=100)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias
    found = layer_norm(*(array.astype(np.float32) for array in (x, weight, bias)), 1e-6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("grid", "prefixes"), [((1, 1), 1), ((2, 3), 2), ((4, 2), 1)])
def test_relative_bias_index_uses_every_entry(grid, prefixes):
    index = relative_bias_index(grid, prefixes)
    assert sorted(set(index.flatten().tolist())) == list(range(relative_bias_size(grid, prefixes)))


def test_an_empty_group_adds_nothing():
    """A_max ≤ 0: every limit ratio · A_max is at or above it, so no upper group has an entry."""
    model = random_packed(seed=3, **{**SMALL, "depth": 1})
    tensors = dict(model.tensors)
    tensors["blocks.0.attn.bias"] = np.full_like(tensors["blocks.0.attn.bias"], -3.0)
    changed = ReferenceModel(type(model)(**{**vars(model), "tensors": tensors}))
    trace = changed.trace(random_pictures(model.architecture, 1)[0])
    assert trace["blocks.0.attn.attention"].max() <= 0
    assert not trace["blocks.0.attn.attention_masks"][0].any()
    assert not trace["blocks.0.attn.product"][0].any()
    assert np.isfinite(trace["logits"]).all()


def test_equal_scores_give_equal_attention_and_ties_are_outside():
    """One patch everywhere and prefix tokens alike: all tokens are equal, so A is 1 / N and each limit is compared."""
    shape = {**SMALL, "depth": 1, "attention_bias": "none", "prefix_tokens": 1, "threshold_scope": "fixed"}
    model = random_packed(seed=3, **shape)
    tensors = dict(model.tensors)
    tensors["patch_embed.position"] = np.zeros_like(tensors["patch_embed.position"])
    tensors["patch_embed.scale"] = np.zeros_like(tensors["patch_embed.scale"])
    tensors["prefix_tokens"] = np.zeros_like(tensors["prefix_tokens"])
    share = np.float32(1) / np.float32(17)
    tensors["blocks.0.attn.attention_half_scale"] = np.array([share])
    tensors["blocks.0.attn.attention_limits"] = np.array([np.nextafter(share, np.float32(0)), share])
    changed = ReferenceModel(type(model)(**{**vars(model), "tensors": tensors}))
    trace = changed.trace(random_pictures(model.architecture, 1)[0])
    assert (trace["blocks.0.attn.attention"] == share).all()
    masks = trace["blocks.0.attn.attention_masks"]
    assert not masks[0].any() and masks[1].all() and not masks[2].any()


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((2, 32, 32, 3), dtype=np.float32),
        np.zeros((2, 3, 32, 32), dtype=np.uint8),
        np.zeros((32, 32, 3), dtype=np.uint8),
        [1, 2],
    ],
)
def test_a_batch_that_does_not_fit_is_refused(pictures):
    with pytest.raises(InputError, match=r"give uint8 \(B, 32, 32, 3\)"):
        ReferenceModel(random_packed(seed=9, **SMALL)).logits(pictures)
