"""The quantized parts of a model: all of them, their bytes, the model without them, and nothing left behind."""

import copy

import pytest
import timm
import torch
from goldens import images
from random_trained import random_trained
from small_models import small

from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.footprint import footprint
from gsb_vit.models.parts import is_quantized, plain_order, quantized_parts, without
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.quantization import Quantization

BLOCK = ["attn.query_key", "attn.attention", "attn.value"]
BLOCK += [
    f"{layer}.{what}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for what in ("weight", "input")
]
EDGES = [
    "patch_embed.proj.weight",
    *(f"{head}.{what}" for head in ("head", "head_dist") for what in ("weight", "input")),
]


def named(model):
    return {part.name: part for part in quantized_parts(model)}


def test_every_quantizer_belongs_to_a_part():
    wanted = {*EDGES, *(f"blocks.{block}.{name}" for block in range(2) for name in BLOCK)}
    assert set(named(small())) == wanted


def test_stage_1_has_the_weights_of_its_mlps_only():
    assert set(named(small("stage1"))) == {f"blocks.{b}.mlp.{name}.weight" for b in range(2) for name in ("fc1", "fc2")}


def test_a_full_precision_model_has_no_parts():
    assert quantized_parts(small("full_precision")) == [] and not is_quantized(small("full_precision"))
    assert is_quantized(small("stage1"))


def test_bytes_are_the_difference_of_two_footprints():
    eight = Quantization(weight_bits=8, activation_bits=8)
    one = Quantization(attention_thresholds=(), value_thresholds=())  # as many scales as the other has
    grown = footprint(small(eight)).bytes - footprint(small(one)).bytes
    assert sum(part.bytes for part in quantized_parts(small()) if part.kind == "weights") == grown
    edges = sum(part.bytes for part in quantized_parts(small()) if part.kind == "edges")
    assert edges == 3 * sum(
        m.weight.numel() for n, m in small().named_modules() if n in ("patch_embed.proj", "head", "head_dist")
    )


def test_bit_operations_are_counted_from_the_shapes():
    parts, tokens, width = named(small()), 16 + 2, 48
    fc1 = parts["blocks.0.mlp.fc1.weight"]
    assert (fc1.bits, fc1.more_bits, fc1.bytes) == (1, 8, 192 * (48 - 8))
    assert fc1.bit_operations == tokens * width * 192 * 7 == parts["blocks.0.mlp.fc1.input"].bit_operations
    value = parts["blocks.0.attn.value"]
    assert (value.bits, value.bytes, value.bit_operations) == (3, 0, tokens * tokens * width * 3 * (8 - 3))
    assert parts["blocks.0.attn.query_key"].bit_operations == tokens * tokens * width * 63
    assert parts["head.weight"].bit_operations == 5 * width * 8 * 24
    assert parts["patch_embed.proj.weight"].bit_operations == 16 * width * 192 * 32 * 24


def test_without_all_parts_it_is_nearly_the_full_precision_model():
    torch.manual_seed(0)
    model, plain = small().eval(), small("full_precision").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    initialize_scales(model, images())
    with torch.no_grad(), plain_order(model):
        wanted, one_bit = plain(images()), model(images())
        with without(quantized_parts(model)):
            found = model(images())
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert (one_bit - wanted).abs().max() > 0.2 * wanted.abs().max()


SWITCHES = [
    {},
    {"scheme": "bit"},
    {"scheme": "xnor"},
    {"scheme": "reactnet"},
    {"scheme": "bibert"},
    {"activation_bits": 8},
]
SWITCHES += [{"weight_bits": 2}, {"weight_bits": 8, "activation_bits": 8}, {"threshold_scope": "fixed"}]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda one: ",".join(f"{k}={v}" for k, v in one.items()) or "gsb")
def test_every_part_changes_the_logits_and_leaves_nothing_behind(switches):
    model, preprocessing, pictures = random_trained(switches=switches, depth=1)
    x = normalize(pictures[:4], preprocessing)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before = model(x)
        with plain_order(model):
            plain = model(x)
            for part in quantized_parts(model):
                with without([part]):
                    assert not torch.equal(model(x), plain), part.name
                assert torch.equal(model(x), plain), part.name
        assert torch.equal(model(x), before)
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], state[name]) for name in state)


def test_the_convolutions_of_a_tokenizer_are_parts():
    model, preprocessing, pictures = random_trained(tokenizer_channels=(8, 12), depth=1)
    x = normalize(pictures[:4], preprocessing)
    parts = {name: part for name, part in named(model).items() if "convs" in name}
    assert {name.removeprefix("patch_embed.proj.convs.") for name in parts} == {
        "0.weight", "1.weight", "1.input", "2.weight", "2.input"
    }  # fmt: skip
    assert parts["patch_embed.proj.convs.0.weight"].bit_operations == 16 * 16 * 8 * 27 * 32 * 24
    with torch.no_grad(), plain_order(model):
        plain = model(x)
        for part in parts.values():
            with without([part]):
                assert not torch.equal(model(x), plain)


def test_one_bit_convolutions_are_parts():
    model, preprocessing, pictures = random_trained(tokenizer_channels=(8, 12), depth=1, switches={"tokenizer_bits": 1})
    x = normalize(pictures[:4], preprocessing)
    parts = {
        name.removeprefix("patch_embed.proj.convs."): part for name, part in named(model).items() if "convs" in name
    }
    assert set(parts) == {"0.weight", "1.weight", "1.input", "2.weight", "2.input"}
    assert (parts["1.weight"].bits, parts["1.weight"].more_bits) == (1, 8)
    assert parts["1.weight"].bytes == 12 * (72 - 16)  # rows of 9·8 bits fill two words
    assert parts["1.weight"].bit_operations == parts["1.input"].bit_operations == 8 * 8 * 12 * 72 * 7
    with torch.no_grad(), plain_order(model):
        plain = model(x)
        for part in parts.values():
            with without([part]):
                assert not torch.equal(model(x), plain)


def test_a_models_own_attributes_come_back_when_something_fails():
    model = small().eval()
    layer = model.blocks[0].mlp.fc1
    quantizer = layer.weight_quantizer
    with pytest.raises(KeyError), without([named(model)["blocks.0.mlp.fc1.weight"], named(model)["head.weight"]]):
        assert layer.weight_quantizer is not quantizer and "quantized_weight" in vars(model.head)
        raise KeyError
    assert layer.weight_quantizer is quantizer and "quantized_weight" not in vars(model.head)


def test_a_timm_model_of_any_size_has_parts():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=1)
    assert quantized_parts(model) == []
