"""Every scheme and switch: values and gradients against NumPy, training, evaluation, export or refusal."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from goldens import assert_close, images
from small_models import gradients, ready, small
from torch import nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.export import parity
from gsb_vit.export.pack import pack_model
from gsb_vit.models.binarize import binarize, initialize_scales
from gsb_vit.nn import exact
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.input_quantizers import ElasticInteger
from gsb_vit.nn.rprelu import RPReLU
from gsb_vit.nn.scheme_quantizers import BooleanScores, MeanSign, MeanStep, PlainSign, StepFromMean, UnitSign
from gsb_vit.nn.schemes import scheme_of
from gsb_vit.quantization import Quantization
from gsb_vit.runtime.reference import ReferenceModel

SCHEMES = {
    "gsb": {},
    "bit": {"scheme": "bit"},
    "xnor": {"scheme": "xnor"},
    "reactnet": {"scheme": "reactnet"},
    "bibert": {"scheme": "bibert"},
}
LADDER = {
    "w1a2": {"activation_bits": 2},
    "w1a4": {"activation_bits": 4},
    "w1a8": {"activation_bits": 8},
    "w2a1": {"weight_bits": 2},
    "w2a8": {"weight_bits": 2, "activation_bits": 8},
    "w8a1": {"weight_bits": 8},
    "w8a8": {"weight_bits": 8, "activation_bits": 8},
}
ABLATIONS = {
    "attention only": {"value_thresholds": ()},
    "value only": {"attention_thresholds": ()},
    "two groups": {"attention_thresholds": (0.5,), "value_thresholds": (0.5,)},
    "four groups": {"attention_thresholds": (0.3, 0.5, 0.8), "value_thresholds": (0.3, 0.5, 0.8)},
    "fixed": {"threshold_scope": "fixed"},
    "batch": {"threshold_scope": "batch"},
    "authors' gradient": {"value_gradient": "authors"},
    "authors' scales": {"initial_scales": "authors"},
    "mean scales": {"initial_scales": "mean"},
    "full bias": {"attention_bias": "full"},
    "no bias": {"attention_bias": "none"},
    "layer scales": {"weight_scale": "layer"},
    "learned scales": {"weight_scale": "learned_row"},
    "ternary learned": {"weight_bits": 2, "weight_scale": "learned_row"},
    "eight bits, one scale": {"weight_bits": 8, "weight_scale": "layer"},
    "mlp only": {"weights": "mlp"},
    "xnor, stage 1": {"scheme": "xnor", "activations": "full", "edge_bits": 32},
    "reactnet, stage 1": {"scheme": "reactnet", "activations": "full", "edge_bits": 32},
    "bibert, stage 1": {"scheme": "bibert", "activations": "full", "edge_bits": 32},
    "w8, stage 1": {"weight_bits": 8, "activations": "full", "edge_bits": 32},
}
ALL = {**SCHEMES, **LADDER, **ABLATIONS}
every = pytest.mark.parametrize("switches", ALL.values(), ids=ALL)
# What a packed file cannot hold, and the words that say so; all else must export.
REFUSED = {
    "xnor": "scheme = 'xnor'; the runtime runs",
    "reactnet": "scheme = 'reactnet'; the runtime runs",
    "bibert": "scheme = 'bibert'; the runtime runs",
    "w1a2": "activation_bits = 2; .*train stage 2 with activation_bits = 1",
    "w1a4": "activation_bits = 4; .*train stage 2 with activation_bits = 1",
    "w1a8": "activation_bits = 8; .*train stage 2 with activation_bits = 1",
    "w2a1": "weight_bits = 2; .*train with weight_bits = 1",
    "w2a8": "weight_bits = 2",
    "w8a1": "weight_bits = 8",
    "w8a8": "weight_bits = 8",
    "batch": "threshold_scope = 'batch'",
    "ternary learned": "weight_bits = 2",
    "eight bits, one scale": "weight_bits = 8",
    "mlp only": "weights = 'mlp'",
    "xnor, stage 1": "scheme = 'xnor'",
    "reactnet, stage 1": "scheme = 'reactnet'",
    "bibert, stage 1": "scheme = 'bibert'",
    "w8, stage 1": "weight_bits = 8",
}


pytestmark = pytest.mark.usefixtures("one_thread")


def lively(switches) -> nn.Module:
    """A ready model with shifts and biases off zero (no ties) and attention so uneven that every plane has members."""
    model = small(switches)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "shift" in name or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    initialize_scales(model, images())
    bits = model.quantization.activation_bits
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if bits == 1 and name.endswith(("query_quantizer.scale", "key_quantizer.scale")):
                parameter.fill_(1.5)
            elif bits == 2 and name.endswith("attention_quantizer.scale"):
                parameter.mul_(0.5)
    return model


@every
def test_two_steps_of_training(switches):
    model = lively(switches).train()
    model.set_distilled_training(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    moved: dict[str, bool] = {}
    for _ in range(2):
        found = gradients(model)
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        moved = {name: moved.get(name, False) or bool(gradient.any()) for name, gradient in found.items()}
        optimizer.step()
    assert [name for name, nonzero in moved.items() if not nonzero] == []
    assert all(torch.isfinite(logits).all() for logits in model(images()))


@every
def test_training_and_evaluation_compute_the_same(switches, monkeypatch):
    model = lively(switches)
    ordered = exact.applies
    generator = torch.Generator().manual_seed(1)
    for block in model.blocks:
        attention = copy.deepcopy(block.attn)
        attention.proj = nn.Identity()  # a quantizer would turn the last bit of a difference into a whole step
        x = torch.randn(2, 18, 48, generator=generator)
        # Gradients beside the sums' other order: test_numerics.
        monkeypatch.setattr(exact, "applies", lambda x: False)
        results = []
        for training in (True, False):
            attention.train(training).zero_grad()
            a = x.clone().requires_grad_()
            y = attention(a)
            y.square().sum().backward()
            results.append([y.detach(), a.grad, *(p.grad.clone() for p in attention.parameters())])
        monkeypatch.setattr(exact, "applies", ordered)
        with torch.no_grad():
            in_order = attention(x)
        for trained, evaluated in [*zip(*results, strict=True), (results[0][0], in_order)]:
            # Eight-bit softmax hardly feels a shift of all keys: that gradient is rounding noise.
            torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-6 + 1e-3 * float(evaluated.abs().max()))
        for layer, width in ((block.attn.qkv, 48), (block.mlp.fc1, 48), (block.mlp.fc2, 192)):
            x = torch.randn(3, 5, width, generator=generator)
            with torch.no_grad():
                assert_close(layer.train()(x), layer.eval()(x), 1e-5)


@pytest.mark.parametrize("name", [name for name in ALL if name != "batch"])  # batch thresholds are there to depend
def test_pictures_do_not_depend_on_their_neighbours(name):
    switches = ALL[name]
    model = small(switches).eval()
    x = images(4, seed=1)
    initialize_scales(model, x)
    with torch.no_grad():
        assert_close(torch.cat([model(x[i : i + 1]) for i in range(4)]), model(x))


@pytest.mark.parametrize(
    "switches", [*SCHEMES.values(), LADDER["w2a8"], LADDER["w8a8"]], ids=[*SCHEMES, "w2a8", "w8a8"]
)
class TestEveryScheme:
    def test_trains_under_autocast(self, switches):
        model = ready(switches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(model)
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        assert any(gradient.any() for gradient in found.values())

    def test_survives_copies_and_state_dicts(self, switches):
        model = ready(switches).eval()
        restored = small(json.loads(json.dumps(model.quantization.to_dict()))).eval()
        restored.load_state_dict(model.state_dict())
        with torch.no_grad():
            expected = model(images())
            assert torch.equal(copy.deepcopy(model)(images()), expected)
            assert torch.equal(restored(images()), expected)

    def test_compiles_to_one_graph(self, switches, monkeypatch):
        # Compiled graphs take PyTorch's path. Sums that are nothing but rounding (shifts begin at 0, so they are common
        # here) may get another sign in fused kernels: tests/test_fused.py compares the two.
        monkeypatch.setenv("GSB_VIT_FUSED", "0")
        torch._dynamo.reset()
        model = ready(switches, depth=1)
        eager = gradients(copy.deepcopy(model))
        compiled = gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"))
        for name, gradient in eager.items():
            torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        model.eval()
        with torch.no_grad():
            output = torch.compile(model, fullgraph=True, backend="eager")(images())
            torch.testing.assert_close(output, model(images()))

    def test_any_timm_vision_transformer_takes_it(self, switches):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3, qkv_bias=False)
        model = binarize(vit, switches)
        initialize_scales(model, images())
        model(images()).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_exports_or_says_why_not(name, tmp_path):
    model = ready(ALL[name]).eval()
    names, preprocessing = [str(number) for number in range(5)], Preprocessing(size=(32, 32))
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]):
            pack_model(model, class_names=names, preprocessing=preprocessing, provenance={})
        return
    packed = pack_model(model, class_names=names, preprocessing=preprocessing, provenance={})
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = model(parity.normalize(pictures, preprocessing)).numpy()
    np.testing.assert_allclose(ReferenceModel(packed).logits(pictures), expected, atol=0.05 * np.abs(expected).max())


# Oracles: y, grad_x and grad_scale of each quantizer in float64 NumPy, from the equations alone.
def signs(x):
    return np.where(x >= 0, 1.0, -1.0)


def mean_sign(x, g, s, axis):
    scale = np.abs(x).mean(axis, keepdims=True)
    return scale * signs(x), g * scale * (np.abs(x) <= 1), None


def mean_step(x, g, s):
    plane = (x >= np.minimum(x.mean(-1, keepdims=True), x.max(-1, keepdims=True))).astype(float)
    scale = (x * plane).sum(-1, keepdims=True) / plane.sum(-1, keepdims=True)
    return scale * plane, g * scale * (np.abs(x) <= 1), None


def unit_sign(x, g, s):
    return s * signs(x), g * s * (np.abs(x) <= 1), (g * signs(x)).sum() / np.sqrt(x.size)


def quadratic_sign(x, g, s):
    slope = np.where(np.abs(x) <= 1, 2 - 2 * np.abs(x), 0)
    return s * signs(x), g * s * slope, (g * signs(x)).sum() / np.sqrt(x.size)


def boolean(x, g, s):
    return s * (x >= 0), g * s * (np.abs(x) <= 1), (g * (x >= 0)).sum() / np.sqrt(x.size)


def unsigned_integer(x, g, s):
    r = x / s
    clamped = np.clip(r, 0, 255)
    slope = np.where(r == clamped, np.rint(r) - r, clamped)
    return s * np.clip(np.rint(r), 0, 255), g * (r == clamped), (g * slope).sum() / np.sqrt(x.size * 255)


ORACLES = [
    (lambda: MeanSign(), lambda *a: mean_sign(*a, -1)),
    (lambda: MeanSign(dim=-2), lambda *a: mean_sign(*a, -2)),
    (MeanStep, mean_step),
    (UnitSign, unit_sign),
    (lambda: UnitSign(quadratic=True), quadratic_sign),
    (PlainSign, lambda x, g, s: (signs(x), g * (np.abs(x) <= 1), None)),
    (BooleanScores, boolean),
    (lambda: ElasticInteger(8, signed=False, offset=False), unsigned_integer),
]
TIES = [-1.0, -0.0, 0.0, 1.0, 1.0 + 1e-9, -1.0 - 1e-9, 0.5, -0.5]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("make", "oracle"), ORACLES)
def test_quantizers_match_numpy(make, oracle, training):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64)
    x[0, 0, 0] = torch.tensor(TIES, dtype=torch.float64)
    x[1, 1, 2] = 0.1  # a row of equal entries
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    quantizer = make().double()
    quantizer(x)
    if hasattr(quantizer, "scale"):
        with torch.no_grad():
            quantizer.scale.fill_(0.37)
    a = x.clone().requires_grad_()
    if training:
        y = quantizer(a)
    else:
        (plane,), scale = quantizer.quantize(a)
        assert torch.equal(plane, plane.round())
        y = plane * scale
    y.backward(grad)
    expected, grad_x, grad_scale = oracle(x.numpy(), grad.numpy(), 0.37)
    # MeanSign and UnitSign take means in float32, as an analytic or initial scale needs no more.
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-6)
    np.testing.assert_allclose(a.grad, grad_x, rtol=1e-6, atol=1e-12)
    if grad_scale is not None:
        np.testing.assert_allclose(quantizer.scale.grad, grad_scale, rtol=1e-5)


def test_initial_scales_match_numpy():
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(2))
    for quantizer, expected in (
        (UnitSign(), np.abs(x.numpy()).mean()),
        (BooleanScores(), 1 / (x.numpy() >= 0).sum(-1).mean()),
        (StepFromMean(), 2 * np.abs(x.numpy()).mean()),
    ):
        quantizer(x)
        np.testing.assert_allclose(quantizer.scale.item(), expected, rtol=1e-6)
    quantizer = BooleanScores()
    assert torch.isfinite(quantizer(-torch.ones(1, 1, 2, 2))).all()


def test_a_flat_attention_matrix_is_not_all_out_at_the_start_of_reactnet():
    matrix = torch.softmax(0.1 * torch.randn(2, 2, 66, 66, generator=torch.Generator().manual_seed(3)), -1)
    (plane,), scale = small({"scheme": "reactnet"}).blocks[0].attn.attention_quantizer.quantize(matrix)
    assert 0.4 < plane.mean() < 0.6
    assert 0.95 < (scale * plane).sum(-1).mean() < 1.05


def test_schemes_put_their_parts_in_place():
    for name, linear, value, act in (("xnor", MeanSign, MeanSign, nn.GELU), ("reactnet", UnitSign, UnitSign, RPReLU)):
        block = small({"scheme": name}).blocks[0]
        assert all(isinstance(m.input_quantizer, linear) for m in (block.attn.qkv, block.attn.proj, block.mlp.fc2))
        assert isinstance(block.attn.value_quantizer, value) and isinstance(block.mlp.act, act)
        assert (block.attn.q_shift is None) == (block.mlp.fc1.shift is None) == (name == "xnor")
    assert isinstance(block.attn.proj.output, RPReLU) and isinstance(block.mlp.fc2.output, RPReLU)
    assert block.attn.qkv.output is None and block.attn.query_quantizer.quadratic
    attention = small({"scheme": "bibert"}).blocks[0].attn
    assert not attention.softmax and small({"scheme": "bibert", "activations": "full"}).blocks[0].attn.softmax
    q, k = torch.randn(2, 2, 3, 5, 16)
    scores = torch.sign(q) @ torch.sign(k).mT / 4 + attention.attention_bias()[:, :1, :1]
    assert_close(GSBAttention._scores(attention, q, k), scores)


def test_bit_is_gsb_with_one_group_each():
    with torch.no_grad():
        groups = ready({"attention_thresholds": (), "value_thresholds": ()}).eval()
        bit = ready({"scheme": "bit"}).eval()
        assert torch.equal(bit(images()), groups(images()))
    assert bit.quantization.attention_thresholds == bit.quantization.value_thresholds == ()


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"scheme": "dorefa"}, "scheme is 'dorefa'; it must be one of 'gsb'"),
        ({"weight_bits": 4}, "weight_bits is 4; it must be one of 1, 2, 8"),
        ({"activation_bits": True}, "activation_bits is True"),
        ({"weight_scale": "learned"}, "weight_scale is 'learned'"),
        ({"scheme": "bit", "value_thresholds": [0.5]}, "scheme = 'bit' has one group only; leave value_thresholds out"),
        ({"activation_bits": 8, "attention_thresholds": [0.5]}, "activation_bits = 8 has one group only"),
        ({"scheme": "xnor", "activation_bits": 8}, "scheme = 'xnor' is about one-bit activations"),
        ({"activation_bits": 3}, "activation_bits is 3; it must be one of 1, 2, 4, 8"),
    ],
)
def test_switches_that_do_not_go_together_are_named(switches, message):
    with pytest.raises(InputError, match=message):
        Quantization.create(switches)


def test_boolean_attention_refuses_dropout_and_leaves_the_model_alone():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, attn_drop_rate=0.1)
    before = [type(module) for module in vit.modules()]
    with pytest.raises(InputError, match="'bibert' has no attention dropout; build with attn_drop_rate=0"):
        binarize(vit, {"scheme": "bibert"})
    assert [type(module) for module in vit.modules()] == before


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_more_bits_replace_the_scheme_of_one(bits):
    made = scheme_of(Quantization(activation_bits=bits))
    parts = [made.linear(), made.hidden(), made.query_key(), made.attention(), made.value()]
    assert all(isinstance(part, ElasticInteger) and part.bits == bits and not part.offset for part in parts)
    assert [part.signed for part in parts] == [True, True, True, False, True]
