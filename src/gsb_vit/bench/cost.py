"""Parameters, bytes, FLOPs, BOPs and OPs of a packed model, layer by layer, against its full-precision twin.

Everything follows from an :class:`~gsb_vit.runtime.schema.Architecture`, so a packed file is summed up without PyTorch.
The conventions are the field's (Bi-Real Net, arXiv 1808.00278): one multiply-accumulate of numbers is one FLOP, one of
bits is one BOP, and ``OPs = FLOPs + BOPs/64``. Products with 8-bit weights count as FLOPs. The multiply-adds that
binarization itself adds (scale and bias of an integer product, the weighted sum of superposed products) count as FLOPs
too, since a device pays for them; norms, softmax, GELU and residual sums are counted in neither model.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gsb_vit.runtime.schema import ActivationFormat, Architecture, expected_tensors

# The first prefix that fits a tensor's name (without `blocks.i.`) names its layer.
_LAYER_OF_TENSOR = {
    "patch_embed.position": "tokens",
    "patch_embed": "patch_embed",
    "tokenizer": "tokenizer",
    "prefix_tokens": "tokens",
    "norm1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.v_": "attn.qkv",
    "attn.exp_table": "attn.scores",
    "attn.bias": "attn.scores",
    "attn.proj": "attn.proj",
    "attn.": "attn.values",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm": "norm",
}
_KIND_OF_TYPE = {
    "uint64": "binary_weights",
    "int8": "int8_weights",
    "int16": "thresholds",
    "float32": "float32",
    "float16": "float16",
}

# Layer, parameters, FLOPs, BOPs, and the twin's parameters and FLOPs.
Row = tuple[str, int, int, int, int, int]


@dataclass(frozen=True)
class Cost:
    """What a layer costs: learned parameters, bytes in the file, FLOPs and BOPs of one picture."""

    parameters: int = 0
    bytes: int = 0
    flops: int = 0
    bops: int = 0

    @property
    def ops(self) -> float:
        """FLOPs + BOPs/64."""
        return self.flops + self.bops / 64

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.flops + other.flops,
            self.bops + other.bops,
        )

    def to_json(self) -> dict[str, float]:
        """Return the fields and ``ops`` as plain numbers."""
        return {**asdict(self), "ops": self.ops}


@dataclass(frozen=True)
class Layer:
    """One layer: its name, its cost packed to bits, and its cost in the full-precision twin (float32)."""

    name: str
    packed: Cost
    twin: Cost


@dataclass(frozen=True)
class Summary:
    """The layers of a model in order; ``bytes_by_kind`` splits the tensors' bytes by what they hold.

    ``class_names`` is None for an architecture, which has none.
    """

    architecture: Architecture
    layers: list[Layer]
    bytes_by_kind: dict[str, int]
    file_bytes: int | None = None
    class_names: tuple[str, ...] | None = None

    @property
    def packed(self) -> Cost:
        """The sum over all layers of the packed model."""
        return sum((layer.packed for layer in self.layers), Cost())

    @property
    def twin(self) -> Cost:
        """The sum over all layers of the full-precision twin."""
        return sum((layer.twin for layer in self.layers), Cost())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``full_precision`` holds the same keys for the twin."""
        layers = [
            {"name": layer.name, **layer.packed.to_json(), "full_precision": layer.twin.to_json()}
            for layer in self.layers
        ]
        return {
            "name": self.architecture.name,
            "classes": self.class_names if self.class_names is None else list(self.class_names),
            "file_bytes": self.file_bytes,
            "bytes_by_kind": self.bytes_by_kind,
            "total": self.packed.to_json(),
            "full_precision": self.twin.to_json(),
            "layers": layers,
        }


def summarize(
    architecture: Architecture, file_bytes: int | None = None, class_names: tuple[str, ...] | None = None
) -> Summary:
    """Sum up a packed model of this shape.

    ``parameters`` are the learned numbers of the trained model (latent weights, biases, shifts, scales) as PyTorch
    counts them; ``bytes`` are those of the packed file's tensors, where many of them have been folded together.
    """
    sizes: dict[str, int] = {}
    kinds = dict.fromkeys([*_KIND_OF_TYPE.values(), "attention_bias"], 0)
    for name, (dtype, shape) in expected_tensors(architecture).items():
        size = np.dtype(dtype).itemsize * math.prod(shape)
        layer = layer_of_tensor(name)
        sizes[layer] = sizes.get(layer, 0) + size
        kinds["attention_bias" if name.endswith("attn.bias") else _KIND_OF_TYPE[dtype]] += size
    layers = [
        Layer(name, Cost(parameters, sizes[name], flops, bops), Cost(plain, 4 * plain, plain_flops, 0))
        for name, parameters, flops, bops, plain, plain_flops in _rows(architecture)
    ]
    return Summary(architecture, layers, {kind: size for kind, size in kinds.items() if size}, file_bytes, class_names)


