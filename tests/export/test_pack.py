import numpy as np
import pytest
import torch
from random_trained import random_trained
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.export.pack import _hidden_zeros, _interval, _zero_intervals, export_model, pack_model
from gsb_vit.models.binarize import binarize
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.quantization import Quantization
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.bits import unpack
from gsb_vit.runtime.reference import ReferenceModel
from gsb_vit.runtime.relative_bias import relative_bias_index

NAMES = [f"class {number}" for number in range(6)]


def pack(model, preprocessing, **options):
    arguments = {"class_names": NAMES, "preprocessing": preprocessing, "provenance": {}, **options}
    return pack_model(model, **arguments)


def rows_of_every_popcount(signs):
    """For weights (out, k) in ±1: inputs (k + 1, out, k) whose popcount with row o, at [p, o], is p."""
    out, depth = signs.shape
    flipped = torch.arange(depth)[None, :] < torch.arange(depth + 1)[:, None]
    return torch.where(flipped[:, None, :], -signs, signs).reshape(depth + 1, out, depth)


@torch.no_grad()
def outputs_of_every_popcount(layer):
    """(k + 1, out): the layer's own forward pass, run on inputs of every popcount for every channel."""
    rows = rows_of_every_popcount(layer.binary_weight()[0])
    # A large input keeps its sign through the shift.
    every = layer(rows * 100.0)
    return torch.diagonal(every, dim1=1, dim2=2)


@pytest.mark.parametrize("weight_scale", ["row", "layer"])
def test_thresholds_equal_the_layers_own_forward_at_every_integer(weight_scale):
    model, preprocessing, _ = random_trained(switches={"weight_scale": weight_scale}, embed_dim=66, num_heads=2)
    attention = model.blocks[1].attn
    with torch.no_grad():
        attention.qkv.bias[:20] = 0
        for shift in (attention.q_shift, attention.k_shift, attention.v_shift):
            shift[0, 0, :10] = 0  # with a bias of 0 the product 0 is a tie at popcount 33
        attention.qkv.bias[5], attention.qkv.bias[6] = 1e6, -1e6
    thresholds = pack(model, preprocessing)["blocks.1.attn.qkv.threshold"]
    shift = torch.cat([s.reshape(-1) for s in (attention.q_shift, attention.k_shift, attention.v_shift)])
    expected = (outputs_of_every_popcount(attention.qkv) + shift >= 0).detach().numpy()
    popcounts = np.arange(67)[:, None]
    assert np.array_equal(popcounts <= thresholds[None, :], expected)
    assert thresholds[0] == 33 and thresholds[5] == 66 and thresholds[6] == -1


@torch.no_grad()
def hidden_bits(mlp):
    """(C + 1, M): fc2's input bits at every popcount of fc1, by the modules' own forward."""
    x = mlp.act(outputs_of_every_popcount(mlp.fc1)).clamp(-10, 10) + mlp.fc2.shift
    (plane,), _ = mlp.fc2.input_quantizer.quantize(x)
    return plane.numpy() > 0


def assert_intervals(mlp, intervals):
    popcounts = np.arange(mlp.fc1.in_features + 1)[:, None]
    zero = (intervals[:, 0] <= popcounts) & (popcounts <= intervals[:, 1])
    assert np.array_equal(~zero, hidden_bits(mlp))


def test_zero_intervals_equal_gelu_and_quantizer_at_every_integer():
    model, preprocessing, _ = random_trained(seed=3)
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        # Thresholds below 0 make inner intervals, and below GELU's minimum none at all.
        mlp.fc2.input_quantizer.scale.fill_(0.2)
        mlp.fc2.shift.copy_(torch.linspace(-0.1, 0.4, mlp.fc2.in_features))
    intervals = pack(model, preprocessing)["blocks.0.mlp.fc1.zero_interval"]
    assert_intervals(mlp, intervals)
    inner = (intervals[:, 0] <= intervals[:, 1]) & (intervals[:, 1] < 72)
    assert inner.sum() > 10 and (intervals == (1, 0)).all(axis=1).sum() > 10 and (intervals[:, 1] == 72).sum() > 10


def test_the_clip_bounds_the_hidden_numbers():
    model, preprocessing, _ = random_trained(seed=3)
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.bias.fill_(30.0)
        mlp.fc2.shift.fill_(-9.9)
        mlp.fc2.input_quantizer.scale.fill_(1.0)
    intervals = pack(model, preprocessing)["blocks.0.mlp.fc1.zero_interval"]
    assert_intervals(mlp, intervals)
    assert (intervals == (0, 72)).all()


