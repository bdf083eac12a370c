"""Random packed models with realistic numbers, for tests: no trained model needed, the same file from the same seed."""

import math

import numpy as np

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.runtime.bits import pack
from gsb_vit.runtime.packed_file import PackedModel, write
from gsb_vit.runtime.schema import Architecture, LevelFormat

# Shapes that reach the corners: odd widths and heads, every bias, both scopes, one to four groups.
TINY = dict(image_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=1, mlp_hidden=48, num_classes=4)
SHAPES = {
    "one_head": dict(TINY, attention_bias="none", prefix_tokens=1),
    "two_heads": dict(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=128, num_classes=7),
    "oblong_full_bias": dict(
        image_size=(24, 40), patch_size=(6, 5), embed_dim=96, depth=3, num_heads=2, mlp_hidden=200, num_classes=11,
        attention_bias="full",
    ),
    "fixed_limits": dict(
        image_size=48, patch_size=6, embed_dim=128, depth=2, num_heads=2, mlp_hidden=512, num_classes=20,
        threshold_scope="fixed",
    ),
    "head_80": dict(
        image_size=32, patch_size=4, embed_dim=160, depth=2, num_heads=2, mlp_hidden=333, num_classes=5,
        attention_thresholds=(0.5,), value_thresholds=(0.3, 0.6, 0.8),
    ),
    "one_group": dict(
        image_size=32, patch_size=16, embed_dim=52, depth=2, num_heads=4, mlp_hidden=70, num_classes=3,
        attention_thresholds=(), value_thresholds=(),
    ),
    "one_group_no_bias": dict(
        image_size=32, patch_size=16, embed_dim=52, depth=2, num_heads=4, mlp_hidden=70, num_classes=3,
        attention_bias="none", attention_thresholds=(), value_thresholds=(), prefix_tokens=1,
    ),
    "dense_groups": dict(
        image_size=64, patch_size=4, embed_dim=100, depth=2, num_heads=1, mlp_hidden=128, num_classes=3,
        attention_thresholds=(0.02, 0.1, 0.5), value_thresholds=(0.2,),
    ),
    "head_48": dict(
        image_size=64, patch_size=8, embed_dim=144, depth=2, num_heads=3, mlp_hidden=576, num_classes=102,
        attention_thresholds=(0.3, 0.6),
    ),
    "head_256": dict(
        image_size=16, patch_size=8, embed_dim=256, depth=2, num_heads=1, mlp_hidden=64, num_classes=2,
        prefix_tokens=1, attention_bias="none", attention_thresholds=(0.001, 0.3),
    ),
    "mean_of_patches": dict(
        image_size=(32, 24), patch_size=8, embed_dim=40, depth=2, num_heads=2, mlp_hidden=96, num_classes=5,
        global_pool="avg", prefix_tokens=0,
    ),
    "mean_behind_a_prefix": dict(
        image_size=(20, 36), patch_size=4, embed_dim=48, depth=1, num_heads=1, mlp_hidden=64, num_classes=3,
        global_pool="avg", prefix_tokens=1, attention_bias="full",
    ),
    "registers": dict(
        image_size=(32, 48), patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=96, num_classes=5,
        prefix_tokens=5, num_heads_out=1,
    ),
    "all_prefix_tokens": dict(
        image_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=1, mlp_hidden=48, num_classes=3,
        prefix_tokens=16, num_heads_out=2,
    ),
    "mean_of_norms": dict(
        image_size=(40, 24), patch_size=8, embed_dim=60, depth=2, num_heads=2, mlp_hidden=96, num_classes=5,
        global_pool="avg", pool_norm="before", prefix_tokens=3,
    ),
    "two_convolutions": dict(
        image_size=(12, 20), patch_size=4, embed_dim=36, depth=1, num_heads=1, mlp_hidden=64, num_classes=4,
        tokenizer_channels=(5,), prefix_tokens=1,
    ),
    "three_convolutions_mean": dict(
        image_size=64, patch_size=8, embed_dim=128, depth=2, num_heads=2, mlp_hidden=256, num_classes=20,
        tokenizer_channels=(20, 48), global_pool="avg", prefix_tokens=0,
    ),
    "four_convolutions": dict(
        image_size=(48, 80), patch_size=16, embed_dim=52, depth=2, num_heads=2, mlp_hidden=104, num_classes=6,
        tokenizer_channels=(3, 18, 33), threshold_scope="fixed", attention_bias="none",
    ),
    "one_bit_convolutions": dict(
        image_size=64, patch_size=8, embed_dim=128, depth=2, num_heads=2, mlp_hidden=256, num_classes=20,
        tokenizer_channels=(32, 64), level_bits=(1, 1), global_pool="avg", prefix_tokens=0,
    ),
    "one_bit_of_odd_widths": dict(
        image_size=(48, 80), patch_size=16, embed_dim=52, depth=1, num_heads=2, mlp_hidden=104, num_classes=6,
        tokenizer_channels=(3, 48, 33), level_bits=(1, 1, 1), attention_bias="none",
    ),
    "bits_and_bytes": dict(
        image_size=(64, 96), patch_size=32, embed_dim=40, depth=1, num_heads=1, mlp_hidden=64, num_classes=3,
        tokenizer_channels=(70, 5, 100, 7), level_bits=(1, 8, 8, 1), prefix_tokens=1,
    ),
    "bytes_and_bits": dict(
        image_size=(32, 16), patch_size=8, embed_dim=72, depth=1, num_heads=1, mlp_hidden=64, num_classes=3,
        tokenizer_channels=(17, 130), level_bits=(8, 1), prefix_tokens=1,
    ),
    "deit_rows": dict(
        image_size=112, patch_size=8, embed_dim=192, depth=2, num_heads=3, mlp_hidden=768, num_classes=10,
    ),
}  # fmt: skip