def layer_of_tensor(name: str) -> str:
    """Return the layer of a tensor of the packed file: ``blocks.3.attn.v_bias`` → ``blocks.3.attn.qkv``."""
    parts = name.split(".")
    if parts[0] == "heads":
        return ".".join(parts[:2])
    block = ".".join(parts[:2]) + "." if parts[0] == "blocks" else ""
    rest = name[len(block) :]
    return block + next(layer for prefix, layer in _LAYER_OF_TENSOR.items() if rest.startswith(prefix))


def _rows(a: Architecture) -> Iterator[Row]:
    width, tokens, classes = a.embed_dim, a.num_tokens, a.num_classes
    if a.channels:
        yield _tokenizer_row(a)
    else:
        patch = 3 * a.patch_size[0] * a.patch_size[1] * width
        yield "patch_embed", patch + 2 * width, patch * a.num_patches, 0, patch + width, patch * a.num_patches
    yield "tokens", (a.prefix_tokens + tokens) * width, 0, 0, (a.prefix_tokens + tokens) * width, 0
    for index in range(a.depth):
        for row in _block_rows(a):
            yield (f"blocks.{index}.{row[0]}", *row[1:])
    yield "norm", 2 * width, 0, 0, 2 * width, 0
    for head, _ in enumerate(a.heads):
        weights, product = classes * width + classes, classes * width
        # Shift, weight scale and input scale come on top; one multiply-add a class applies the scale and the bias.
        yield f"heads.{head}", weights + width + 2, product + classes, 0, weights, product


def _tokenizer_row(a: Architecture) -> Row:
    """All convolutions together; a norm is gain and bias, and, as in all others, no FLOPs."""
    weights = product = bits = scaled = 0
    places, scales = a.image_size[0] * a.image_size[1], len(a.channels) - 1  # an input scale of all but the first
    levels = (8, *a.level_bits, 32)  # of inputs, and of the tokens
    for (inputs, outputs), (taken, given) in zip(pairwise((3, *a.channels)), pairwise(levels), strict=True):
        places //= 4
        weights += 9 * inputs * outputs
        product += 9 * inputs * outputs * places
        if taken == 1:
            bits += 9 * inputs * outputs * places
            scaled += outputs * places if given > 1 else 0  # one-bit levels come from an interval of counts
        else:
            scales += outputs  # of weights; those of one bit follow from the weights
    norms = 2 * sum(a.channels)
    return "tokenizer", weights + norms + scales, product - bits + scaled, bits, weights + norms, product


def _block_rows(a: Architecture) -> Iterator[Row]:
    width, hidden, tokens = a.embed_dim, a.mlp_hidden, a.num_tokens
    groups, value_groups, formats = a.attention_groups, a.value_groups, a.formats
    bias = {"none": 0, "relative": a.relative_bias_size, "full": tokens * tokens}[a.attention_bias] * a.num_heads

    def linear(name: str, format_: ActivationFormat, inputs: int, outputs: int, scaled: int, extra: int = 0) -> Row:
        weights, product = outputs * inputs + outputs, tokens * inputs * outputs
        return name, weights + inputs + 1 + extra, tokens * scaled, format_.planes * product, weights, product

    scores = tokens * tokens * width
    yield "norm1", 2 * width, 0, 0, 2 * width, 0
    # q and k stay integers (a threshold a channel), only the Value becomes a number; all three have a shift.
    yield linear("attn.qkv", formats.qkv, width, 3 * width, scaled=width, extra=3 * width)
    yield "attn.scores", 2 + bias, 0, formats.query_key.planes**2 * scores, 0, scores
    planes = groups * formats.attention.planes * value_groups * formats.value.planes
    yield "attn.values", groups + value_groups, planes * tokens * width, planes * scores, 0, scores
    yield linear("attn.proj", formats.proj, width, width, scaled=width)
    yield "norm2", 2 * width, 0, 0, 2 * width, 0
    # fc1's popcounts become bits by an interval a channel: no number in between.
    yield linear("mlp.fc1", formats.fc1, width, hidden, scaled=0)
    yield linear("mlp.fc2", formats.fc2, hidden, width, scaled=width)
