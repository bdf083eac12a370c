"""The convolutional tokenizer: its arithmetic against plain loops, its training, its saved state, its refusals."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from gsb_vit.errors import InputError
from gsb_vit.models.build import build_model
from gsb_vit.nn import exact
from gsb_vit.nn.tokenizer import BinaryConv, ConvEmbed, ConvTokenizer, QuantizedTokenizer
from gsb_vit.quantization import Quantization

SCALING = ((0.48, 0.46, 0.41), (0.23, 0.22, 0.23))


def tokenizer(*channels, size=(16, 24), seed=0, bits=8):
    """A quantized tokenizer with lived-in norms, its scales set, and whole pixels (4, 3, H, W)."""
    torch.manual_seed(seed)
    plain = ConvTokenizer(channels)
    for norm in plain.norms:
        norm.weight.data.uniform_(-1.5, 1.5)
        norm.bias.data.normal_()
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.2, 2)
    found = QuantizedTokenizer.from_tokenizer(plain, bits)
    pixels = torch.randint(0, 256, (4, 3, *size)).float()
    found.eval()(normalized(pixels))
    return found, pixels


def normalized(pixels):
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in SCALING)
    return (pixels / 255 - mean) / std


def test_full_precision_is_convolutions_with_relu_between():
    torch.manual_seed(0)
    plain = ConvTokenizer((5, 7)).eval()
    x = torch.randn(2, 3, 8, 12)
    y = plain.norms[0](F.conv2d(x, plain.convs[0].weight, None, 2, 1))
    y = plain.norms[1](F.conv2d(y.clamp(min=0), plain.convs[1].weight, None, 2, 1))
    assert y.shape == (2, 7, 2, 3)
    torch.testing.assert_close(plain(x), y)


@pytest.mark.parametrize("bits", [8, 1])
@pytest.mark.parametrize("channels", [(6, 11), (5, 180, 9)])
@torch.no_grad()
def test_whole_pixels_give_what_the_float_operations_give(channels, bits):
    found, pixels = tokenizer(*channels, bits=bits)
    assert found.level_bits == (bits,) * (len(channels) - 1)
    plain = found(normalized(pixels))
    found.pixel_scaling = SCALING
    exactly = found(normalized(pixels))
    assert exactly.dtype == torch.float64 and plain.dtype == torch.float32
    offset = found.position_offset(SCALING).view(1, -1, 1, 1)
    # A level may fall on the other side of a tie, so a few numbers differ by a level times a weight.
    close = torch.isclose(exactly + offset, plain.double(), rtol=1e-3, atol=1e-4)
    assert close.double().mean() > 0.99
    assert found(normalized(pixels) + 1e-2).dtype == torch.float32, "these are of no whole pixels"


@torch.no_grad()
def test_a_convolution_equals_integer_loops():
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 256, (2, 5, 4, 6)), rng.integers(-128, 128, (3, 5, 3, 3))
    scale = rng.uniform(0.1, 1, 3).astype(np.float32)
    found = exact.convolution(*(torch.from_numpy(a).float() for a in (x, weight)), torch.from_numpy(scale))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0)))
    for b, o, i, j in np.ndindex(2, 3, 2, 3):
        parts = [
            np.float32(int((padded[b, :, 2 * i + r, 2 * j : 2 * j + 3] * weight[o, :, r]).sum())) * scale[o]
            for r in range(3)
        ]
        assert found[b, o, i, j].item() == (parts[0] + parts[1]) + parts[2]


@torch.no_grad()
def test_a_one_bit_convolution_equals_integer_loops():
    rng = np.random.default_rng(0)
    x, weight = rng.integers(0, 2, (2, 5, 4, 6)), rng.choice([-1, 1], (3, 5, 3, 3))
    scale = rng.uniform(-1, 1, 3).astype(np.float32)
    found = exact.binary_convolution(*(torch.from_numpy(a).float() for a in (x, weight)), torch.from_numpy(scale))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (1, 0)))
    for b, o, i, j in np.ndindex(2, 3, 2, 3):
        total = (padded[b, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] * weight[o]).sum()
        assert found[b, o, i, j].item() == np.float32(int(total)) * scale[o]


def test_a_one_bit_convolution_by_hand():
    """s_x·s_w times whole numbers: ±1 weights with a scale a channel, inputs 1 above half their scale, else 0."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(5, 3, 3, 2, 1, bias=False)
    layer = BinaryConv.from_conv(conv)
    assert layer.weight is conv.weight
    x = torch.randn(2, 5, 4, 6, requires_grad=True)
    y = layer(x)
    scale = layer.input_quantizer.scale.item()
    assert scale == pytest.approx(4 * x.abs().mean().item(), rel=1e-5)
    sizes = conv.weight.abs().mean((1, 2, 3))
    signs = torch.where(conv.weight >= conv.weight.mean(), 1.0, -1.0)
    bits = (x > scale / 2).float()
    expected = F.conv2d(bits, signs, None, 2, 1) * (scale * sizes).view(-1, 1, 1)
    torch.testing.assert_close(y, expected)
    y.square().mean().backward()
    assert (x.grad[(x < 0) | (x > scale)] == 0).all() and x.grad.abs().sum() > 0
    assert layer.weight.grad.abs().sum() > 0 and layer.input_quantizer.scale.grad != 0
    # Inputs ±1 with padding −1 differ by a constant a channel, which a norm takes away.
    signed = F.conv2d(F.pad(2 * bits - 1, (1, 0, 1, 0), value=-1.0), signs, None, 2)
    constant = signed - 2 * F.conv2d(F.pad(bits, (1, 0, 1, 0)), signs, None, 2)
    torch.testing.assert_close(constant, -signs.sum((1, 2, 3)).view(-1, 1, 1).expand_as(constant))


