"""The corner cases of docs/numerics.md: PyTorch, the NumPy reference and every backend say the same.

Each case sets up a small model so that its corner is met in every block, and says by what it is known. PyTorch's bits
must then be the reference's, and the reference's logits, bit for bit, those of every backend.
"""

import numpy as np
import pytest
import torch
from random_trained import random_trained

from gsb_vit.export.pack import export_model
from gsb_vit.export.parity import torch_bits
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.reference import ReferenceModel

TOKENS = 18
SHARE = np.float32(1) / np.float32(TOKENS)  # every entry of A where scores are equal and there is no bias


def equal_scores(model):
    for block in model.blocks:
        block.attn.q_shift.fill_(1e4)
        block.attn.k_shift.fill_(1e4)


def nothing_above_zero(model):
    for block in model.blocks:
        for table in block.attn.attention_bias.parameters():
            table.fill_(-2)


def value_scale(model):
    """v = dot / 8, exactly: equal magnitudes in every row of weights, scales that are powers of two, no bias."""
    for block in model.blocks:
        qkv = block.attn.qkv
        qkv.weight.copy_(torch.where(qkv.weight >= 0, 0.5, -0.5))
        qkv.input_quantizer.scale.fill_(0.25)
        qkv.bias.zero_()
        block.attn.v_shift.zero_()


def value_bias(model, bias):
    for block in model.blocks:
        block.attn.qkv.bias[-72:] = bias


def fixed_at(model, attention_extreme, value_extreme):
    for block in model.blocks:
        block.attn.attention_quantizer.running_extremes.fill_(float(attention_extreme))
        block.attn.value_quantizer.running_extremes.copy_(torch.tensor([value_extreme, -value_extreme]))


def half_at(model, scale):
    for block in model.blocks:
        block.attn.attention_quantizer.scale[0] = float(scale)


def alike_tokens(model):
    """Every token is 1, so LayerNorm gives exactly 0, and with half of each row's weights negative every dot is 0."""
    model.patch_embed.proj.weight.zero_()
    model.patch_embed.proj.bias.zero_()
    model.pos_embed.zero_()
    model.cls_token.fill_(1)
    model.dist_token.fill_(1)
    model.pos_embed[:, 2:] = 1
    for block in model.blocks:
        block.norm1.bias.zero_()
        block.attn.qkv.shift.zero_()
        block.attn.qkv.weight.copy_(torch.where(torch.arange(72) % 2 == 0, 0.5, -0.5).expand(216, 72))
        block.attn.qkv.bias.zero_()
        block.attn.v_shift.zero_()


def case_nothing_above_zero(model):
    nothing_above_zero(model)
    for block in model.blocks:
        block.attn.proj.shift.zero_()


def check_nothing_above_zero(step, first):
    assert step["attention"].max() <= 0
    assert not step["attention_masks"].any()
    assert not step["product"].any()
    assert step["proj.input"].all()  # 0 counts as +1


def check_full_groups(step, first):
    assert (step["attention"] == SHARE).all()
    assert step["attention_masks"][1:].all()


def case_ties(model):
    equal_scores(model)
    half_at(model, 2 * SHARE)
    fixed_at(model, 2 * SHARE, 1e3)


def check_ties(step, first):
    """A equals half the scale and, at 0.5 · twice the share, the limit; the Value lies far inside its limits."""
    assert (step["attention"] == SHARE).all()
    assert not step["attention_masks"].any()
    assert not step["value_masks"][1].any()


def case_one_below_the_tie(model):
    case_ties(model)
    below = 2 * np.nextafter(SHARE, np.float32(0))
    half_at(model, below)
    fixed_at(model, below, 1e3)


def check_one_below_the_tie(step, first):
    assert step["attention_masks"].all()


def case_full_value_groups(model):
    value_bias(model, 100)


def check_full_value_groups(step, first):
    assert step["value_masks"].all() and step["value.bits"].all()


