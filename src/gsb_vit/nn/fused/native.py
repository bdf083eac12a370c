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
            weight=weight.data_ptr(),
            channels=rows,
            width=width,
            mean=mean.data_ptr(),
            packed=words.data_ptr(),
            sums=sums.data_ptr(),
            threads=torch.get_num_threads(),
        )
        return PackedWeight(words, sums, scale.squeeze(1).expand(rows).contiguous(), weight.shape)

    def expand_weight(self, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
        out = torch.empty(weight.shape, dtype=dtype)
        channels, width = weight.shape
        self.module.expand_weight(
            packed=weight.plane.data_ptr(),
            channels=channels,
            width=width,
            scale=weight.scale.data_ptr(),
            out=self._tensor(out),
            threads=torch.get_num_threads(),
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
        plane, sums, channels = (None, None, 0) if weight is None else (weight.plane, weight.sums, weight.shape[0])
        self.module.linear_forward(
            inputs=self._inputs(inputs.x, inputs.shift, inputs.scale, inputs.settings),
            x=self._tensor(inputs.x),
            layer=self.module.Layer(
                packed=_address(plane),
                sums=_address(sums),
                channels=channels,
                scale=_address(row_scale),
                bias=_address(bias),
            ),
            y=self._tensor(out),
            integers=_address(integers),
            code=_address(code),
            threads=torch.get_num_threads(),
        )

    def rescale(self, integers: Tensor, scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        out = torch.empty(integers.shape, dtype=dtype)
        rows, channels = integers.shape
        self.module.rescale(
            integers=integers.data_ptr(),
            rows=rows,
            channels=channels,
            scale=scale.data_ptr(),
            bias=_address(bias),
            y=self._tensor(out),
            threads=torch.get_num_threads(),
        )
        return out

    def input_gradients(
        self, grad: Tensor, code: Tensor, scale: Tensor, settings: InputSettings, with_shift: bool
    ) -> InputGradients:
        dequantized = torch.empty_like(grad)
        shift_grad = torch.empty(grad.shape[1]) if with_shift else None
        scale_grad = self.module.inputs_backward(
            inputs=self._inputs(grad, None, scale, settings),
            code=code.data_ptr(),
            grad=self._tensor(grad),
            dequantized=self._tensor(dequantized),
            shift_grad=_address(shift_grad),
            threads=torch.get_num_threads(),
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

    def _tensor(self, x: Tensor | None) -> Any:
        """The module's view of a float tensor."""
        return _tensor(self.module, x)

    def _inputs(self, x: Tensor, shift: Tensor | None, scale: Tensor, settings: InputSettings) -> Any:
        """The module's view of inputs as large as x (M, in)."""
        rows, width = x.shape
        return self.module.Inputs(
            rows=rows,
            width=width,
            shift=_address(shift),
            clip=settings.clip,
            scale=scale.data_ptr(),
            step=settings.step,
        )


def _tensor(module: Any, x: Tensor | None) -> Any:
    return module.Tensor(data=_address(x), half=x is not None and x.dtype == torch.bfloat16)


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
        query_shift, key_shift, value_shift = tensors.shifts
        self.heads = module.Heads(
            batch=batch,
            tokens=tokens,
            heads=heads,
            channels=self.shape[3],
            qkv=_tensor(module, qkv),
            query_shift=_address(query_shift),
            key_shift=_address(key_shift),
            value_shift=_address(value_shift),
            query_scale=self.query_scale.data_ptr(),
            key_scale=self.key_scale.data_ptr(),
        )

    def probabilities(self) -> Tensor:
        """The softmax of the scores (B, h, N, N), float32."""
        batch, tokens, heads, channels = self.shape
        factor = self.query_scale * self.key_scale * channels**-0.5
        scores = torch.empty(batch, heads, tokens, tokens)
        self.native.scores(self.heads, factor=factor.data_ptr(), out=scores.data_ptr(), threads=self.threads)
        return scores.softmax(-1)

    def attention_extremes(self, P: Tensor) -> Tensor:
        """(1, B, 1, 1, 1): the largest entry of every picture's matrix."""
        largest = torch.empty(1, len(P), 1, 1, 1)
        self.native.attention_extremes(
            self.heads, P=P.data_ptr(), E=_address(self.bias), out=largest.data_ptr(), threads=self.threads
        )
        return largest

    def value_extremes(self) -> Tensor:
        """(2, B, 1, 1, 1): every picture's largest and smallest Value."""
        extremes = torch.empty(2, self.shape[0], 1, 1, 1)
        self.native.value_extremes(self.heads, out=extremes.data_ptr(), threads=self.threads)
        return extremes

    def groups(self, scales: Tensor, limits: Tensor) -> Any:
        """The kernels' view of the groups of the attention or the Value."""
        return self.native.Groups(
            count=len(scales), scales=scales.data_ptr(), limits=limits.data_ptr(), limit_batch=limits.shape[2]
        )

    def values(self, limits: Tensor) -> Tensor:
        """V_b (B, h, N, d), float32."""
        batch, tokens, heads, channels = self.shape
        out = torch.empty(batch, heads, tokens, channels)
        groups = self.groups(self.value_scale, limits)
        self.native.superpose_values(self.heads, groups=groups, out=out.data_ptr(), threads=self.threads)
        return out

    def attend(self, P: Tensor, limits: Tensor, V: Tensor) -> Tensor:
        """y = A_b·V_b (B, N, h·d) in the dtype of qkv."""
        batch, tokens, heads, channels = self.shape
        y = torch.empty(batch, tokens, heads * channels, dtype=self.qkv.dtype)
        self.native.attend(
            self.heads,
            P=P.data_ptr(),
            E=_address(self.bias),
            groups=self.groups(self.attention_scale, limits),
            V=V.data_ptr(),
            y=_tensor(self.native, y),
            threads=self.threads,
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
            self.heads,
            P=P.data_ptr(),
            E=_address(self.bias),
            groups=self.groups(self.attention_scale, limits),
            value_groups=self.groups(self.value_scale, value_limits),
            aligned=aligned,
            V=V.data_ptr(),
            grad=_tensor(self.native, grad),
            out=self.native.AttentionGradients(
                qkv=_tensor(self.native, grad_qkv),
                work=work.data_ptr(),
                bias=_address(grad_bias),
                shifts=shift_sums.data_ptr(),
                scales=scale_sums.data_ptr(),
                members=members.data_ptr(),
            ),
            threads=self.threads,
        )
        pairs = zip(shift_sums.sum(0).unbind(1), self.shifts, strict=True)
        shifts = [part if shift is not None else None for part, shift in pairs]
        return CoreGradients(grad_qkv, shifts, scale_sums.sum(0), members.sum(0), grad_bias)