def random_packed(
    *,
    seed,
    image_size,
    patch_size,
    embed_dim,
    depth,
    num_heads,
    mlp_hidden,
    num_classes,
    prefix_tokens=2,
    attention_bias="relative",
    attention_thresholds=(0.7, 0.9),
    value_thresholds=(0.7, 0.9),
    threshold_scope="sample",
    global_pool="token",
    pool_norm="after",
    num_heads_out=None,
    tokenizer_channels=(),
    level_bits=None,
):
    """Return a random PackedModel; sizes are whole numbers or (height, width).

    ``level_bits``: 1 or 8 for each of the tokenizer's convolutions but the first; None is 8.
    """
    architecture = Architecture(
        name=f"random_{seed}",
        image_size=_pair(image_size),
        patch_size=_pair(patch_size),
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_hidden=mlp_hidden,
        prefix_tokens=prefix_tokens,
        num_heads_out=num_heads_out or (1 if global_pool == "avg" else prefix_tokens),
        num_classes=num_classes,
        layer_norm_eps=1e-12,
        attention_thresholds=tuple(attention_thresholds),
        value_thresholds=tuple(value_thresholds),
        threshold_scope=threshold_scope,
        attention_bias=attention_bias,
        global_pool=global_pool,
        pool_norm=pool_norm,
        tokenizer_channels=tuple(tokenizer_channels),
        tokenizer_formats=tuple(LevelFormat(bits, signed=False) for bits in level_bits or ()),
    )
    rng = np.random.default_rng(seed)
    tensors = _outer_tensors(architecture, rng)
    for index in range(depth):
        block = {**_attention_tensors(architecture, rng), **_mlp_tensors(architecture, rng)}
        tensors.update({f"blocks.{index}.{name}": array for name, array in block.items()})
    return PackedModel(
        architecture=architecture,
        class_names=tuple(f"class {number}" for number in range(num_classes)),
        preprocessing=Preprocessing(size=architecture.image_size, mean=(0.48, 0.46, 0.41), std=(0.23, 0.22, 0.23)),
        provenance={"source": "tests/random_packed.py", "seed": seed},
        tensors=tensors,
    )


