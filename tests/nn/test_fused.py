"""Fused layers against the same layers module by module: equal values, gradients equal up to rounding."""

import copy

import pytest
import torch
from goldens import relative_error
from needs import skip_without
from torch import Tensor, nn

from gsb_vit.errors import InputError
from gsb_vit.nn import fused
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.attention_bias import FullAttentionBias
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.fused.native import NativeKernels
from gsb_vit.nn.fused.pytorch import TorchKernels
from gsb_vit.nn.input_quantizers import ElasticSign, ElasticStep
from gsb_vit.nn.mlp import BinaryMlp
from gsb_vit.nn.superposition_quantizers import AttentionSuperposition, ValueSuperposition

HERE = list(fused.available())
CLASSES = (NativeKernels, TorchKernels)


@pytest.fixture(params=[*(HERE or ["none"]), fused.IN_PYTORCH], autouse=True)
def kernels(request, monkeypatch) -> str:
    """Run with the kernels of each instruction set that is built and that this processor has, and with PyTorch's."""
    if request.param == "none":
        skip_without("fused kernels", "an extension or processor that has them")
    monkeypatch.setenv("GSB_VIT_FUSED", request.param)
    return request.param


@pytest.fixture
def both_ways(kernels, monkeypatch):
    """Run a module on x through the kernels and without them: (y, gradient of x, gradients of the parameters)."""

    def run(module: nn.Module, x: Tensor, tolerance: float = 2e-5, same: float = 0.0, autocast: bool = False) -> None:
        results = []
        if kernels == fused.IN_PYTORCH:
            tolerance = max(tolerance, 1e-4)  # of a scale: a sum that all but cancels
        for switch in (kernels, "0"):
            monkeypatch.setenv("GSB_VIT_FUSED", switch)
            part, a = copy.deepcopy(module).train(), x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = part(a)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(7))
            y.backward(grad.to(y.dtype))
            gradients = {name: p.grad for name, p in part.named_parameters()}
            results.append((y.detach(), a.grad, gradients, dict(part.named_buffers())))
        (y, grad_x, gradients, buffers), (y2, grad_x2, gradients2, buffers2) = results
        assert y.dtype == y2.dtype and relative_error(y, y2) <= same
        assert relative_error(grad_x, grad_x2) <= tolerance
        for name, expected in gradients2.items():
            assert relative_error(gradients[name], expected) <= tolerance, name
        assert all(torch.equal(buffers[name], buffers2[name]) for name in buffers)

    return run


def calls(monkeypatch, name: str) -> list[int]:
    """Count the calls of a method of the kernels, so that a comparison of a path with itself fails."""
    count: list[int] = []

    def counting(original):
        return lambda *args, **options: (count.append(1), original(*args, **options))[1]

    for kind in CLASSES:
        monkeypatch.setattr(kind, name, counting(getattr(kind, name)))
    return count


def linear(signed: bool, width: int, out: int, **options) -> BinaryLinear:
    torch.manual_seed(width * 1000 + out)
    quantizer = ElasticSign() if signed else ElasticStep()
    layer = BinaryLinear(width, out, input_quantizer=quantizer, **options)
    if layer.shift is not None:
        nn.init.normal_(layer.shift, std=0.1)
    layer.train()(torch.randn(9, width))
    return layer


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", [1, 15, 16, 63, 64, 65, 192, 513])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_linear(signed, width, rows, both_ways, monkeypatch):
    count = calls(monkeypatch, "multiply")
    both_ways(linear(signed, width, 37), torch.randn(2, rows, width))
    assert len(count) == 1


@pytest.mark.parametrize("options", [{"bias": False}, {"with_shift": False}, {"weight_scale": "layer"}, {"clip": 0.5}])
@pytest.mark.parametrize("signed", [True, False])
def test_linear_options(options, signed, both_ways):
    both_ways(linear(signed, 48, 20, **options), torch.randn(3, 11, 48))


@pytest.mark.parametrize("signed", [True, False])
def test_ties_zeros_and_clipped_inputs(signed, both_ways):
    layer = linear(signed, 16, 4, clip=1.25)  # |x| = clip: PyTorch's versions differ
    nn.init.zeros_(layer.shift)
    layer.input_quantizer.scale.data.fill_(2.0)
    values = [0.0, -0.0, 1.0, -1.0, 1.0000001, 2.0, -2.0, 2.5, 0.99999994, 1e-30, -1e-30, -3.0, 0.5, -0.5, 9.0, -9.0]
    both_ways(layer, torch.tensor(values).repeat(3, 1))


def test_what_the_kernels_cannot_do_runs_in_pytorch(monkeypatch):
    count = calls(monkeypatch, "multiply")
    for layer, x in (
        (linear(True, 16, 4).double(), torch.randn(3, 16, dtype=torch.float64)),
        (linear(True, 16, 4, weight_bits=2), torch.randn(3, 16)),
        (linear(True, 16, 4, weight_scale="learned_row"), torch.randn(3, 16)),
        (linear(True, 16, 4).eval(), torch.randn(3, 16)),
    ):
        layer(x)
    assert not count