def case_negative_value(model):
    value_bias(model, -100)


def check_negative_value(step, first):
    """V_max < 0: nothing is above ratio · V_max, but everything is below ratio · V_min."""
    assert step["value"].max() < 0 and step["value_masks"].all() and not step["value.bits"].any()


def check_zero_value(step, first):
    """V_max = V_min = 0: zero is neither above nor below zero, and its sign is +1. What follows moves the tokens."""
    if first:
        assert step["qkv.input"].all()  # LayerNorm's 0 is +1
        assert not step["value"].any() and step["value.bits"].all()
        assert not step["value_masks"][1:].any()
        assert (step["attention"] == SHARE).all() and step["attention_masks"][1:].all()


def case_value_ties(model):
    value_scale(model)


def check_value_ties(step, first):
    upper, lower = 0.5 * step["value"].max(), 0.5 * step["value"].min()
    ties = (step["value"] == upper) | (step["value"] == lower)
    assert not step["value_masks"][1][ties].any()
    next_up = (step["value"] == upper + 0.25) | (step["value"] == lower - 0.25)  # dots differ by two
    assert step["value_masks"][1][next_up].all()
    step["ties"] = ties.sum()


NO_BIAS = {"attention_bias": "none"}
HALF = {"attention_thresholds": (0.5,), "value_thresholds": (0.5,)}
CASES = {
    "no attention above zero": (case_nothing_above_zero, check_nothing_above_zero, {}),
    "no attention above zero, many groups": (
        case_nothing_above_zero, check_nothing_above_zero, {"attention_thresholds": (0.2, 0.5, 0.8)},
    ),
    "equal scores, full groups": (equal_scores, check_full_groups, NO_BIAS),
    "ties at half the scale and at the limit": (case_ties, check_ties, {**NO_BIAS, **HALF, "threshold_scope": "fixed"}),
    "the next number above the limit": (
        case_one_below_the_tie, check_one_below_the_tie, {**NO_BIAS, **HALF, "threshold_scope": "fixed"},
    ),
    "full Value groups": (case_full_value_groups, check_full_value_groups, {}),
    "no Value above zero": (case_negative_value, check_negative_value, {}),
    "zero everywhere": (alike_tokens, check_zero_value, NO_BIAS),
    "ties of the Value": (case_value_ties, check_value_ties, HALF),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    set_up, check, switches = CASES[request.param]
    model, preprocessing, pictures = random_trained(seed=11, switches=switches)
    with torch.no_grad():
        set_up(model)
    path = tmp_path / "model.safetensors"
    export_model(model, path, class_names=[f"class {n}" for n in range(6)], preprocessing=preprocessing)
    return model, check, path, preprocessing, pictures[:6]


def test_pytorch_and_the_reference_agree(case):
    model, check, path, preprocessing, pictures = case
    reference = ReferenceModel(packed_file.read(path))
    expected = torch_bits(model, normalize(pictures, preprocessing))
    ties = 0
    for number, picture in enumerate(pictures):
        trace = reference.trace(picture)
        for name, bits in expected.items():
            assert np.array_equal(trace[name], bits[number]), name
        for block in range(2):
            prefix = f"blocks.{block}.attn."
            step = {name[len(prefix) :]: value for name, value in trace.items() if name.startswith(prefix)}
            check(step, first=block == 0)
            ties += step.get("ties", 1)
    assert ties > 0
    with torch.no_grad():
        logits = model(normalize(pictures, preprocessing)).numpy()
    assert reference.logits(pictures).tobytes() == logits.tobytes()


def test_every_backend_agrees_with_the_reference(case):
    native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
    _, _, path, _, pictures = case
    expected = ReferenceModel(packed_file.read(path)).logits(pictures).tobytes()
    for backend in native.backends():
        for threads in (1, 2):
            assert native.Model(str(path), threads, backend).logits(pictures).tobytes() == expected, backend
