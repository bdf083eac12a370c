"""The convolutional tokenizer: a stack of 3 × 3 convolutions of stride 2 in place of the patch embedding.

In full precision ``ConvTokenizer``, in eight bits ``QuantizedTokenizer``, whose convolutions but the first may have one
bit. Source: early convolutions, https://arxiv.org/abs/2106.14881; here without the last 1 × 1 convolution, and with the
quantizer of the inputs in place of ReLU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from gsb_vit.errors import InputError

from . import exact
from .edges import QuantizedWeight
from .input_quantizers import ElasticInteger, ElasticStep, Quantizer
from .quantize import SCALE_MIN
from .weight_quantizers import AnalyticWeight

KERNEL = 3
MOST_CONVOLUTIONS = 6  # of a packed file
LEVELS = 255  # the highest level of an unsigned 8-bit input


class ConvTokenizer(nn.Module):
    """Convolutions 3 × 3 of stride 2 and padding 1, each with BatchNorm, ReLU between them.

    (B, 3, H, W) → (B, C, H/2^n, W/2^n) for the n ``channels``, the last of which is C. Sides are multiples of 2^n.
    """

    convs: nn.ModuleList
    norms: nn.ModuleList

    def __init__(self, channels: Sequence[int], in_chans: int = 3, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        kind = {"device": device, "dtype": dtype}
        inputs = [in_chans, *channels[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, KERNEL, 2, 1, bias=False, **kind) for i, o in zip(inputs, channels, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o, **kind) for o in channels)

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of each convolution."""
        return tuple(cast(nn.Conv2d, conv).out_channels for conv in self.convs)

    def forward(self, x: Tensor) -> Tensor:
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(F.relu(x) if index else x))
        return x