@pytest.mark.parametrize(("autocast", "blocks"), [(False, 1), (True, 1), (False, 4), (True, 4)])
def test_mlp(both_ways, autocast, blocks, monkeypatch):
    bytes_of_hidden = 2 * 19 * 100 * (2 if autocast else 4)
    for kind in CLASSES:
        monkeypatch.setattr(kind, "block_bytes", bytes_of_hidden // blocks)
    count = calls(monkeypatch, "encode")
    torch.manual_seed(1)
    mlp = BinaryMlp(48, 100)
    mlp.fc1, mlp.fc2 = linear(True, 48, 100), linear(False, 100, 48, clip=10.0)
    if autocast:
        both_ways(mlp, torch.randn(2, 19, 48), tolerance=0.1, same=0.05, autocast=True)
    else:
        both_ways(mlp, torch.randn(2, 19, 48))
    assert len(count) == blocks


def attention(head_dim: int, tokens: int, bias: bool = True, **options) -> GSBAttention:
    torch.manual_seed(head_dim + tokens)
    width = 2 * head_dim
    thresholds = options.pop("thresholds", (0.7, 0.9))
    gradient = options.pop("gradient", "aligned")
    weights = options.pop("qkv", "binary")
    table = FullAttentionBias(2, tokens) if bias else None
    module = GSBAttention(
        linear(True, width, 3 * width, weights=weights),
        linear(True, width, width),
        2,
        table,
        AttentionSuperposition(thresholds, **options),
        ValueSuperposition(thresholds, gradient=gradient, **options),
    )
    for name in ("q_shift", "k_shift", "v_shift"):
        nn.init.normal_(getattr(module, name), std=0.2)
    if table is not None:
        nn.init.normal_(table.bias, std=0.01)
    module.train()(torch.randn(3, tokens, width))
    return module


@pytest.mark.parametrize("head_dim", [16, 32, 64, 112])
@pytest.mark.parametrize("tokens", [2, 5, 16, 66])
def test_attention(head_dim, tokens, both_ways, monkeypatch):
    count = calls(monkeypatch, "attend")
    both_ways(attention(head_dim, tokens), torch.randn(3, tokens, 2 * head_dim), tolerance=1e-4, same=1e-6)
    assert len(count) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"thresholds": ()},
        {"thresholds": (0.3, 0.5, 0.8)},
        {"threshold_scope": "batch"},
        {"threshold_scope": "fixed"},
        {"gradient": "authors"},
        {"qkv": "full"},
    ],
)
def test_attention_options(options, both_ways):
    both_ways(attention(32, 19, **options), torch.randn(4, 19, 64), tolerance=1e-4, same=1e-6)


@pytest.mark.parametrize("kernels", HERE or ["none"], indirect=True)
def test_results_do_not_depend_on_the_number_of_threads(kernels):
    module, x = attention(64, 40), torch.randn(5, 40, 128)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            core = module._fused_core(x.clone().requires_grad_())
            core.square().sum().backward()
            results.append([core.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
            module.zero_grad()
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_less_is_kept_for_the_backward_pass(kernels, monkeypatch):
    torch.manual_seed(0)
    mlp = BinaryMlp(64, 256)
    mlp.fc1, mlp.fc2 = linear(True, 64, 256), linear(False, 256, 64, clip=10.0)
    sizes = []
    for switch in (kernels, "0"):
        monkeypatch.setenv("GSB_VIT_FUSED", switch)
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mlp.train()(torch.randn(500, 64, requires_grad=True))
        sizes.append(sum(kept.values()))
    assert sizes[0] < 0.3 * sizes[1]


def test_every_instruction_set_gives_the_same_numbers(monkeypatch):
    if len(HERE) < 2:
        skip_without("fused kernels side by side", "a second instruction set")
    torch.manual_seed(0)
    block = nn.Sequential(attention(48, 21), BinaryMlp(96, 200))
    block[1].fc1, block[1].fc2 = linear(True, 96, 200), linear(False, 200, 96, clip=10.0)
    x, results = torch.randn(3, 21, 96), []
    for name in HERE:
        monkeypatch.setenv("GSB_VIT_FUSED", name)
        a = x.clone().requires_grad_()
        y = block(a)
        y.square().sum().backward()
        results.append([y.detach(), a.grad, *(p.grad.clone() for p in block.parameters())])
        block.zero_grad()
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_unknown_or_missing_kernels_are_refused(monkeypatch):
    missing = next(name for name in fused.INSTRUCTION_SETS if name not in HERE)
    for name in (missing, "sse"):
        monkeypatch.setenv("GSB_VIT_FUSED", name)
        with pytest.raises(InputError, match=f"GSB_VIT_FUSED={name}.*{HERE[0]}"):
            fused.kernel_name()
