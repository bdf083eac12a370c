"""The kernels of native/train/ as ``interface.Kernels``: rooms for their results, and calls on raw addresses.

The functions before these checked types, shapes and strides: ``BinaryLinear.runs_fused``, ``GSBAttention._runs_fused``.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..matmul import matmul
from .interface import CoreGradients, CoreSettings, CoreTensors, InputGradients, Inputs, InputSettings, PackedWeight

CODE_BYTES = 3  # of an input; native/train/inputs.h says how they lie in a row


def _address(x: Tensor | None) -> int:
    """Where the numbers of x lie, 0 for None."""
    return 0 if x is None else x.data_ptr()


def _is_half(x: Tensor | None) -> bool:
    return x is not None and x.dtype == torch.bfloat16


class NativeKernels:
    """The kernels of one instruction set; a layer's code is three bytes an input (M, 3·in)."""

    block_bytes = 5 << 18  # in the cache

    def __init__(self, module: ModuleType) -> None:
        self.module: Any = module

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return matmul(a, b)

    def pack_weight(self, weight: Tensor, scale: Tensor) -> PackedWeight:
        rows, width = weight.shape
        words = torch.empty(self.module.packed_words(rows, width), dtype=torch.int64)
        sums = torch.empty(-(-rows // 16) * 16, dtype=torch.int32)
        mean = weight.mean()
        self.module.pack_weight(
            *(weight.data_ptr(), rows, width, mean.data_ptr(), words.data_ptr(), sums.data_ptr()),
            torch.get_num_threads(),
        )
        return PackedWeight(words, sums, scale.squeeze(1).expand(rows).contiguous(), weight.shape)

    def expand_weight(self, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        out = torch.empty(weight.shape, dtype=dtype)
        self.module.expand_weight(
            *(weight.plane.data_ptr(), *weight.shape, weight.scale.data_ptr(), out.data_ptr(), _is_half(out)),
            torch.get_num_threads(),
        )
        return out

    def encode(self, inputs: Inputs) -> Tensor:
        code = _new_code(inputs)
        self._forward(inputs, code=code)
        return code

    def multiply(
        self, inputs: Inputs, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype, with_code: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        out = torch.empty(len(inputs.x), weight.shape[0], dtype=dtype)
        code = _new_code(inputs) if with_code else None
        self._forward(inputs, weight, inputs.scale * weight.scale, bias, out, code=code)
        return out, code

    def multiply_integers(self, inputs: Inputs, weight: PackedWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        integers, code = torch.empty(len(inputs.x), weight.shape[0], dtype=torch.int16), _new_code(inputs)
        self._forward(inputs, weight, integers=integers, code=code)
        return integers, code

    def _forward(
        self,
        inputs: Inputs,
        weight: PackedWeight | None = None,
        row_scale: Tensor | None = None,
        bias: Tensor | None = None,
        out: Tensor | None = None,
        integers: Tensor | None = None,
        code: Tensor | None = None,
    ) -> None:
        """Quantize, multiply, and write what is given: out and integers (M, out), code (M, 3·in)."""
        a, x, settings = _address, inputs.x, inputs.settings
        words, sums, channels = (0, 0, 0) if weight is None else (a(weight.plane), a(weight.sums), weight.shape[0])
        self.module.linear_forward(
            *(a(x), _is_half(x), *x.shape, a(inputs.shift), settings.clip, a(inputs.scale), settings.step),
            *(words, sums, channels, a(row_scale), a(bias), a(out), _is_half(out), a(integers), a(code)),
            torch.get_num_threads(),
        )

    def rescale(self, integers: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        out = torch.empty(integers.shape, dtype=dtype)
        self.module.rescale(
            *(integers.data_ptr(), *integers.shape, scale.data_ptr(), _address(bias), out.data_ptr(), _is_half(out)),
            torch.get_num_threads(),
        )
        return out

    def input_gradients(
        self, grad: Tensor, code: Tensor, scale: Tensor, settings: InputSettings, with_shift: bool
    ) -> InputGradients:
        dequantized = torch.empty_like(grad)
        shift_grad = torch.empty(grad.shape[1]) if with_shift else None
        scale_grad = self.module.inputs_backward(
            *(code.data_ptr(), *grad.shape, scale.data_ptr(), settings.step, grad.data_ptr(), dequantized.data_ptr()),
            *(_is_half(grad), _address(shift_grad), torch.get_num_threads()),
        )
        return InputGradients(grad, shift_grad, torch.tensor(scale_grad), dequantized)

    def attend(self, tensors: CoreTensors, settings: CoreSettings) -> tuple[Tensor, Tensor, Tensor]:
        core = _Core(self.module, tensors, settings.heads)
        P = core.probabilities()
        limits = settings.attention_limits(core.attention_extremes(P)).contiguous()
        value_limits = settings.value_limits(core.value_extremes()).contiguous()
        return core.attend(P, limits, core.values(value_limits)), limits, value_limits

    def attend_backward(
        self, tensors: CoreTensors, settings: CoreSettings, limits: tuple[Tensor, Tensor], grad: Tensor, in_place: bool
    ) -> CoreGradients:
        return _Core(self.module, tensors, settings.heads).backward(grad, *limits, settings.aligned, in_place)


def _new_code(inputs: Inputs) -> Tensor:
    """Room for the codes of inputs (M, in): (M, 3·in), so that blocks of rows are slices."""
    return torch.empty((len(inputs.x), CODE_BYTES * inputs.x.shape[1]), dtype=torch.uint8)


class _Core:
    """The kernels' view of one call of attention: shapes, addresses, and the steps that forward and backward share."""

    def __init__(self, module: Any, tensors: CoreTensors, heads: int) -> None:
        self.qkv = qkv = tensors.qkv
        self.native, self.threads = module, torch.get_num_threads()
        batch, tokens, width = qkv.shape
        self.shape = batch, tokens, heads, width // (3 * heads)
        self.query_scale, self.key_scale, self.attention_scale, self.value_scale = tensors.scales
        self.bias, self.shifts = tensors.bias, tensors.shifts
        self.heads = module.Heads(*self.shape, qkv.data_ptr(), _is_half(qkv), *map(_address, tensors.shifts))

    def probabilities(self) -> Tensor:
        """The softmax of the scores (B, h, N, N), float32."""
        batch, tokens, heads, channels = self.shape
        factor = self.query_scale * self.key_scale * channels**-0.5
        scores = torch.empty(batch, heads, tokens, tokens)
        self.native.scores(self.heads, factor.data_ptr(), scores.data_ptr(), self.threads)
        return scores.softmax(-1)

    def attention_extremes(self, P: Tensor) -> Tensor:
        """(1, B, 1, 1, 1): the largest entry of every picture's matrix."""
        largest = torch.empty(1, len(P), 1, 1, 1)
        self.native.attention_extremes(self.heads, P.data_ptr(), _address(self.bias), largest.data_ptr(), self.threads)
        return largest

    def value_extremes(self) -> Tensor:
        """(2, B, 1, 1, 1): every picture's largest and smallest Value."""
        extremes = torch.empty(2, self.shape[0], 1, 1, 1)
        self.native.value_extremes(self.heads, extremes.data_ptr(), self.threads)
        return extremes

    def attention_groups(self, limits: Tensor) -> tuple[int, int, int, int]:
        """What the kernels want to know of the attention's groups: number, scales, limits, their batch."""
        return len(self.attention_scale), self.attention_scale.data_ptr(), limits.data_ptr(), limits.shape[2]

    def value_groups(self, limits: Tensor) -> tuple[int, int, int, int]:
        """The same of the Value's groups."""
        return len(self.value_scale), self.value_scale.data_ptr(), limits.data_ptr(), limits.shape[2]

    def values(self, limits: Tensor) -> Tensor:
        """V_b (B, h, N, d), float32."""
        batch, tokens, heads, channels = self.shape
        out = torch.empty(batch, heads, tokens, channels)
        self.native.superpose_values(self.heads, *self.value_groups(limits), out.data_ptr(), self.threads)
        return out

    def attend(self, P: Tensor, limits: Tensor, V: Tensor) -> Tensor:
        """y = A_b·V_b (B, N, h·d) in the dtype of qkv."""
        batch, tokens, heads, channels = self.shape
        y = torch.empty(batch, tokens, heads * channels, dtype=self.qkv.dtype)
        self.native.attend(
            *(self.heads, P.data_ptr(), _address(self.bias), *self.attention_groups(limits)),
            *(V.data_ptr(), y.data_ptr(), _is_half(y), self.threads),
        )
        return y

    def backward(
        self, grad: Tensor, limits: Tensor, value_limits: Tensor, aligned: bool, in_place: bool
    ) -> CoreGradients:
        """Gradients from that of y; that of qkv lies where qkv is if ``in_place``."""
        batch, _, heads, channels = self.shape
        P, V = self.probabilities(), self.values(value_limits)
        groups = len(self.attention_scale) + len(self.value_scale)
        grad_qkv, work = self.qkv if in_place else torch.empty_like(self.qkv), torch.empty_like(P)
        grad_bias = None if self.bias is None else torch.empty_like(self.bias)
        shift_sums = torch.empty(batch, heads, 3, 1, channels)
        scale_sums = torch.empty(batch * heads, 2 + groups)
        members = torch.empty(batch * heads, groups, dtype=torch.int32)
        self.native.attend_backward(
            *(self.heads, self.query_scale.data_ptr(), self.key_scale.data_ptr(), P.data_ptr(), _address(self.bias)),
            *(*self.attention_groups(limits), *self.value_groups(value_limits), aligned),
            *(V.data_ptr(), grad.data_ptr(), _is_half(grad), grad_qkv.data_ptr(), work.data_ptr()),
            *(_address(grad_bias), shift_sums.data_ptr(), scale_sums.data_ptr(), members.data_ptr()),
            self.threads,
        )
        pairs = zip(shift_sums.sum(0).unbind(1), self.shifts, strict=True)
        shifts = [part if shift is not None else None for part, shift in pairs]
        return CoreGradients(grad_qkv, shifts, scale_sums.sum(0), members.sum(0), grad_bias)
