"""The cost table against PyTorch's own parameter counts, the packed file's own bytes, and hand-made figures."""

import json

import numpy as np
import pytest
from random_packed import random_packed, write_random_packed

from gsb_vit.bench.cost import layer_of_tensor, summarize
from gsb_vit.errors import InputError
from gsb_vit.export.architecture import find_architecture
from gsb_vit.runtime import packed_file

SHAPE = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_hidden": 40}


def layers_of(summary):
    return {layer.name: layer for layer in summary.layers}


@pytest.mark.parametrize("bias", ["none", "relative", "full"])
@pytest.mark.parametrize("scope", ["sample", "fixed"])
@pytest.mark.parametrize("prefix_tokens", [1, 2])
def test_bytes_are_those_of_the_file(tmp_path, bias, scope, prefix_tokens):
    path = tmp_path / "model.safetensors"
    write_random_packed(
        path,
        seed=0,
        num_classes=5,
        **SHAPE,
        attention_bias=bias,
        threshold_scope=scope,
        prefix_tokens=prefix_tokens,
    )
    summary = summarize(*find_architecture(str(path)))
    tensors = packed_file.read(path).tensors
    assert summary.packed.bytes == sum(array.nbytes for array in tensors.values())
    assert sum(summary.bytes_by_kind.values()) == summary.packed.bytes
    assert summary.bytes_by_kind["binary_weights"] == sum(
        array.nbytes for array in tensors.values() if array.dtype == np.uint64
    )
    assert summary.file_bytes == path.stat().st_size
    for layer in summary.layers:
        own = sum(array.nbytes for name, array in tensors.items() if layer_of_tensor(name) == layer.name)
        assert layer.packed.bytes == own, layer.name


def test_a_tokenizers_bytes_and_products_by_hand(tmp_path):
    path = tmp_path / "model.safetensors"
    shape = {**SHAPE, "patch_size": 8, "tokenizer_channels": (5, 7), "global_pool": "avg", "prefix_tokens": 0}
    write_random_packed(path, seed=0, num_classes=5, **shape)
    summary = summarize(*find_architecture(str(path)))
    layers = layers_of(summary)
    assert summary.packed.bytes == sum(array.nbytes for array in packed_file.read(path).tensors.values())
    weights = 27 * 5 + 9 * 5 * 7 + 9 * 7 * 24
    assert layers["tokenizer"].packed.bytes == weights + 4 * (3 * 5 + 4 * 5 + 7 + 7 + 24)
    products = 27 * 5 * 64 + 9 * 5 * 7 * 16 + 9 * 7 * 24 * 4
    assert layers["tokenizer"].packed.flops == layers["tokenizer"].twin.flops == products
    assert "patch_embed" not in layers and layers["tokens"].packed.parameters == 4 * 24


def test_one_bit_convolutions_by_hand(tmp_path):
    path = tmp_path / "model.safetensors"
    shape = {**SHAPE, "patch_size": 8, "tokenizer_channels": (5, 8), "global_pool": "avg", "prefix_tokens": 0}
    write_random_packed(path, seed=0, num_classes=5, level_bits=(1, 1), **shape)
    summary = summarize(*find_architecture(str(path)))
    tokenizer = layers_of(summary)["tokenizer"]
    assert summary.packed.bytes == sum(array.nbytes for array in packed_file.read(path).tensors.values())
    assert tokenizer.packed.bytes == 27 * 5 + 8 * 8 * 1 + 8 * 24 * 2 + 4 * (3 * 5 + 4 * 5 + 8 + 8 + 24)
    assert tokenizer.packed.bops == 9 * 5 * 8 * 16 + 9 * 8 * 24 * 4
    assert tokenizer.packed.flops == 27 * 5 * 64 + 24 * 4  # the last one's levels are numbers
    assert tokenizer.twin.flops == 27 * 5 * 64 + tokenizer.packed.bops