def test_one_bit_levels_round_half_to_even():
    y = torch.tensor([-3.0, -0.0, 0.5, 0.50001, 1.5, 7.0, torch.inf, -torch.inf, torch.nan])
    assert exact.levels(y, 1).tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0]


def test_sums_beyond_float32_are_exact():
    """180 channels of the largest numbers: 3·180·255·128 > 2^24, and odd."""
    weight = torch.full((1, 180, 3, 3), -127.0)
    weight[0, 0, 0, 2] = -126
    levels = torch.full((1, 180, 2, 2), 255.0)
    found = exact.convolution(levels, weight, torch.ones(1))
    row = np.float32(-127 * 255 * 360)
    assert found.item() == (np.float32(0) + row) + row


def test_levels_round_half_to_even_and_stay_in_range():
    y = torch.tensor([-3.0, -0.0, 0.5, 1.5, 2.5, 254.5, 255.4, 300.0, torch.inf, -torch.inf, torch.nan])
    assert exact.levels(y).tolist() == [0, 0, 0, 2, 2, 254, 255, 255, 255, 0, 0]


def test_inputs_are_cut_at_zero_in_training_as_in_evaluation():
    found, pixels = tokenizer(6, 4)
    quantizer = found.layers[1].input_quantizer
    x = torch.tensor([-2.0, 0.3, 1e6], requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    scale = quantizer.scale.item()
    np.testing.assert_allclose(y.detach(), [0, round(0.3 / scale) * scale, 255 * scale], rtol=1e-5)
    assert x.grad.tolist() == [0, 1, 0]
    found.train()(normalized(pixels)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in found.parameters())
    assert all(layer.weight_scale.grad.abs().sum() > 0 for layer in found.layers)


def test_one_bit_convolutions_train():
    found, pixels = tokenizer(6, 9, 4, bits=1)
    found.train()(normalized(pixels)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in found.parameters())
    assert all(layer.input_quantizer.scale.grad != 0 for layer in found.layers[1:])


@pytest.mark.parametrize("bits", [8, 1])
def test_state_copies_and_twins_state(bits):
    found, pixels = tokenizer(6, 4, bits=bits)
    found.pixel_scaling = SCALING
    twin = copy.deepcopy(found)
    fresh = QuantizedTokenizer.from_tokenizer(ConvTokenizer((6, 4)), bits).eval()
    assert not fresh.is_ready
    fresh.load_state_dict(found.state_dict())
    fresh.pixel_scaling = SCALING
    x = normalized(pixels)
    assert torch.equal(found(x), twin(x)) and torch.equal(found(x), fresh(x))
    names = set(ConvTokenizer((6, 4)).state_dict())
    assert names < set(found.state_dict()), "a stage starts from the twin where names match"


def test_patch_size_is_the_stride():
    assert ConvEmbed((4, 8), img_size=(16, 24), patch_size=8, embed_dim=12).grid_size == (2, 3)
    with pytest.raises(InputError, match=r"3 convolutions.*8 × 8 pixels.*patch_size = 4.*give patch_size = 8"):
        ConvEmbed((4, 8), img_size=16, patch_size=4, embed_dim=12)
    with pytest.raises(InputError, match=r"img_size = .* is no multiple of patch_size = 8"):
        ConvEmbed((4, 8), img_size=20, patch_size=8, embed_dim=12)


@pytest.mark.parametrize("architecture", ["gsb_vit_tiny_patch16_224", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_every_stage_trains_with_it(architecture, pool):
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    args |= {"tokenizer_channels": [6], "global_pool": pool}
    one_bit = Quantization(tokenizer_bits=1)
    for switches in (Quantization.full_precision(), Quantization.stage1(), Quantization.stage2(), one_bit):
        model = build_model(architecture, args, 3, switches).train()
        model(torch.randn(4, 3, 16, 16)).sum().backward()
        assert model.patch_embed.proj.convs[0].weight.grad.abs().sum() > 0
        assert isinstance(model.patch_embed.proj, QuantizedTokenizer) == (switches.edge_bits == 8)
        assert isinstance(model.patch_embed.proj.convs[1], BinaryConv) == (switches is one_bit)
