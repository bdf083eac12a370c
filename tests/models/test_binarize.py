import copy
import json

import pytest
import timm
import torch
from goldens import assert_close, images
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import gsb_vit.models  # noqa: F401 (registers the models)
from gsb_vit.errors import InputError
from gsb_vit.models.binarize import binarize, calibrate_thresholds, initialize_scales
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.attention_bias import FullAttentionBias, RelativeAttentionBias
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedConv2d, QuantizedLinear
from gsb_vit.nn.input_quantizers import Quantizer
from gsb_vit.nn.superposition_quantizers import Superposition
from gsb_vit.quantization import PRESETS, Quantization

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


def vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{**SHAPE, **options})


def vit_with_attention_norm() -> VisionTransformer:
    """What scale_attn_norm builds, also with a timm that does not have the option yet."""
    model = vit()
    model.blocks[1].attn.norm = nn.LayerNorm(48)
    return model


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_json(preset):
    quantization = Quantization.create(preset)
    assert Quantization.create(json.loads(json.dumps(quantization.to_dict()))) == quantization
    assert Quantization.create(quantization) is quantization


def test_defaults_are_stage2():
    assert Quantization.create(None) == Quantization.stage2() == Quantization()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("stage3", "choose one of full_precision"),
        ({"weight": "all"}, "no quantization switch 'weight'"),
        ({"weights": "half"}, "weights is 'half'; it must be one of 'all', 'mlp', 'none'"),
        ({"edge_bits": 4}, "edge_bits is 4; it must be one of 8, 32"),
        ({"edge_bits": True}, "edge_bits is True"),
        ({"tokenizer_bits": 4}, "tokenizer_bits is 4; it must be one of 1, 8"),
        ({"tokenizer_bits": True}, "tokenizer_bits is True"),
        ({"tokenizer_bits": 1, "edge_bits": 32}, "tokenizer_bits = 1 goes with edge_bits = 8"),
        ({"attention_thresholds": [0.9, 0.7]}, "must increase"),
        ({"attention_thresholds": [0.7, 0.7]}, "must increase"),
        ({"value_thresholds": [0.5, 1.0]}, "between 0 and 1"),
        ({"value_thresholds": 0.5}, "list of numbers"),
        ({"value_thresholds": [float("nan")]}, "between 0 and 1"),
        ({"patch_norm": 1}, "true or false"),
        (3, "preset's name"),
    ],
)
def test_bad_switches_are_named(value, message):
    with pytest.raises(InputError, match=message):
        Quantization.create(value)


def test_full_precision_changes_nothing():
    model, twin = vit(), vit()
    assert binarize(model, "full_precision") is model
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    assert torch.equal(model(images()), twin(images()))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
        {"init_values": 0.1, "proj_bias": False},
        {"img_size": (32, 16), "attn_drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.1},
    ],
)
def test_any_timm_vision_transformer_trains(preset, options):
    model = binarize(vit(**options), preset)
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    initialize_scales(model, x)
    model(x).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not missing


def test_stage2_puts_every_module_where_the_design_says():
    model = binarize(timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=1))
    attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
    assert isinstance(attn, GSBAttention) and isinstance(attn.attention_bias, RelativeAttentionBias)
    assert all(isinstance(layer, BinaryLinear) for layer in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))
    assert mlp.fc1.signed and not mlp.fc2.signed and mlp.fc2.clip == 10 and mlp.fc1.clip is None
    assert isinstance(model.patch_embed.proj, QuantizedConv2d)
    assert isinstance(model.head, QuantizedLinear) and isinstance(model.head_dist, QuantizedLinear)
    assert attn.q_shift.shape == (3, 1, 64) and attn.attention_bias().shape == (3, 18, 18)


