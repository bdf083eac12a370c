"""The steps of fused layers in PyTorch, on any device, as ``interface.Kernels``.

A code is one number an input (M, in), t/s to ±1.5 of the shifted input t: float16 for products in bfloat16, where the
nearest 0.05 % of a boundary may change sides, and float32 for products in float32. Inputs beyond the clip have 4 more.
"""

import math
from typing import cast

import torch
from torch import Tensor

from ..matmul import matmul
from ..quantize import as_number, between, sign
from ..superpose import attention_gradients, superposed_attention, superposed_value, value_gradients
from .interface import CoreGradients, CoreSettings, CoreTensors, InputGradients, Inputs, InputSettings, PackedWeight

_BEYOND = 4.0  # added to the size of a code whose input was clipped


class TorchKernels:
    """See the module."""

    block_bytes = 1 << 25  # a GPU waits for launches, not for memory

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return matmul(a, b)

    def pack_weight(self, weight: Tensor, scale: Tensor) -> PackedWeight:
        plane = weight >= weight.mean()
        return PackedWeight(plane, weight.new_empty(0), scale.squeeze(1).expand(len(weight)), weight.shape)

    def expand_weight(self, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        scale = weight.scale.unsqueeze(1).to(dtype)
        return torch.where(weight.plane, scale, -scale)

    def encode(self, inputs: Inputs) -> Tensor:
        return _encode(inputs, _shifted(inputs), inputs.x.dtype)

    def multiply(
        self, inputs: Inputs, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype, with_code: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        product, code = self._multiply(inputs, weight, dtype, with_code)
        return self.rescale(product, inputs.scale * weight.scale, bias, dtype), code

    def multiply_integers(self, inputs: Inputs, weight: PackedWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        product, code = self._multiply(inputs, weight, dtype, True)
        return product.to(torch.int16), cast(Tensor, code)

    def _multiply(
        self, inputs: Inputs, weight: PackedWeight, dtype: torch.dtype, with_code: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The product of the planes (M, out) in the dtype, and the code if asked for."""
        shifted = _shifted(inputs)
        code = _encode(inputs, shifted, dtype) if with_code else None
        plane = shifted > 0.5 * inputs.scale if inputs.settings.step else sign(shifted)
        weights = torch.where(weight.plane, 1.0, -1.0)
        return matmul(plane.to(dtype), weights.to(dtype).t()), code

    def rescale(self, integers: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        out = integers * scale
        return (out if bias is None else out.add_(bias)).to(dtype)

    def input_gradients(
        self, grad: Tensor, code: Tensor, scale: Tensor, settings: InputSettings, with_shift: bool
    ) -> InputGradients:
        clip = math.isfinite(settings.clip)
        ratio = code.fmod(_BEYOND) if clip else code
        plane = as_number(ratio > 0.5, ratio) if settings.step else sign(ratio)
        inside = between(ratio, 1.0) if settings.step else ratio.abs().le_(1)
        scale_grad = (torch.addcmul(plane, ratio, inside, value=-1) * grad).sum(dtype=torch.float32)
        passed = inside.to(grad.dtype).mul_(grad)
        shift_grad = passed.sum(0, dtype=torch.float32) if with_shift else None
        if clip:
            passed = passed.masked_fill_(code.abs() > 2, 0)
        return InputGradients(passed, shift_grad, scale_grad, plane.to(grad.dtype) * scale)

    def attend(self, tensors: CoreTensors, settings: CoreSettings) -> tuple[Tensor, Tensor, Tensor]:
        *_, attention_scale, value_scale = tensors.scales
        dtype = tensors.qkv.dtype
        (_, _, v), _, _, A = _matrices(tensors, settings.heads)
        limits = settings.attention_limits(A.amax((1, 2, 3), keepdim=True).unsqueeze(0))
        extremes = torch.stack([v.amax((1, 2, 3), keepdim=True), v.amin((1, 2, 3), keepdim=True)])
        value_limits = settings.value_limits(extremes)
        A_b = superposed_attention(A, attention_scale, limits[:, 0]).to(dtype)
        y = A_b @ superposed_value(v, value_scale, value_limits).to(dtype)
        return y.transpose(1, 2).flatten(2), limits, value_limits

    def attend_backward(
        self, tensors: CoreTensors, settings: CoreSettings, limits: tuple[Tensor, Tensor], grad: Tensor, in_place: bool
    ) -> CoreGradients:
        dtype = tensors.qkv.dtype
        query_scale, key_scale, attention_scale, value_scale = tensors.scales
        (q, k, v), (query_plane, key_plane), P, A = _matrices(tensors, settings.heads)
        grad = grad.unflatten(2, (settings.heads, -1)).transpose(1, 2)
        V_b = superposed_value(v, value_scale, limits[1]).to(dtype)
        A_b = superposed_attention(A, attention_scale, limits[0][:, 0]).to(dtype)
        grad_A, attention_sums, attention_members = attention_gradients(
            A, attention_scale, limits[0][:, 0], (grad @ V_b.transpose(-2, -1)).float()
        )
        grad_v, value_sums, value_members = value_gradients(
            v, value_scale, limits[1], (A_b.transpose(-2, -1) @ grad).float(), settings.aligned
        )
        grad_bias = None if tensors.bias is None else grad_A.sum(0)
        grad_scores = torch._softmax_backward_data(grad_A, P, -1, torch.float32).to(dtype)
        root = q.shape[-1] ** -0.5
        grad_q, query_sum = _sign_gradients(
            q, query_plane, query_scale, grad_scores @ (key_plane * (key_scale * root)).to(dtype)
        )
        grad_k, key_sum = _sign_gradients(
            k, key_plane, key_scale, grad_scores.transpose(-2, -1) @ (query_plane * (query_scale * root)).to(dtype)
        )
        parts = [grad_q, grad_k, grad_v]
        shifts = [
            None if shift is None else part.sum((0, 2)).unsqueeze(1)
            for part, shift in zip(parts, tensors.shifts, strict=True)
        ]
        grad_qkv = torch.stack(parts).permute(1, 3, 0, 2, 4).flatten(2).to(dtype)
        sums = torch.cat([torch.stack([query_sum, key_sum]), attention_sums, value_sums])
        return CoreGradients(grad_qkv, shifts, sums, torch.cat([attention_members, value_members]), grad_bias)


def _shifted(inputs: Inputs) -> Tensor:
    """t = clamp(x, ±clip) + shift (M, in), float32."""
    x, clip = inputs.x, inputs.settings.clip
    x = x.clamp(-clip, clip) if math.isfinite(clip) else x
    return x.float() if inputs.shift is None else x + inputs.shift


def _encode(inputs: Inputs, shifted: Tensor, dtype: torch.dtype) -> Tensor:
    """The code of the inputs for products in the dtype."""
    code = (shifted / inputs.scale).clamp_(-1.5, 1.5)
    if math.isfinite(inputs.settings.clip):
        code = code.add_(sign(code) * (inputs.x.abs() > inputs.settings.clip), alpha=_BEYOND)
    return code.to(torch.float16 if dtype == torch.bfloat16 else torch.float32)


def _matrices(tensors: CoreTensors, heads: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Shifted q, k, v (B, h, N, d), the planes of q and k, softmax and A (B, h, N, N), all float32."""
    qkv, (query_scale, key_scale, *_) = tensors.qkv, tensors.scales
    parts = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    shifted = [p.float() if shift is None else p + shift for p, shift in zip(parts, tensors.shifts, strict=True)]
    planes = [sign(part) for part in shifted[:2]]
    scores = (planes[0].to(qkv.dtype) @ planes[1].to(qkv.dtype).transpose(-2, -1)).float()
    P = (scores * (query_scale * key_scale * shifted[0].shape[-1] ** -0.5)).softmax(-1)
    return shifted, planes, P, P if tensors.bias is None else P + tensors.bias


def _sign_gradients(t: Tensor, plane: Tensor, scale: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient of s·sign(t): that of t, float32, and the scale's before its factor."""
    inside = t.abs().le_(scale)
    slope = (t / scale).mul_(inside).neg_().add_(plane)
    return inside.mul_(grad), slope.mul_(grad).sum()
