import math

import pytest
import torch
from goldens import assert_close, case
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from gsb_vit.nn import quantize
from gsb_vit.nn.input_quantizers import ElasticInteger, ElasticSign, ElasticStep

FLOATS = arrays("float32", (3, 7), elements=st.floats(-50, 50, width=32))
SCALES = st.floats(0.0625, 8, width=32)


def graph(case_: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return case_["x"].clone().requires_grad_(), case_["alpha0"].clone().requires_grad_()


def module_for(operator: str) -> torch.nn.Module:
    makers = {
        "sign1": ElasticSign,
        "unsigned1": ElasticStep,
        "signed8": lambda: ElasticInteger(8),
        "unsigned8": lambda: ElasticInteger(8, signed=False),
    }
    return makers[operator]()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("operator", ["sign1", "unsigned1", "signed8", "unsigned8"])
def test_elastic_matches_the_authors(operator, index):
    data = case("operators", f"{operator}/{index}")
    module = module_for(operator)
    module.load_state_dict({"scale": data["alpha0"], "initialized": torch.tensor(True)})
    x = data["x"].clone().requires_grad_()
    y = module(x)
    y.backward(data["grad_out"])
    assert_close(y, data["y"])
    assert_close(x.grad, data["grad_x"])
    assert_close(module.scale.grad, data["grad_alpha0"])


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("operator", ["signed8", "unsigned8"])
def test_factored_integers_match_the_authors(operator, index):
    data = case("operators", f"{operator}/{index}")
    module = module_for(operator)
    module.load_state_dict({"scale": data["alpha0"], "initialized": torch.tensor(True)})
    x = data["x"].clone().requires_grad_()
    (plane,), scale = module.quantize(x)
    offset = 0 if module.signed else data["x"].min()
    y = plane * scale + offset
    y.backward(data["grad_out"])
    assert torch.equal(plane, plane.round()) and plane.min() >= module.low and plane.max() <= module.high
    assert_close(y, data["y"])
    assert_close(x.grad, data["grad_x"])
    assert_close(module.scale.grad, data["grad_alpha0"], 1e-4)  # a difference of two larger sums


@pytest.mark.parametrize("operator", ["sign1", "unsigned1", "signed8", "unsigned8"])
def test_initial_scale_matches_the_authors(operator):
    data = case("operators", f"init_{operator}")
    module = module_for(operator)
    assert not module.initialized
    y = module(data["x"])
    assert module.initialized and module.is_ready
    assert_close(module.scale, data["alpha0"])
    assert_close(y, data["y"])


@pytest.mark.parametrize("per_row", [False, True])
def test_binary_weight_matches_the_authors(per_row):
    data = case("operators", "weight_rowwise" if per_row else "weight_layerwise")
    weight = data["w"].clone().requires_grad_()
    signs, scale = quantize.binary_weight(weight, per_row)
    (signs * scale).backward(data["grad_out"])
    assert scale.shape == ((6, 1) if per_row else (1, 1))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert_close(signs * scale, data["y"])
    assert_close(weight.grad, data["grad_w"])


def test_binary_weight_of_zeros_is_finite():
    weight = torch.zeros(2, 3, requires_grad=True)
    signs, scale = quantize.binary_weight(weight, per_row=True)
    (signs * scale).sum().backward()
    assert torch.equal(signs, torch.ones(2, 3))
    assert_close(weight.grad, torch.ones(2, 3))


def elementwise_oracle(x: float, s: float, kind: str) -> tuple[float, float, float]:
    """(B, dy/dx, dy/ds) of one element in plain Python: METHOD's equations with g = 1 and k = 1."""
    r = x / s
    if kind == "sign":
        inside = abs(x) <= s
        b = 1.0 if x >= 0 else -1.0
        return b, float(inside), b - (r if inside else 0.0)
    if kind == "step":
        inside = 0 <= r <= 1
        b = 1.0 if r > 0.5 else 0.0
        return b, float(inside), (b - r) if inside else float(r > 1)
    inside = -128 <= r <= 127
    b = float(max(-128, min(127, round(r))))  # Python rounds half to even too
    return b, float(inside), (b - r) if inside else b


TABLE = [-300.0, -128.0, -2.0, -1.0, -0.5, -0.25, -0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 127.0, 200.0]


@pytest.mark.parametrize("kind", ["sign", "step", "integer"])
@pytest.mark.parametrize("x", TABLE)
@pytest.mark.parametrize("s", [0.5, 1.0, 2.0])
def test_elastic_table(kind, x, s):
    tensor, scale = torch.tensor([x], requires_grad=True), torch.tensor(s, requires_grad=True)
    functions = {
        "sign": quantize.elastic_sign,
        "step": quantize.elastic_step,
        "integer": lambda a, b: quantize.elastic_integer(a, b, -128, 127),
    }
    plane = functions[kind](tensor, scale)
    (plane * scale).sum().backward()
    b, grad_x, grad_s = elementwise_oracle(x, s, kind)
    assert (plane.item(), tensor.grad.item()) == (b, grad_x)
    assert scale.grad.item() == pytest.approx(grad_s, rel=1e-6, abs=1e-6)


def test_lsq_per_channel_gradient_is_that_of_each_channel():
    weight, grad = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    scale = torch.tensor([0.01, 0.02, 0.5, 1e-7]).view(4, 1, 1, 1).requires_grad_()
    quantize.lsq(weight, scale, -128, 127, 0.3).backward(grad)
    for channel in range(4):
        alone = scale.detach()[channel].clone().requires_grad_()
        quantize.lsq(weight[channel], alone, -128, 127, 0.3).backward(grad[channel])
        assert_close(scale.grad[channel], alone.grad)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-7, 0.3])