def test_switches_choose_the_layers():
    model = binarize(vit(), Quantization.authors_stage1())
    block = model.blocks[0]
    assert type(block.attn.qkv) is nn.Linear and type(model.head) is nn.Linear
    assert block.mlp.fc1.weights == "binary" and block.mlp.fc1.input_quantizer is None
    assert block.attn.attention_bias is None and block.attn.value_quantizer is None
    model = binarize(vit(), Quantization(weights="none", attention_bias="full"))
    block = model.blocks[0]
    assert block.attn.qkv.weights == "full" and block.attn.qkv.input_quantizer is not None
    assert isinstance(block.attn.attention_bias, FullAttentionBias)


def test_stage1_state_fits_stage2_and_a_teachers_fits_both():
    teacher = vit().state_dict()
    stage1, stage2 = binarize(vit(), "stage1"), binarize(vit(), "stage2")
    for model in (stage1, stage2):
        result = model.load_state_dict(teacher, strict=False)
        assert not result.unexpected_keys
    result = stage2.load_state_dict(stage1.state_dict(), strict=False)
    assert not result.unexpected_keys
    # Stage 1 quantizes the weights of the MLPs, no activation, no edge: what belongs to the rest starts fresh.
    fresh = (".scale", ".initialized", ".weight_scale", "head.shift", "qkv.shift", "proj.shift")
    assert all(key.endswith(fresh) for key in result.missing_keys)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(2, 2), "not Linear"),
        (lambda: timm.create_model("resnet10t"), "not ResNet"),
        (lambda: vit(qk_norm=True), "qk_norm"),
        (lambda: vit_with_attention_norm(), "scale_attn_norm"),
        (lambda: vit(global_pool="map"), "global_pool='map'"),
        (lambda: vit(dynamic_img_size=True), "attention_bias='none'"),
        (lambda: vit(patch_drop_rate=0.5), "attention_bias='none'"),
        (lambda: binarize(vit()), "binarized already"),
    ],
)
def test_models_without_a_one_bit_form_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        binarize(build())


def test_a_refused_model_is_left_as_it_was():
    model = vit(qk_norm=True)
    before = [type(module) for module in model.modules()]
    with pytest.raises(InputError):
        binarize(model)
    assert [type(module) for module in model.modules()] == before


def test_initialize_scales_sets_every_scale_once():
    model = binarize(vit(attn_drop_rate=0.5, drop_path_rate=0.5)).train()
    initialize_scales(model, images())
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    assert all(module.is_ready and module.initialized for module in quantizers)
    assert model.training and all(block.training for block in model.blocks)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    initialize_scales(model, 3 * images())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    initialize_scales(model, 3 * images(), force=True)
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_initialize_scales_equals_the_first_forward_pass():
    explicit, implicit = binarize(vit()), binarize(vit()).eval()
    initialize_scales(explicit, images())
    with torch.no_grad():
        implicit(images())
    for (name, a), (_, b) in zip(explicit.state_dict().items(), implicit.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_calibration_averages_the_pictures_extremes():
    model = binarize(vit(), Quantization(threshold_scope="fixed"))
    x = images(6)
    initialize_scales(model, x)
    twin = copy.deepcopy(model)
    calibrate_thresholds(model, [x[:4], (x[4:], torch.zeros(2))])
    calibrate_thresholds(twin, [x])
    for a, b in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(a, Superposition):
            assert_close(a.running_extremes, b.running_extremes)
            assert a.calibration is None
    restored = binarize(vit(), Quantization(threshold_scope="fixed"))
    restored.load_state_dict(model.state_dict())
    model.eval(), restored.eval()
    with torch.no_grad():
        assert torch.equal(model(x), restored(x))
        assert_close(torch.cat([model(x[i : i + 1]) for i in range(6)]), model(x))


def test_calibration_refuses_nothing_to_do():
    with pytest.raises(InputError, match="threshold_scope='fixed'"):
        calibrate_thresholds(binarize(vit()), [images()])
    with pytest.raises(InputError, match="no batch"):
        calibrate_thresholds(binarize(vit(), Quantization(threshold_scope="fixed")), [])
