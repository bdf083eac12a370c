import numpy as np
import pytest
import torch
from torch import nn

from gsb_vit.errors import InputError
from gsb_vit.nn.binary_linear import BinaryLinear


def signs(x):
    return np.where(x >= 0, 1.0, -1.0)


def weight_oracle(kind, w, g):
    """W_b, grad_W and grad_s (per row) of the weight quantizers in NumPy."""
    bits, _, scale = kind.partition(" ")
    if bits == "8":
        s = 2 * np.abs(w).mean(1 if scale != "layer" else None, keepdims=True) / np.sqrt(127)
        r = w / s
        clamped = np.clip(r, -128, 127)
        slope = np.where(r == clamped, np.rint(r) - r, clamped)
        grad_s = (g * slope).sum(1 if scale != "layer" else None) / np.sqrt(w.size / s.size * 127)
        return s * np.clip(np.rint(r), -128, 127), g * (r == clamped), np.atleast_1d(grad_s)
    axis = (0, 1) if scale == "layer" else 1
    if bits == "1":
        plane, s = signs(w - w.mean()), np.abs(w).mean(axis, keepdims=True)
    else:
        members = np.abs(w) > 0.7 * np.abs(w).mean(axis, keepdims=True)
        plane = np.sign(w) * members
        s = (np.abs(w) * members).sum(axis, keepdims=True) / members.sum(axis, keepdims=True)
    grad_s = (g * plane).sum(1) / np.sqrt(w.shape[1]) if scale == "learned_row" else None
    return s * plane, g, grad_s


@pytest.mark.parametrize("scale", ["row", "layer", "learned_row"])
@pytest.mark.parametrize("bits", [1, 2, 8])
def test_weights_match_numpy(bits, scale):
    torch.manual_seed(0)
    layer = BinaryLinear(33, 6, weight_bits=bits, weight_scale=scale, activations="full").double()
    grad = torch.randn(6, 33, dtype=torch.float64)
    weight, quantizer = layer.weight, layer.weight_quantizer
    expected, grad_w, grad_s = weight_oracle(f"{bits} {scale}", weight.detach().numpy(), grad.numpy())
    for dequantized in (True, False):
        layer.zero_grad()
        plane, used = quantizer.quantize(weight)
        assert used.shape == ((1, 1) if scale == "layer" else (6, 1)) and torch.equal(plane, plane.round())
        y = quantizer(weight) if dequantized else plane * used
        y.backward(grad)
        np.testing.assert_allclose(y.detach(), expected, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(weight.grad, grad_w, rtol=1e-6, atol=1e-12)
        if grad_s is not None:
            np.testing.assert_allclose(quantizer.weight_scale.grad, grad_s, rtol=1e-5, atol=1e-9)


def test_ternary_ties_and_zeros():
    weight = torch.tensor([[0.7, 1.3, -1.3, 0.7], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    layer = BinaryLinear(4, 2, weight_bits=2).double()
    layer.weight = nn.Parameter(weight)
    plane, scale = layer.binary_weight()
    assert plane.tolist() == [[0, 1, -1, 0], [0, 0, 0, 0]]  # 0.7 · mean = 0.7: an entry at Δ is 0
    assert scale.flatten().tolist() == pytest.approx([1.3, 1e-8])


def test_full_precision_weights_have_no_plane():
    with pytest.raises(InputError, match="only weights='binary' ones have a plane"):
        BinaryLinear(4, 2, weights="full").binary_weight()
