"""The runtime against the NumPy reference over the shapes and densities it promises, bit for bit on every backend.

Picture sizes from 32 to 384, widths that are no multiple of 64, head sizes, numbers of groups, densities of the upper
groups from 0.1 to 30 %, 1 to 64 pictures.
"""

from dataclasses import replace

import numpy as np
import pytest
from random_packed import random_packed, random_pictures

from gsb_vit.runtime.packed_file import write
from gsb_vit.runtime.reference import ReferenceModel

_native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")

SMALL = dict(image_size=64, patch_size=8, embed_dim=96, depth=2, num_heads=2, mlp_hidden=192, num_classes=5)


def check(folder, packed, pictures, threads=(1, 2)):
    """Every backend gives the reference's logits."""
    path = folder / "model.safetensors"
    write(path, packed)
    expected = ReferenceModel(packed).logits(pictures).tobytes()
    for backend in _native.backends():
        for count in threads:
            assert _native.Model(str(path), count, backend).logits(pictures).tobytes() == expected, (backend, count)


@pytest.mark.parametrize("size", [32, 48, 96, 160, 224, 288, 384])
def test_picture_sizes(tmp_path, size):
    packed = random_packed(seed=size, **{**SMALL, "image_size": size, "patch_size": 16})
    check(tmp_path, packed, random_pictures(packed.architecture, 2))


@pytest.mark.parametrize("size", [(32, 384), (208, 48)])
def test_oblong_pictures(tmp_path, size):
    packed = random_packed(seed=1, **{**SMALL, "image_size": size, "patch_size": 16})
    check(tmp_path, packed, random_pictures(packed.architecture, 2))


@pytest.mark.parametrize("width", [8, 24, 40, 72, 100, 120, 136, 192, 200, 264, 328, 390, 392, 456, 520])
def test_widths(tmp_path, width):
    packed = random_packed(seed=width, **{**SMALL, "embed_dim": width, "mlp_hidden": 4 * width})
    check(tmp_path, packed, random_pictures(packed.architecture, 2))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("size", [1, 7, 16, 24, 31, 32, 33, 48, 63, 64, 65, 80, 96, 128, 160])
def test_head_sizes(tmp_path, size, heads):
    packed = random_packed(seed=size, **{**SMALL, "embed_dim": heads * size, "num_heads": heads, "depth": 1})
    check(tmp_path, packed, random_pictures(packed.architecture, 2))


@pytest.mark.parametrize("scope", ["sample", "fixed"])
@pytest.mark.parametrize("groups", [(1, 1), (1, 3), (2, 1), (3, 2), (4, 4), (2, 6), (6, 2)])
def test_numbers_of_groups(tmp_path, groups, scope):
    ratios = [tuple(0.2 + 0.12 * group for group in range(count - 1)) for count in groups]
    options = {"attention_thresholds": ratios[0], "value_thresholds": ratios[1], "threshold_scope": scope}
    packed = random_packed(seed=9, **{**SMALL, **options})
    check(tmp_path, packed, random_pictures(packed.architecture, 2))


@pytest.mark.parametrize("scope", ["sample", "fixed"])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.04, 0.06, 0.1, 0.3])
def test_densities(tmp_path, density, scope):
    """The thresholds lie at the quantiles of what the first block holds, of one picture."""
    packed = random_packed(seed=2, **{**SMALL, "image_size": 112, "threshold_scope": scope})
    pictures = random_pictures(packed.architecture, 2)
    first = ReferenceModel(packed).trace(pictures[0])
    attention, value = first["blocks.0.attn.attention"], first["blocks.0.attn.value"]
    shares = [1 - density, 1 - density / 5]
    if scope == "sample":
        ratios = np.maximum(value / value.max(), value / value.min())
        architecture = replace(
            packed.architecture,
            attention_thresholds=tuple(np.quantile(attention / attention.max(), shares).tolist()),
            value_thresholds=tuple(np.quantile(ratios, shares).tolist()),
        )
        packed = replace(packed, architecture=architecture)
    else:
        tensors = dict(packed.tensors)
        low = np.quantile(value, [density / 2, density / 10])
        high = np.quantile(value, [1 - density / 2, 1 - density / 10])
        for block in range(2):
            limits = np.quantile(attention, shares), np.stack([high, low], axis=1)
            for name, limit in zip(("attention_limits", "value_limits"), limits, strict=True):
                tensors[f"blocks.{block}.attn.{name}"] = limit.astype(np.float32)
        packed = replace(packed, tensors=tensors)
    trace = ReferenceModel(packed).trace(pictures[0])
    for kind in ("attention", "value"):
        found = trace[f"blocks.0.attn.{kind}_masks"][1].mean()
        assert found == pytest.approx(density, rel=0.2, abs=2e-4)
    check(tmp_path, packed, pictures)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 63, 64])
def test_numbers_of_pictures(tmp_path, count):
    packed = random_packed(seed=3, **{**SMALL, "image_size": 32})
    check(tmp_path, packed, random_pictures(packed.architecture, count, seed=count), threads=(1, 2, 3))


def test_batch_mates_change_nothing(tmp_path):
    packed = random_packed(seed=4, **{**SMALL, "image_size": 32})
    path = tmp_path / "model.safetensors"
    write(path, packed)
    pictures = random_pictures(packed.architecture, 64)
    for backend in _native.backends():
        for threads in (1, 2, 3):
            model = _native.Model(str(path), threads, backend)
            together = model.logits(pictures)
            assert model.logits(pictures[::-1]).tobytes() == together[::-1].tobytes()
            for start, stop in ((0, 1), (7, 12), (31, 64)):
                assert model.logits(pictures[start:stop]).tobytes() == together[start:stop].tobytes()
