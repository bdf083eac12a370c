import pytest
import torch
from goldens import assert_close
from timm.layers import Attention
from torch import nn

from gsb_vit.errors import InputError
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.attention_bias import FullAttentionBias, RelativeAttentionBias, relative_index
from gsb_vit.nn.binary_linear import BinaryLinear
from gsb_vit.nn.superposition_quantizers import AttentionSuperposition, ValueSuperposition
from gsb_vit.train.precision import fast_attention


def attention(binary: bool = True, bias: nn.Module | None = None, **options) -> GSBAttention:
    torch.manual_seed(0)
    layer = BinaryLinear if binary else nn.Linear
    quantizers = (AttentionSuperposition(), ValueSuperposition()) if binary else (None, None)
    module = GSBAttention(layer(24, 72), layer(24, 24), 3, bias, *quantizers, **options)
    for parameter in (module.q_shift, module.k_shift, module.v_shift, *(bias.parameters() if bias else ())):
        nn.init.normal_(parameter, std=0.2)
    return module


def test_training_and_evaluation_agree_in_value_and_gradient():
    module = attention(bias=FullAttentionBias(3, 6))
    module.proj = nn.Identity()  # a one-bit projection would turn the last bit of a difference into a whole one
    x = torch.randn(4, 6, 24)
    module(x)
    results = []
    for training in (True, False):
        module.train(training).zero_grad()
        a = x.clone().requires_grad_()
        y = module(a)
        y.square().sum().backward()
        results.append([y.detach(), a.grad, *(parameter.grad.clone() for parameter in module.parameters())])
    for trained, evaluated in zip(*results, strict=True):
        assert_close(trained, evaluated, 1e-4)


def test_evaluation_multiplies_integers_in_the_order_of_the_numerics():
    module = attention()
    module.proj = nn.Identity()
    x = torch.randn(2, 6, 24)
    module(x)
    module.eval()
    with torch.no_grad():
        q, k, v = module.project(x)
        A = module.attention_matrix(q, k)
        planes, s = module.attention_quantizer.quantize(A)
        signs, t = module.value_quantizer.quantize(v)
        y = torch.zeros(2, 3, 6, 8)
        for a in range(3):
            for b in range(3):
                product = planes[a].to(torch.int64) @ signs[b].to(torch.int64)
                y = y + product.float() * (s[a] * t[b])
        assert torch.equal(module(x), y.transpose(1, 2).reshape(2, 6, 24))


@pytest.mark.parametrize("with_bias", [True, False])
def test_full_precision_attention_is_softmax_plus_bias(with_bias):
    module = attention(binary=False, bias=FullAttentionBias(3, 6) if with_bias else None)
    x = torch.randn(2, 6, 24)
    q, k, v = module.project(x)
    A = (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1)
    if with_bias:
        A = A + module.attention_bias()
    assert_close(module.attention_matrix(q, k), A.detach())
    assert_close(module(x), module.proj((A @ v).transpose(1, 2).reshape(2, 6, 24)).detach())


def test_attention_in_bfloat16_on_a_cpu_is_written_out_within_the_step_only():
    module, theirs = attention(binary=False, bias=FullAttentionBias(3, 6)), Attention(24, 3)
    x = torch.randn(2, 6, 24)
    for part in (module, theirs):
        expected = part(x)
        with fast_attention([part]):
            assert part.fused_attn
        with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), fast_attention([part]):
            assert not part.fused_attn
            torch.testing.assert_close(part(x).float(), expected, rtol=0.03, atol=0.03)
            raise KeyError
        assert part.fused_attn and torch.equal(part(x), expected)


def test_dropout_reaches_the_attention_matrix_before_its_quantizer():
    module = attention(bias=FullAttentionBias(3, 6), attn_drop=0.5)
    x = torch.randn(2, 6, 24)
    dropped = module.attention_matrix(*module.project(x)[:2]) == 0
    assert 0.3 < dropped.float().mean() < 0.7
    module.eval()
    assert torch.equal(module(x), module(x))
    full = attention(binary=False, bias=FullAttentionBias(3, 6), attn_drop=0.5)
    assert not torch.equal(full(x), full(x))


def test_relative_index_follows_the_packed_format():
    height, width, P = 2, 3, 2
    index = relative_index((height, width), P)
    offset = (2 * height - 1) * (2 * width - 1)
    for i in range(P + height * width):
        for j in range(P + height * width):
            if i < P and j < P:
                expected = offset + i * P + j
            elif i < P:
                expected = offset + P * P + i
            elif j < P:
                expected = offset + P * P + P + j
            else:
                (yi, xi), (yj, xj) = divmod(i - P, width), divmod(j - P, width)
                expected = (yi - yj + height - 1) * (2 * width - 1) + (xi - xj + width - 1)
            assert index[i, j] == expected
    assert index.unique().tolist() == list(range(offset + P * P + 2 * P))


def test_biases_start_at_zero_and_learn():
    for bias in (RelativeAttentionBias(3, (2, 2), 2), FullAttentionBias(3, 6)):
        assert bias().shape == (3, 6, 6) and not bias().any()
        bias().sum().backward()
        (parameter,) = bias.parameters()
        assert parameter.grad.sum() == 3 * 36


def test_masks_are_refused():
    module = attention()
    with pytest.raises(InputError, match="mask"):
        module(torch.randn(1, 6, 24), attn_mask=torch.zeros(6, 6))
    with pytest.raises(InputError, match="causal"):
        module(torch.randn(1, 6, 24), is_causal=True)


def test_one_quantizer_without_the_other_is_refused():
    with pytest.raises(InputError, match="both"):
        GSBAttention(nn.Linear(4, 12), nn.Linear(4, 4), 1, None, AttentionSuperposition())


def test_limits_are_stored_only_for_the_fixed_scope():
    with pytest.raises(InputError, match="fixed"):
        AttentionSuperposition().fixed_limits()
    assert AttentionSuperposition(threshold_scope="fixed").fixed_limits().shape == (2, 1)
    assert ValueSuperposition((0.5,), threshold_scope="fixed").fixed_limits().shape == (1, 2)