def test_products_of_a_small_model_by_hand():
    summary = summarize(random_packed(seed=0, num_classes=5, **SHAPE).architecture)
    layers = layers_of(summary)
    tokens, width, hidden = 18, 24, 40  # 16 patches and two prefix tokens
    assert layers["patch_embed"].packed.flops == layers["patch_embed"].twin.flops == 16 * 48 * 24
    assert layers["blocks.1.attn.qkv"].packed.bops == layers["blocks.1.attn.qkv"].twin.flops == tokens * width * 72
    assert layers["blocks.0.attn.scores"].packed.bops == tokens * tokens * width
    assert layers["blocks.0.attn.values"].packed.bops == 9 * tokens * tokens * width
    assert layers["blocks.0.attn.values"].packed.flops == 9 * tokens * width
    assert layers["blocks.0.mlp.fc1"].packed.bops == tokens * width * hidden
    assert layers["blocks.0.mlp.fc1"].packed.flops == 0
    assert layers["blocks.0.mlp.fc2"].packed.flops == tokens * width
    assert layers["heads.1"].packed.flops == 5 * width + 5
    total = summary.packed
    assert total.ops == total.flops + total.bops / 64
    assert summary.twin.bops == 0


@pytest.mark.parametrize(
    ("name", "arguments", "switches"),
    [
        ("gsb_vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}, {}),
        ("gsb_vit_small_patch16_224", {"depth": 1}, {"attention_bias": "full", "value_thresholds": (0.5,)}),
        ("gsb_vit_tiny_patch16_224", {"depth": 1}, {"attention_bias": "none", "attention_thresholds": (0.3, 0.5, 0.8)}),
        ("vit_tiny_patch16_224", {"depth": 1}, {}),
        ("vit_tiny_patch16_224", {"depth": 1, "reg_tokens": 3, "global_pool": "avg"}, {}),
        ("gsb_vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "tokenizer_channels": [7, 12], "depth": 1}, {}),
        (
            "gsb_vit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 8, "tokenizer_channels": [7, 12], "depth": 1},
            {"tokenizer_bits": 1},
        ),
        ("gsb_vit_tiny_patch16_224", {"depth": 1, "reg_tokens": 3, "global_pool": "avg"}, {"attention_bias": "full"}),
    ],
)
def test_parameters_are_pytorchs(name, arguments, switches):
    pytest.importorskip("timm")
    from gsb_vit.export.architecture import architecture_of
    from gsb_vit.models.build import build_model
    from gsb_vit.quantization import Quantization

    model = build_model(name, arguments, 7, Quantization(**switches))
    twin = build_model(name, arguments, 7, Quantization.full_precision())
    summary = summarize(architecture_of(model))
    assert summary.packed.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.twin.parameters == sum(parameter.numel() for parameter in twin.parameters())
    assert summary.twin.bytes == 4 * summary.twin.parameters


def test_deit_small_has_the_published_cost():
    pytest.importorskip("timm")
    summary = summarize(*find_architecture("gsb_vit_small_patch16_224"))
    assert summary.twin.parameters == 22_436_432  # timm's deit_small_distilled_patch16_224
    assert summary.twin.flops == pytest.approx(4.6e9, rel=0.01)  # arXiv 2012.12877, table 5
    assert summary.twin.ops / summary.packed.ops > 20


def test_json_totals_are_the_sums_of_the_layers():
    values = summarize(random_packed(seed=0, num_classes=5, **SHAPE).architecture).to_json()
    json.dumps(values)
    for key in ("parameters", "bytes", "flops", "bops", "ops"):
        assert values["total"][key] == pytest.approx(sum(layer[key] for layer in values["layers"]))
        assert values["full_precision"][key] == pytest.approx(
            sum(layer["full_precision"][key] for layer in values["layers"])
        )


def test_what_cannot_be_summed_up_is_told(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find_architecture(str(tmp_path / "missing.safetensors"))
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"foreign\.safetensors"):
        find_architecture(str(foreign))
    pytest.importorskip("timm")
    with pytest.raises(InputError, match="unknown architecture"):
        find_architecture("no_such_network")
    with pytest.raises(InputError, match=r"(?i)vision ?transformer"):
        find_architecture("resnet18")