def write_random_packed(path, **arguments):
    """Write :func:`random_packed` of the same arguments to ``path`` and return the model."""
    model = random_packed(**arguments)
    write(path, model)
    return model


def random_pictures(architecture, count, seed=0):
    """Return uint8 (count, H, W, 3): smooth blobs with noise, so that neighbouring patches differ but not wildly."""
    rng = np.random.default_rng(seed)
    height, width = architecture.image_size
    coarse = rng.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3))
    smooth = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return np.clip(smooth + rng.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)


def _outer_tensors(a, rng):
    width = a.embed_dim
    tensors = {
        **(_tokenizer_tensors(a, rng) if a.channels else _patch_tensors(a, rng)),
        "patch_embed.position": _floats(rng.normal(0, 0.3, (a.num_patches, width))),
        "prefix_tokens": _floats(rng.normal(0, 1, (a.prefix_tokens, width))),
        "norm.weight": _floats(rng.uniform(0.7, 1.3, width)),
        "norm.bias": _floats(rng.normal(0, 0.2, width)),
    }
    for head in range(a.num_heads_out):
        tensors[f"heads.{head}.shift"] = _floats(rng.normal(0, 0.1, width))
        # 3 / 127: a few inputs in a hundred are clamped.
        tensors[f"heads.{head}.input_scale"] = _floats(rng.uniform(2.5, 3.5, 1) / 127)
        tensors[f"heads.{head}.weight"] = rng.integers(-128, 128, (a.num_classes, width)).astype(np.int8)
        tensors[f"heads.{head}.scale"] = _floats(rng.uniform(0.5, 2, a.num_classes) / (40 * 73 * math.sqrt(width)))
        tensors[f"heads.{head}.bias"] = _floats(rng.normal(0, 0.1, a.num_classes))
    return tensors


def _patch_tensors(a, rng):
    width, patch_area = a.embed_dim, a.patch_size[0] * a.patch_size[1]
    # A weight has deviation 73, a pixel root mean square 147: the sums of a patch come out at order 1.
    patch_scale = 1 / (73 * 147 * math.sqrt(3 * patch_area))
    return {
        "patch_embed.weight": rng.integers(-127, 128, (width, 3, *a.patch_size)).astype(np.int8),
        "patch_embed.scale": _floats(patch_scale * rng.uniform(0.7, 1.4, (width, 3))),
    }


def _tokenizer_tensors(a, rng):
    """Levels between convolutions are about half zeros, and some of 8 bits are clamped at 255.

    The scale of an output channel may be negative, as a norm's gain may be.
    """
    tensors, inputs = {}, 3
    for index, outputs in enumerate(a.channels):
        first, last = index == 0, index + 1 == len(a.channels)
        binary = not first and a.level_bits[index - 1] == 1
        shape = (outputs, 3, 3, 3) if first else (outputs, 3, 3, inputs)
        size = 1 if last else (90 if a.level_bits[index] == 8 else 0.8)  # of what it gives
        taken = math.sqrt(0.5) if binary else 73 * (147 if first else 90)  # of a product
        scale = size / (taken * math.sqrt(9 * inputs)) * rng.uniform(0.7, 1.4, (outputs, 3) if first else outputs)
        name = f"tokenizer.{index}."
        if binary:
            tensors[name + "weight"] = _signs(rng, outputs, 9 * inputs)
            scale = scale * rng.choice([-1, 1], outputs)
        else:
            tensors[name + "weight"] = rng.integers(-128, 128, shape).astype(np.int8)
        tensors[name + "scale"] = _floats(scale)
        if not last:
            middle = 0.5 if a.level_bits[index] == 1 else 0
            offset = rng.normal(middle, size / 3, (4, outputs) if first else outputs)
            tensors[name + ("offset" if first else "bias")] = _floats(offset)
        inputs = outputs
    return tensors