def test_a_torn_tail_of_gelu_is_mended_by_float64():
    """Thresholds of −1e-7 … −1e-9 lie where float32 GELU is not monotone."""
    model, _, _ = random_trained(seed=3)
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.input_quantizer.scale.fill_(0.4)
        mlp.fc1.bias.fill_(-5.3)
        mlp.fc2.input_quantizer.scale.fill_(1e-5)
        mlp.fc2.shift.copy_(5e-6 + torch.logspace(-9, -6.5, mlp.fc2.in_features))
        torn = ~_interval(_hidden_zeros(mlp, torch.float32))[1]
        exact, _ = _interval(_hidden_zeros(mlp, torch.float64))
        found = _zero_intervals(0, mlp)
    assert torn.any()
    assert np.array_equal(found[torn], exact[torn])


def test_an_activation_without_one_interval_is_refused():
    model, preprocessing, _ = random_trained(seed=3)

    class Wave(nn.Module):
        def forward(self, x):
            return torch.sin(20 * x)

    model.blocks[0].mlp.act = Wave()
    with pytest.raises(InputError, match="block 0: Wave"):
        pack(model, preprocessing)


def test_relu_has_intervals_too():
    model, preprocessing, _ = random_trained(seed=3)
    model.blocks[0].mlp.act = nn.ReLU()
    assert_intervals(model.blocks[0].mlp, pack(model, preprocessing)["blocks.0.mlp.fc1.zero_interval"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plain": True},
        {"plain": True, "no_embed_class": True},
        {"global_pool": "avg"},
        {"tokenizer_channels": (7, 30), "patch_size": 8},
        {"tokenizer_channels": (12,), "patch_size": 4, "global_pool": "avg"},
        {"tokenizer_channels": (7, 30), "patch_size": 8, "switches": {"tokenizer_bits": 1}},
    ],
)
@torch.no_grad()
def test_tokens_before_the_blocks_are_those_of_torch(options):
    """Without ``pixel_scaling`` PyTorch's own convolutions, norms and quantizers give them; packing shares no code."""
    model, preprocessing, pictures = random_trained(**{"img_size": (16, 24), "patch_size": (8, 4), **options})
    model.patch_embed.proj.pixel_scaling = None
    tokens = ReferenceModel(pack(model, preprocessing)).trace(pictures[0])["tokens"]
    expected = model._pos_embed(model.patch_embed(normalize(pictures[:1], preprocessing)))[0]
    np.testing.assert_allclose(tokens, expected.numpy(), rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_weights_scales_and_tables_are_the_modules():
    model, preprocessing, _ = random_trained(seed=1)
    found = pack(model, preprocessing)
    attention = model.blocks[1].attn
    signs = attention.proj.binary_weight()[0].numpy() > 0
    assert np.array_equal(unpack(found["blocks.1.attn.proj.weight"], 72), signs)
    a, v = attention.attention_quantizer.scale.numpy(), attention.value_quantizer.scale.numpy()
    assert np.array_equal(found["blocks.1.attn.product_scale"], np.outer(a, v))
    assert found["blocks.1.attn.attention_half_scale"] == np.float32(0.5) * a[0]
    index = relative_bias_index((4, 4), 2)
    assert np.array_equal(found["blocks.1.attn.bias"][:, index], attention.attention_bias().numpy())
    scale = float(attention.query_quantizer.scale * attention.key_quantizer.scale)
    expected = np.exp(-2 * np.arange(25) * scale / 24**0.5)
    np.testing.assert_allclose(found["blocks.1.attn.exp_table"], expected, rtol=2e-6)


def test_a_full_bias_is_stored_in_float16():
    model, preprocessing, _ = random_trained(seed=2, switches={"attention_bias": "full"})
    found = pack(model, preprocessing)
    bias = model.blocks[0].attn.attention_bias().detach().numpy()
    assert np.array_equal(found["blocks.0.attn.bias"], bias.astype(np.float16))


def test_tiny_exponentials_become_zero():
    model, preprocessing, _ = random_trained(seed=1)
    with torch.no_grad():
        model.blocks[0].attn.query_quantizer.scale.fill_(100.0)
    table = pack(model, preprocessing)["blocks.0.attn.exp_table"]
    assert table[0] == 1 and table[-1] == 0
    assert not np.any((table > 0) & (table < 1e-30))


@pytest.mark.parametrize("thresholds", [(), (0.5,), (0.2, 0.4, 0.8)])
def test_fixed_limits_are_the_calibrated_ones(thresholds):
    switches = {"threshold_scope": "fixed", "attention_thresholds": thresholds, "value_thresholds": thresholds}
    model, preprocessing, _ = random_trained(switches=switches)
    found = pack(model, preprocessing)
    attention = model.blocks[0].attn
    limits = found["blocks.0.attn.attention_limits"], found["blocks.0.attn.value_limits"]
    assert limits[0].shape == (len(thresholds),) and limits[1].shape == (len(thresholds), 2)
    maximum = attention.attention_quantizer.running_extremes.numpy()
    np.testing.assert_allclose(limits[0], np.array(thresholds) * maximum, rtol=1e-6)
    extremes = attention.value_quantizer.running_extremes.numpy()
    np.testing.assert_allclose(limits[1], np.outer(thresholds, extremes), rtol=1e-6)


def test_a_tokenizer_in_full_precision_is_refused():
    model, preprocessing, _ = random_trained(tokenizer_channels=(4, 8), switches={"edge_bits": 32})
    with pytest.raises(InputError, match="edge_bits = 32"):
        pack(model, preprocessing)


def test_the_trained_model_is_left_as_it_was(tmp_path):
    model, preprocessing, _ = random_trained()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    written = export_model(
        model, tmp_path / "m.safetensors", class_names=NAMES, preprocessing=preprocessing, provenance={"run": "x"}
    )
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    found = packed_file.read(tmp_path / "m.safetensors")
    assert found.provenance == {"run": "x"} and found.class_names == tuple(NAMES)
    assert found.architecture == written.architecture
    assert found.architecture.name == "gsb_vit_tiny_patch16_224"
    assert all(np.array_equal(found[name], array) for name, array in written.tensors.items())


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"threshold_scope": "batch"}, "threshold_scope = 'batch'.*sample or fixed"),
        ({"activations": "full"}, "activations = 'full'.*last stage"),
        ({"edge_bits": 32}, "edge_bits = 32"),
        ({"weights": "mlp"}, "weights = 'mlp'"),
        ({"patch_norm": True}, "patch_norm = True"),
    ],
)
def test_switches_without_a_packed_form_are_refused(switches, message):
    model, preprocessing, _ = random_trained(switches=switches)
    with pytest.raises(InputError, match=message):
        pack(model, preprocessing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "max"}, "global_pool = 'max'"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
        ({"reg_tokens": 16}, "17 prefix tokens.*at most 16"),
        ({"pre_norm": True}, "norm before the blocks"),
        ({"init_values": 0.1}, "layer scale"),
        ({"in_chans": 1}, "3 channels"),
    ],
)
def test_architectures_without_a_packed_form_are_refused(options, message):
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 6}
    model = binarize(VisionTransformer(**{**shape, **options}), Quantization())
    with pytest.raises(InputError, match=message):
        pack(model, Preprocessing(size=(16, 16)))


def test_other_models_are_refused():
    with pytest.raises(InputError, match="Linear is not a timm VisionTransformer"):
        pack(nn.Linear(2, 2), Preprocessing(size=(16, 16)))
    with pytest.raises(InputError, match="not binarized"):
        pack(VisionTransformer(img_size=16, embed_dim=32, depth=1, num_heads=2), Preprocessing(size=(16, 16)))


def test_scales_that_were_never_set_are_refused():
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 6}
    with pytest.raises(InputError, match="never set"):
        pack(binarize(VisionTransformer(**shape), Quantization()), Preprocessing(size=(16, 16)))


def test_numbers_that_are_not_finite_are_refused_by_name():
    model, preprocessing, _ = random_trained()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[3] = float("nan")
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc2\.bias holds numbers that are not finite"):
        pack(model, preprocessing)


def test_names_and_sizes_that_do_not_fit_are_refused(tmp_path):
    model, preprocessing, _ = random_trained()
    with pytest.raises(InputError, match="5 names for 6 classes"):
        pack(model, preprocessing, class_names=NAMES[:5])
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="make them equal"):
        export_model(model, path, class_names=NAMES, preprocessing=Preprocessing(size=(64, 64)))
    assert list(tmp_path.iterdir()) == []