def test_scale_ste_passes_the_gradient_through_the_maximum(value):
    scale = torch.tensor(value, requires_grad=True)
    used = quantize.scale_ste(scale, 0.25)
    used.backward(torch.tensor(8.0))
    assert used.item() == pytest.approx(max(value, 1e-5))
    assert scale.grad.item() == 2.0


@given(FLOATS, SCALES)
@settings(max_examples=50, deadline=None)
def test_outputs_lie_on_the_grid_and_quantizing_twice_changes_nothing(x, s):
    x, scale = torch.from_numpy(x), torch.tensor(s)
    y = quantize.elastic_sign(x, scale) * scale
    assert bool((y.abs() == scale).all())
    assert torch.equal(quantize.elastic_sign(y, scale) * scale, y)
    y = quantize.elastic_step(x, scale) * scale
    assert bool(((y == 0) | (y == scale)).all())
    assert torch.equal(quantize.elastic_step(y, scale) * scale, y)
    y = quantize.lsq(x, scale, -8, 7, 1.0)
    assert torch.equal(quantize.lsq(y, scale, -8, 7, 1.0), y)
    assert bool(((y - x).abs() <= scale / 2 + 1e-4)[(x / scale > -8) & (x / scale < 7)].all())


@given(FLOATS, SCALES)
@settings(max_examples=50, deadline=None)
def test_signs_are_odd_away_from_zero_and_one_at_zero(x, s):
    x = torch.from_numpy(x)
    nonzero = x != 0
    assert torch.equal(quantize.sign(x)[nonzero], -quantize.sign(-x)[nonzero])
    assert bool((quantize.sign(torch.tensor([0.0, -0.0])) == 1).all())


def test_low_precision_keeps_its_dtype_and_sums_gradients_in_float32():
    x = torch.full((4096,), 0.1, dtype=torch.bfloat16, requires_grad=True)
    scale = torch.tensor(1.0, requires_grad=True)
    plane = quantize.elastic_sign(x, scale)
    assert plane.dtype == torch.bfloat16
    plane.sum().backward()
    assert scale.grad.dtype == torch.float32 and math.isfinite(scale.grad.item())
    assert scale.grad.item() == pytest.approx(-4096 * float(torch.tensor(0.1, dtype=torch.bfloat16)), rel=1e-3)