def _attention_tensors(a, rng):
    width, tokens, spread = a.embed_dim, a.num_tokens, 0.5 * math.sqrt(a.embed_dim)
    thresholds = np.rint(rng.normal(width / 2, spread / 2, 3 * width)).clip(-1, width).astype(np.int16)
    thresholds[rng.random(3 * width) < 0.02] = -1
    thresholds[rng.random(3 * width) < 0.02] = width
    score_step = 2 * rng.uniform(0.7, 1.3) / math.sqrt(a.head_dim)
    groups, value_groups = a.attention_groups, a.value_groups
    falling = np.array([[0.6**i * 0.6**j for j in range(value_groups)] for i in range(groups)])
    tensors = {
        "norm1.weight": _floats(rng.uniform(0.7, 1.3, width)),
        "norm1.bias": _floats(rng.normal(0, 0.3, width)),
        "attn.qkv.weight": _signs(rng, 3 * width, width),
        "attn.qkv.threshold": thresholds,
        "attn.v_scale": _floats(rng.uniform(0.5, 1.5, width) / math.sqrt(width)),
        "attn.v_bias": _floats(rng.normal(0, 0.2, width)),
        "attn.exp_table": _floats(np.exp(-score_step * np.arange(a.head_dim + 1))),
        "attn.attention_half_scale": _floats(rng.uniform(0.7, 1.4, 1) / tokens),
        "attn.product_scale": _floats(falling * rng.uniform(0.8, 1.2, (groups, value_groups)) / tokens),
        "attn.proj.weight": _signs(rng, width, width),
        "attn.proj.shift": _floats(rng.normal(0, 0.1, width)),
        "attn.proj.scale": _floats(rng.uniform(0.2, 0.5, width) / math.sqrt(width)),
        "attn.proj.bias": _floats(rng.normal(0, 0.05, width)),
    }
    if a.attention_bias == "relative":
        tensors["attn.bias"] = _floats(rng.normal(0, 0.3 / tokens, (a.num_heads, a.relative_bias_size)))
    elif a.attention_bias == "full":
        tensors["attn.bias"] = rng.normal(0, 0.3 / tokens, (a.num_heads, tokens, tokens)).astype(np.float16)
    if a.threshold_scope == "fixed":
        tensors["attn.attention_limits"] = _floats(np.array(a.attention_thresholds) * 6 / tokens)
        ratios = np.array(a.value_thresholds).reshape(-1, 1)
        tensors["attn.value_limits"] = _floats(ratios * np.array([[2.5, -2.5]]))
    return tensors


def _mlp_tensors(a, rng):
    width, hidden, spread = a.embed_dim, a.mlp_hidden, 0.5 * math.sqrt(a.embed_dim)
    # Most channels are zero from some popcount on (GELU below the threshold); some on an inner interval; some never.
    low = np.rint(rng.normal(width / 2, spread, hidden)).clip(0, width)
    high = np.full(hidden, width)
    inner = rng.random(hidden) < 0.2
    high[inner] = np.minimum(low + rng.integers(0, math.ceil(spread) + 1, hidden), width)[inner]
    never = rng.random(hidden) < 0.03
    low[never], high[never] = 1, 0
    low[rng.random(hidden) < 0.02] = 0
    return {
        "norm2.weight": _floats(rng.uniform(0.7, 1.3, width)),
        "norm2.bias": _floats(rng.normal(0, 0.3, width)),
        "mlp.fc1.weight": _signs(rng, hidden, width),
        "mlp.fc1.zero_interval": np.stack([low, high], axis=1).astype(np.int16),
        "mlp.fc2.weight": _signs(rng, width, hidden),
        "mlp.fc2.scale": _floats(rng.uniform(0.2, 0.5, width) / math.sqrt(hidden / 2)),
        "mlp.fc2.bias": _floats(rng.normal(0, 0.05, width)),
    }


def _signs(rng, rows, depth):
    return pack(rng.random((rows, depth)) < 0.5)


def _floats(values):
    return np.asarray(values).astype(np.float32)


def _pair(size):
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)