class ConvEmbed(PatchEmbed):
    """timm's PatchEmbed with a ``ConvTokenizer`` for its projection; ``patch_size`` is the stride of the tokens, 2^n.

    ``channels`` are those of all convolutions but the last, which has ``embed_dim``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        img_size: Any = 224,
        patch_size: Any = 8,
        in_chans: int = 3,
        embed_dim: int = 768,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            img_size=img_size, patch_size=1, in_chans=in_chans, embed_dim=1, device="meta", dtype=dtype, **options
        )
        stride = 2 ** (len(channels) + 1)
        self.patch_size = (stride, stride)
        if tuple(patch_size if isinstance(patch_size, Sequence) else (patch_size,) * 2) != self.patch_size:
            raise InputError(
                f"{len(channels) + 1} convolutions of stride 2 make tokens of {stride} × {stride} pixels, not "
                f"patch_size = {patch_size}; give patch_size = {stride}, or another number of tokenizer_channels"
            )
        self.img_size, self.grid_size, self.num_patches = self._init_img_size(img_size)
        if self.img_size is not None and any(side % stride for side in self.img_size):
            raise InputError(f"img_size = {self.img_size} is no multiple of patch_size = {stride}; choose one that is")
        self.proj = ConvTokenizer((*channels, embed_dim), in_chans, device, dtype)  # type: ignore[assignment]


class TokenizerConv(QuantizedWeight, nn.Conv2d):
    """A convolution of the stack: 8-bit LSQ weights, a scale per output channel, and, but for the first, 8-bit inputs.

    ``input_quantizer``: x_q = s·clamp(round(x/s), 0, 255), which cuts as ReLU does; None for the first, which reads
    pictures.
    """

    input_quantizer: ElasticInteger | None

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, first: bool) -> "TokenizerConv":
        """Return a quantized convolution that takes over the weight of conv."""
        weight = conv.weight
        layer = cls(
            conv.in_channels, conv.out_channels, KERNEL, 2, 1, bias=False, device=weight.device, dtype=weight.dtype
        )
        layer.weight = weight
        layer.input_quantizer = None if first else _Clamp().to(device=weight.device)
        layer._add_weight_scale((conv.out_channels,))
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.input_quantizer is None else self.input_quantizer(x)
        return F.conv2d(x, self.dequantized_weight(), None, self.stride, self.padding)


class BinaryConv(nn.Conv2d):
    """A convolution of the stack on one-bit inputs and weights: y = (s_x·s_w)·(B_x ∗ B_w), the sums whole numbers.

    ``input_quantizer`` gives s_x·1[x > s_x/2]: the 8-bit clamp with one level in place of 255, which cuts as ReLU does.
    The norm before it has a bias per channel, so every channel learns its threshold. Level 0 is the padding, too, and
    adds nothing. ``weight_quantizer``: ±s_w, one scale per output channel, which follows from the weights.
    Inputs ±1 with padding −1 would be the same network: the sums differ by a constant per channel, and a norm follows.
    """

    is_ready = True  # of the weights' scales
    input_quantizer: ElasticStep
    weight_quantizer: AnalyticWeight

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> "BinaryConv":
        """Return a one-bit convolution that takes over the weight of conv."""
        weight = conv.weight
        layer = cls(
            conv.in_channels, conv.out_channels, KERNEL, 2, 1, bias=False, device=weight.device, dtype=weight.dtype
        )
        layer.weight = weight
        layer.input_quantizer = ElasticStep().to(device=weight.device)
        layer.weight_quantizer = AnalyticWeight()
        return layer.train(conv.training)

    def quantized_weight(self) -> tuple[Tensor, Tensor]:
        """Return the weights as whole numbers, ±1, and the scales in use (out,)."""
        plane, scale = self.weight_quantizer.quantize(self.weight.flatten(1))
        return plane.view_as(self.weight), scale.squeeze(1)

    def forward(self, x: Tensor) -> Tensor:
        (plane,), scale = self.input_quantizer.quantize(x)
        weight, weight_scale = self.quantized_weight()
        y = F.conv2d(plane, weight, None, self.stride, self.padding)
        return y * (scale * weight_scale).to(y.dtype).view(-1, 1, 1)


class _Clamp(ElasticInteger):
    """Unsigned 8-bit quantizer whose highest level first meets the largest number of the first batch."""

    def __init__(self) -> None:
        super().__init__(8, signed=False, offset=False)

    def initial_scale(self, x: Tensor) -> Tensor:
        return x.amax().float() / LEVELS


@dataclass(frozen=True)
class FoldedConv:
    """A convolution as docs/numerics.md has it: whole weights, and float32 numbers with norm and scales folded in.

    First: ``weight`` (C_0, 3, 3, 3), ``scale`` (C_0, 3) a colour each, ``offset`` (4, C_0) for e = 2·(first line) +
    (first column). Others: ``scale`` (C_i), ``offset`` (C_i), which the last one has in the position. ``bits``: of its
    weights, and of its inputs but for the first.
    """

    weight: Tensor
    scale: Tensor
    offset: Tensor
    bits: int = 8


def _scale(quantizer: Quantizer | None) -> Tensor:
    """The scale in use, float64; 1 without a quantizer."""
    if quantizer is None:
        return torch.ones((), dtype=torch.float64)
    return quantizer.scale.detach().clamp(min=SCALE_MIN).double()


class QuantizedTokenizer(ConvTokenizer):
    """``ConvTokenizer`` with 8-bit weights and, from the second convolution on, 8-bit inputs, or both of one bit there.

    Where ``pixel_scaling`` says what a picture's pixels were scaled with, evaluation gives the sums of docs/numerics.md
    over whole pixels and levels, as float64, to which ``PixelInputs`` adds the position.
    """

    pixel_scaling: exact.Scaling | None = None

    @classmethod
    def from_tokenizer(cls, tokenizer: ConvTokenizer, bits: int = 8) -> "QuantizedTokenizer":
        """Return a quantized tokenizer that takes over weights and norms; ``bits`` of all but the first convolution."""
        result = cls.__new__(cls)
        nn.Module.__init__(result)
        plain = [cast(nn.Conv2d, conv) for conv in tokenizer.convs]
        convs: list[nn.Module] = [TokenizerConv.from_conv(plain[0], first=True)]
        convs += [BinaryConv.from_conv(c) if bits == 1 else TokenizerConv.from_conv(c, first=False) for c in plain[1:]]
        result.convs, result.norms = nn.ModuleList(convs), tokenizer.norms
        return result.train(tokenizer.training)

    @property
    def layers(self) -> list[TokenizerConv | BinaryConv]:
        """The convolutions."""
        return [cast(TokenizerConv | BinaryConv, conv) for conv in self.convs]

    @property
    def level_bits(self) -> tuple[int, ...]:
        """Bits of the inputs of each convolution but the first."""
        return tuple(1 if isinstance(conv, BinaryConv) else 8 for conv in self.layers[1:])

    @property
    def is_ready(self) -> bool:
        """Whether all scales are set."""
        return all(c.is_ready and (c.input_quantizer is None or c.input_quantizer.is_ready) for c in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.pixel_scaling is not None and not self.training and self.is_ready and exact.applies(x):
            pixels = exact.grey_levels(x, self.pixel_scaling)
            if pixels is not None:
                return exact.in_order(self._sums(pixels).double(), lambda: self._plain(x).double())
        return self._plain(x)

    def _plain(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x))
        return x

    def position_offset(self, scaling: exact.Scaling) -> Tensor:
        """What ``position`` holds besides the position embedding, (C), float64: the last norm's bias."""
        return self._norm(len(self.norms) - 1)[1]

    def _norm(self, index: int) -> tuple[Tensor, Tensor]:
        """Gain and bias of a norm with its running statistics, float64."""
        norm = cast(nn.BatchNorm2d, self.norms[index])
        assert norm.running_mean is not None and norm.running_var is not None
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        return gain, norm.bias.double() - norm.running_mean.double() * gain

    @torch.no_grad()
    def folded(self, scaling: exact.Scaling) -> list[FoldedConv]:
        """Return the convolutions as a packed file holds them, computed in float64 and rounded once.

        With gain g and bias b of the norm, weight scale s, input scale x, and the next input scale t (last: 1):
        ``a[o, c] = s·g/(255·std_c·t)``, ``offset[e, o] = (b − s·g·Σ_c (mean_c/std_c)·Σ w[o, c, taps inside])/t``;
        for the others, also of one bit, ``scale = x·s·g/t``, ``bias = b/t``.
        """
        mean, std = (torch.tensor(part, dtype=torch.float64) for part in scaling)
        inputs = [_scale(c.input_quantizer) for c in self.layers]
        result = []
        for index, conv in enumerate(self.layers):
            weight, scale = (part.detach() for part in conv.quantized_weight())
            gain, bias = self._norm(index)
            following = inputs[index + 1] if index + 1 < len(inputs) else _scale(None)
            gain = scale.double() * gain * inputs[index] / following
            if index:
                bits = self.level_bits[index - 1]
                result.append(FoldedConv(weight, gain.float(), (bias / following).float(), bits))
                continue
            by_colour = weight.double() * (mean / std).view(1, 3, 1, 1)
            inside = [by_colour[:, :, line:, column:].sum(dim=(1, 2, 3)) for line in (0, 1) for column in (0, 1)]
            offset = torch.stack([bias / following - gain * part for part in inside])
            result.append(FoldedConv(weight, (gain[:, None] / (255 * std)).float(), offset.float()))
        return result

    @torch.no_grad()
    def _sums(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), whole → what the last convolution gives without its position, float32 (B, C, H', W')."""
        assert self.pixel_scaling is not None
        first, *others = self.folded(self.pixel_scaling)
        y = exact.first_convolution(pixels, first.weight, first.scale, first.offset)
        for conv in others:
            convolution = exact.binary_convolution if conv.bits == 1 else exact.convolution
            y = convolution(exact.levels(y, 2**conv.bits - 1), conv.weight, conv.scale)
            if conv is not others[-1]:
                y = y.add_(conv.offset.view(1, -1, 1, 1))
        return y
