import copy
import pickle

import pytest
import torch
from goldens import assert_close
from torch import nn
from torch.nn import functional

from gsb_vit.errors import InputError
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.edges import QuantizedConv2d, QuantizedLinear
from gsb_vit.nn.input_quantizers import ElasticInteger, ElasticSign
from gsb_vit.nn.rprelu import RPReLU


def binary_layer(seed: int = 0, **options) -> BinaryLinear:
    torch.manual_seed(seed)
    layer = BinaryLinear(70, 5, **options)
    nn.init.normal_(layer.shift, std=0.3)
    return layer


@pytest.mark.parametrize("per", ["row", "layer"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_binary_linear_is_the_product_of_the_dequantized_tensors(signed, bias, per):
    layer = binary_layer(signed=signed, bias=bias, weight_scale=per)
    x = torch.randn(3, 4, 70)
    y = layer(x)
    shifted, weight = x + layer.shift, layer.weight
    s = layer.input_quantizer.scale
    inputs = s * (torch.where(shifted >= 0, 1.0, -1.0) if signed else (shifted > 0.5 * s).float())
    mean = weight.abs().mean(1, keepdim=True) if per == "row" else weight.abs().mean()
    expected = functional.linear(inputs, mean * torch.where(weight >= weight.mean(), 1.0, -1.0), layer.bias)
    assert_close(y, expected.detach())


def test_binary_linear_gradients_are_those_of_the_dequantized_product():
    layer, x, grad = binary_layer(), torch.randn(6, 70), torch.randn(6, 5)
    layer(x)
    a = x.clone().requires_grad_()
    layer(a).backward(grad)
    signs, scale = layer.binary_weight()
    quantizer, b = layer.input_quantizer, (x + layer.shift).detach()
    grad_plane = grad @ (signs * scale).detach()  # towards s·B
    inside = (b.abs() <= quantizer.scale).float()
    assert_close(a.grad, grad_plane * inside)
    assert_close(layer.shift.grad, (grad_plane * inside).sum(0))
    slope = torch.where(b >= 0, 1.0, -1.0) - inside * b / quantizer.scale.detach()
    assert_close(quantizer.scale.grad, (grad_plane * slope).sum() / x.numel() ** 0.5)
    planes = torch.where(b >= 0, 1.0, -1.0) * quantizer.scale.detach()
    assert_close(layer.weight.grad, grad.T @ planes)
    assert_close(layer.bias.grad, grad.sum(0))


def test_binary_products_are_exact_integers():
    layer = binary_layer(signed=True).double()
    x = torch.randn(8, 70, dtype=torch.float64)
    (plane,), _ = layer.input_quantizer.quantize(x)
    signs, _ = layer.binary_weight()
    exact = plane.to(torch.int64) @ signs.to(torch.int64).T
    assert torch.equal(functional.linear(plane.float(), signs.float()).to(torch.int64), exact)


def test_clip_acts_before_the_shift():
    layer = binary_layer(signed=False, clip=10.0, activations="full", weights="full")
    x = torch.full((1, 70), 50.0)
    assert_close(layer(x), functional.linear(torch.full((1, 70), 10.0) + layer.shift, layer.weight, layer.bias))


def test_full_activations_leave_the_input_alone():
    layer, x = binary_layer(activations="full"), torch.randn(2, 70)
    signs, scale = layer.binary_weight()
    assert layer.input_quantizer is None
    assert_close(layer(x), functional.linear(x + layer.shift, signs * scale, layer.bias))


def test_from_linear_takes_over_the_parameters():
    linear = nn.Linear(6, 3).eval()
    for layer in (BinaryLinear.from_linear(linear), QuantizedLinear.from_linear(linear)):
        assert layer.weight is linear.weight and layer.bias is linear.bias and not layer.training


def test_scales_initialize_once_and_travel_with_the_state():
    quantizer = ElasticSign()
    quantizer(torch.full((4,), 3.0))
    quantizer(torch.full((4,), 9.0))
    assert quantizer.scale.item() == 6.0
    for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer)), ElasticSign()):
        twin.load_state_dict(quantizer.state_dict())
        twin(torch.full((4,), 9.0))
        assert twin.scale.item() == 6.0 and twin.is_ready
    fresh = ElasticSign()
    quantizer.load_state_dict(fresh.state_dict())
    assert not quantizer.is_ready
    quantizer(torch.full((4,), 9.0))
    assert quantizer.scale.item() == 18.0


def test_a_batch_of_zeros_gives_a_positive_scale():
    quantizer = ElasticSign()
    assert torch.isfinite(quantizer(torch.zeros(4))).all()
    assert quantizer.scale.item() == pytest.approx(1e-5)


def test_quantized_conv_weights_lie_on_each_channels_grid():
    conv = nn.Conv2d(3, 4, 2, 2)
    layer = QuantizedConv2d.from_conv(conv)
    x = torch.randn(2, 3, 8, 8)
    y = layer(x)
    assert_close(layer.weight_scale, (2 * conv.weight.abs().mean() / 127**0.5).expand(4))
    plane, scale = layer.quantized_weight()
    assert torch.equal(plane, plane.round()) and plane.abs().max() <= 128
    assert_close(y, functional.conv2d(x, plane * scale.view(-1, 1, 1, 1), conv.bias, 2).detach())
    y.sum().backward()
    assert layer.weight_scale.grad.shape == (4,)


def test_quantized_conv_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="edge_bits=32"):
        QuantizedConv2d.from_conv(nn.Conv2d(3, 4, 3, padding=1))


def test_quantized_head_agrees_with_itself_in_both_modes():
    torch.manual_seed(0)
    layer = QuantizedLinear.from_linear(nn.Linear(64, 5))
    nn.init.normal_(layer.shift)
    x, grad = torch.randn(9, 64), torch.randn(9, 5)
    layer(x)
    results = []
    for training in (True, False):
        layer.train(training).zero_grad()
        a = x.clone().requires_grad_()
        y = layer(a)
        y.backward(grad)
        results.append([y.detach(), a.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    for trained, evaluated in zip(*results, strict=True):
        assert_close(trained, evaluated, 1e-4)


def test_elastic_integer_refuses_one_bit():
    with pytest.raises(InputError, match="at least 2 bits, not 1"):
        ElasticInteger(1)


def test_rprelu_is_a_shifted_prelu():
    act = RPReLU(3).double()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(act(x), functional.leaky_relu(x, 0.25))
    with torch.no_grad():
        for parameter in act.parameters():
            parameter.normal_()
    assert torch.autograd.gradcheck(act, (x,))
    g, b, z = (p.detach() for p in (act.input_shift, act.slope, act.output_shift))
    assert_close(act(x), torch.where(x > g, x - g + z, b * (x - g) + z))
