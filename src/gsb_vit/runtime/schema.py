"""What a packed file must hold: its keys, every tensor's type and shape, and the values allowed.

The tables here are the one source of ``docs/packed-format.md``'s rules. ``native/generate_schema.py`` writes the C++
reader's copy of them, ``native/src/file/schema.h``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.preprocess import RESIZES
from gsb_vit.data.resample import FILTERS
from gsb_vit.decision import SCORES, Decision, Unknown
from gsb_vit.errors import InputError

from .bits import pad_is_zero, words_for
from .keys import Key, check_object
from .relative_bias import relative_bias_size

FORMAT = "gsb-vit-packed"
VERSION = "2"  # that is written
CHECKSUM_KEYS = ("header_xxh64", "payload_xxh64")
METADATA_KEYS = {"1": ("format", "version", "model"), "2": ("format", "version", "model", *CHECKSUM_KEYS)}
MODEL_KEYS = ("architecture", "class_names", "preprocessing", "provenance")
DECISION_KEY = "decision"  # may be left out, and is unknown to version 1
TENSOR_KEYS = ("dtype", "shape", "data_offsets")

# Bytes of a loaded model, its file included, unless the caller or MAX_MEMORY_VARIABLE says otherwise. A billion one-bit
# weights take an eighth of it.
MAX_MEMORY = 1 << 30
# 1024 blocks of 23 tensors, each at most 133 bytes of header, are 3 MiB; 5 MiB are left for class names and provenance,
# enough for 32,768 names of 160 bytes. Without a limit a header of 20 MB asks for gigabytes.
MAX_HEADER_BYTES = 8 << 20
MAX_NESTING = 64
MAX_WHOLE = 1 << 53
MAX_TOKENS = 1 << 20

# The types of a packed file's tensors; then those of other files, which are refused for what they are, not for a type.
TYPES = {"U64": "uint64", "I8": "int8", "I16": "int16", "F16": "float16", "F32": "float32"}
TYPES |= {"F64": "float64", "I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool", "BF16": "uint16"}

THRESHOLD_SCOPES = ("sample", "fixed")
ATTENTION_BIASES = ("none", "relative", "full")
GLOBAL_POOLS = ("token", "avg")
POOL_NORMS = ("after", "before")


@dataclass(frozen=True)
class LevelFormat:
    """How numbers become levels of so many bits."""

    bits: int = 1
    signed: bool = True


LEVEL_FORMAT = (Key("bits", "whole", least=1, most=8, default=1), Key("signed", "boolean", default=True))
BYTES, ONE_BIT = LevelFormat(8, signed=False), LevelFormat(1, signed=False)  # the tokenizer's
# Popcounts of width C are stored as int16; the other limits only keep a hostile header from asking for absurd work.
ARCHITECTURE = (
    Key("name", "text"),
    Key("image_size", "whole", least=1, most=65535, items=(2, 2)),
    Key("patch_size", "whole", least=1, most=1024, items=(2, 2)),
    Key("embed_dim", "whole", least=1, most=32767),
    Key("depth", "whole", least=1, most=1024),
    Key("num_heads", "whole", least=1, most=32767),
    Key("mlp_hidden", "whole", least=1, most=1 << 20),
    Key("prefix_tokens", "whole", least=0, most=16),
    Key("num_heads_out", "whole", least=1, most=2),
    Key("num_classes", "whole", least=1, most=1 << 20),
    Key("layer_norm_eps", "number", least=0, most=1),
    Key("attention_thresholds", "number", above=0, below=1, items=(0, 15), increasing=True),
    Key("value_thresholds", "number", above=0, below=1, items=(0, 15), increasing=True),
    Key("threshold_scope", "choice", choices=THRESHOLD_SCOPES),
    Key("attention_bias", "choice", choices=ATTENTION_BIASES),
    Key("global_pool", "choice", choices=GLOBAL_POOLS, default="token"),
    Key("pool_norm", "choice", choices=POOL_NORMS, default="after"),
    Key("tokenizer_channels", "whole", least=1, most=16384, items=(0, 5), default=()),
    Key("tokenizer_formats", "object", items=(0, 5), default=(), members=LEVEL_FORMAT, make=LevelFormat),
)
OPTIONAL = tuple(key.name for key in ARCHITECTURE if key.optional)  # since version 2
PREPROCESSING = (
    Key("size", "whole", least=1, most=65535, items=(2, 2)),
    Key("resize", "choice", choices=RESIZES),
    Key("crop_ratio", "number", above=0, most=1),
    Key("interpolation", "choice", choices=tuple(FILTERS)),
    Key("mean", "number", items=(3, 3)),
    Key("std", "number", above=0, items=(3, 3)),
)
DECISION = (Key("temperature", "number", above=0, most=1000),)
UNKNOWN_KEY = "unknown"  # in the decision; may be left out
UNKNOWN = (
    Key("score", "choice", choices=SCORES),
    Key("threshold", "number"),
    Key("false_alarm_rate", "number", least=0, most=1),
)


@dataclass(frozen=True)
class ActivationFormat:
    """How activations are kept: planes of bits, which are signs (−1 and +1) or steps (0 and 1)."""

    planes: int
    is_signed: bool

    def numbers(self, bits: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return what the bits of a plane stand for."""
        return np.where(bits, np.float32(1), np.float32(-1 if self.is_signed else 0))


SIGNS, STEPS = ActivationFormat(1, is_signed=True), ActivationFormat(1, is_signed=False)


@dataclass(frozen=True)
class Formats:
    """The format of each product's input; a mask of the attention matrix is one, queries and keys share theirs."""

    qkv: ActivationFormat = SIGNS
    query_key: ActivationFormat = SIGNS
    value: ActivationFormat = SIGNS
    attention: ActivationFormat = STEPS
    proj: ActivationFormat = SIGNS
    fc1: ActivationFormat = SIGNS
    fc2: ActivationFormat = STEPS


@dataclass(frozen=True)
class TokenRange:
    """Tokens first … first + count − 1."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The token behind the last."""
        return self.first + self.count


@dataclass(frozen=True)
class Head:
    """A classifier behind the last block, and the tokens it reads."""

    reads: TokenRange


@dataclass(frozen=True)
class Architecture:
    """The shape of a packed model; field names are those of the file's metadata.

    Raises:
        InputError: for a value out of range or two that do not fit together, naming the field.
    """

    name: str
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    embed_dim: int
    depth: int
    num_heads: int
    mlp_hidden: int
    prefix_tokens: int
    num_heads_out: int
    num_classes: int
    layer_norm_eps: float
    attention_thresholds: tuple[float, ...]
    value_thresholds: tuple[float, ...]
    threshold_scope: str
    attention_bias: str
    global_pool: str = "token"
    pool_norm: str = "after"
    tokenizer_channels: tuple[int, ...] = ()
    tokenizer_formats: tuple[LevelFormat, ...] = ()

    def __post_init__(self) -> None:
        for key in ARCHITECTURE:
            object.__setattr__(self, key.name, key.check("architecture", getattr(self, key.name)))
        # The first prefix tokens have a head each, or one head reads the mean of all patches.
        if self.global_pool == "token" and self.num_heads_out > self.prefix_tokens:
            raise InputError(f"architecture: num_heads_out {self.num_heads_out} is more than prefix_tokens")
        if self.global_pool == "token" and self.pool_norm != "after":
            raise InputError(f"architecture: pool_norm {self.pool_norm} goes with global_pool avg")
        if self.global_pool == "avg" and self.num_heads_out != 1:
            raise InputError(f"architecture: num_heads_out {self.num_heads_out} must be 1 where global_pool is avg")
        if self.tokenizer_channels and self.patch_size != (2 ** len(self.channels),) * 2:
            raise InputError(
                f"architecture: patch_size {self.patch_size} is not the stride of {len(self.channels)} convolutions"
            )
        self._check_formats()
        if any(side % patch for side, patch in zip(self.image_size, self.patch_size, strict=True)):
            raise InputError(
                f"architecture: image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.embed_dim % self.num_heads:
            raise InputError(f"architecture: embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")
        if self.num_tokens > MAX_TOKENS:
            raise InputError(f"architecture: {self.num_tokens} tokens are more than {MAX_TOKENS}; use larger patches")

    def _check_formats(self) -> None:
        formats, wanted = self.tokenizer_formats, len(self.tokenizer_channels)
        if formats and len(formats) != wanted:
            raise InputError(f"architecture: {len(formats)} tokenizer_formats for {wanted} tokenizer_channels")
        for one in formats:
            if one not in (BYTES, ONE_BIT):
                raise InputError(
                    f"architecture: tokenizer_formats of {one.bits} bits, signed {str(one.signed).lower()}, "
                    "are not 1 or 8 bits, unsigned"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def patch_height(self) -> int:
        """Pixels."""
        return self.patch_size[0]

    @property
    def patch_width(self) -> int:
        """Pixels."""
        return self.patch_size[1]

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of the tokenizer's convolutions; the last gives the tokens. Empty: patches."""
        return (*self.tokenizer_channels, self.embed_dim) if self.tokenizer_channels else ()

    @property
    def tokenizer(self) -> str:
        """What makes tokens of a picture: ``patches`` or ``convolutions``."""
        return "convolutions" if self.tokenizer_channels else "patches"

    @property
    def level_bits(self) -> tuple[int, ...]:
        """Bits of the levels between the tokenizer's convolutions: of the inputs of each but the first."""
        return tuple(one.bits for one in self.tokenizer_formats or (BYTES,) * len(self.tokenizer_channels))

    @property
    def num_patches(self) -> int:
        """Np."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """N = P + Np."""
        return self.prefix_tokens + self.num_patches

    @property
    def heads(self) -> tuple[Head, ...]:
        """The classifiers, whose logits are averaged; of several tokens one reads the mean."""
        if self.global_pool == "avg":
            return (Head(TokenRange(first=self.prefix_tokens, count=self.num_patches)),)
        return tuple(Head(TokenRange(first=token, count=1)) for token in range(self.num_heads_out))

    @property
    def formats(self) -> Formats:
        """How activations are kept: so far one bit everywhere."""
        return Formats()

    @property
    def head_dim(self) -> int:
        """d = C / h."""
        return self.embed_dim // self.num_heads

    @property
    def attention_groups(self) -> int:
        """A, the number of attention groups."""
        return len(self.attention_thresholds) + 1

    @property
    def value_groups(self) -> int:
        """V, the number of Value groups."""
        return len(self.value_thresholds) + 1

    @property
    def relative_bias_size(self) -> int:
        """T, the entries a head of the relative attention bias."""
        return relative_bias_size(self.grid, self.prefix_tokens)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: numbers, text and lists; without optional keys at their default."""
        defaults = {key.name: key.default for key in ARCHITECTURE if key.optional}
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values = {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}
        if "tokenizer_formats" in values:
            values["tokenizer_formats"] = [asdict(one) for one in self.tokenizer_formats]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Any) -> "Architecture":
        """Read what :meth:`to_json` wrote. Raises InputError for a missing or unknown key or a value out of range."""
        return cls(**check_object("architecture", values, ARCHITECTURE))


def read_decision(values: Any) -> Decision:
    """Read a model's ``decision``. Raises InputError for a missing or unknown key or a value out of range."""
    if not isinstance(values, Mapping):
        raise InputError("decision must be a JSON object")
    unknown = None
    if UNKNOWN_KEY in values:
        unknown = Unknown(**check_object(UNKNOWN_KEY, values[UNKNOWN_KEY], UNKNOWN))
    own = {name: value for name, value in values.items() if name != UNKNOWN_KEY}
    return Decision(**check_object("decision", own, DECISION), unknown=unknown)


def model_keys(version: str, model: Any) -> tuple[str, ...]:
    """Return the keys that ``model``, the metadata's, must have in a version of the file, and no other."""
    has_decision = version != "1" and isinstance(model, Mapping) and DECISION_KEY in model
    return (*MODEL_KEYS, DECISION_KEY) if has_decision else MODEL_KEYS


CONVOLUTION_SIDES = ("convolution_inputs", "convolution_outputs")


@dataclass(frozen=True)
class Size:
    """``times·dimension + plus``, where a dimension is a whole number of Architecture; with ``words``, 64-bit words."""

    dimension: str
    times: int = 1
    plus: int = 0
    words: bool = False

    def __rmul__(self, times: int) -> "Size":
        return replace(self, times=times * self.times, plus=times * self.plus)

    def __add__(self, plus: int) -> "Size":
        return replace(self, plus=self.plus + plus)

    def of(self, architecture: Architecture, convolution: int = 0) -> int:
        """Return the number; ``convolution`` says whose inputs and outputs are meant."""
        if self.dimension in CONVOLUTION_SIDES:
            sides = (3, *architecture.channels)
            value = sides[convolution + CONVOLUTION_SIDES.index(self.dimension)]
        else:
            value = getattr(architecture, self.dimension)
        size: int = self.times * value + self.plus
        return words_for(size) if self.words else size


@dataclass(frozen=True)
class Rule:
    """What a tensor's values keep to; floats are finite besides.

    ``bits``: rows of ``high`` bits whose pad bits are zero. ``range``: ``low`` … ``high``. ``positive``: above 0.
    ``falling``: starts with 1, never rises, never below 0.
    """

    kind: str = "any"
    low: int = 0
    high: Size = Size("embed_dim", times=0)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: name, NumPy type and shape, when it is there (a field and its value), and its values."""

    name: str
    dtype: str
    shape: tuple[Size | int, ...]
    rule: Rule = Rule()
    when: tuple[str, str] | None = None


C, M, K = Size("embed_dim"), Size("mlp_hidden"), Size("num_classes")
N, H, D, A, V = (Size(n) for n in ("num_tokens", "num_heads", "head_dim", "attention_groups", "value_groups"))


def _bits(name: str, rows: Size, depth: Size) -> Tensor:
    return Tensor(name, "uint64", (rows, replace(depth, words=True)), Rule("bits", high=depth))


def _floats(*names: str, shape: tuple[Size | int, ...] = (C,)) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, "float32", shape) for name in names)


PATCHES = ("tokenizer", "patches")
OUTER_TENSORS = (
    Tensor("patch_embed.weight", "int8", (C, 3, Size("patch_height"), Size("patch_width")), when=PATCHES),
    Tensor("patch_embed.scale", "float32", (C, 3), when=PATCHES),
    Tensor("patch_embed.position", "float32", (Size("num_patches"), C)),
    Tensor("prefix_tokens", "float32", (Size("prefix_tokens"), C)),
    *_floats("norm.weight", "norm.bias"),
)
# Behind ``tokenizer.0.``, ``tokenizer.i.`` and, of the last convolution, ``tokenizer.(n−1).``
I, O = (Size(name) for name in CONVOLUTION_SIDES)  # noqa: E741
FIRST_CONVOLUTION_TENSORS = (
    Tensor("weight", "int8", (O, 3, 3, 3)),
    Tensor("scale", "float32", (O, 3)),
    Tensor("offset", "float32", (4, O)),
)
LAST_CONVOLUTION_TENSORS = (Tensor("weight", "int8", (O, 3, 3, I)), Tensor("scale", "float32", (O,)))
MIDDLE_CONVOLUTION_TENSORS = (*LAST_CONVOLUTION_TENSORS, Tensor("bias", "float32", (O,)))
# The same of one-bit inputs: a row holds tap after tap.
LAST_BINARY_CONVOLUTION_TENSORS = (_bits("weight", O, 9 * I), Tensor("scale", "float32", (O,)))
MIDDLE_BINARY_CONVOLUTION_TENSORS = (*LAST_BINARY_CONVOLUTION_TENSORS, Tensor("bias", "float32", (O,)))
# Behind ``heads.j.``
HEAD_TENSORS = (
    *_floats("shift"),
    Tensor("input_scale", "float32", (1,), Rule("positive")),
    Tensor("weight", "int8", (K, C)),
    *_floats("scale", "bias", shape=(K,)),
)
# Behind ``blocks.i.``
BLOCK_TENSORS = (
    *_floats("norm1.weight", "norm1.bias"),
    _bits("attn.qkv.weight", 3 * C, C),
    Tensor("attn.qkv.threshold", "int16", (3 * C,), Rule("range", -1, C)),
    *_floats("attn.v_scale", "attn.v_bias"),
    Tensor("attn.exp_table", "float32", (D + 1,), Rule("falling")),
    Tensor("attn.bias", "float32", (H, Size("relative_bias_size")), when=("attention_bias", "relative")),
    Tensor("attn.bias", "float16", (H, N, N), when=("attention_bias", "full")),
    Tensor("attn.attention_half_scale", "float32", (1,), Rule("positive")),
    Tensor("attn.attention_limits", "float32", (A + -1,), when=("threshold_scope", "fixed")),
    Tensor("attn.value_limits", "float32", (V + -1, 2), when=("threshold_scope", "fixed")),
    Tensor("attn.product_scale", "float32", (A, V)),
    _bits("attn.proj.weight", C, C),
    *_floats("attn.proj.shift", "attn.proj.scale", "attn.proj.bias"),
    *_floats("norm2.weight", "norm2.bias"),
    _bits("mlp.fc1.weight", M, C),
    Tensor("mlp.fc1.zero_interval", "int16", (M, 2), Rule("range", 0, C)),
    _bits("mlp.fc2.weight", C, M),
    *_floats("mlp.fc2.scale", "mlp.fc2.bias"),
)


def convolution_tensors(architecture: Architecture, index: int) -> tuple[Tensor, ...]:
    """Return the table of one of the tokenizer's convolutions."""
    if index == 0:
        return FIRST_CONVOLUTION_TENSORS
    last, binary = index + 1 == len(architecture.channels), architecture.level_bits[index - 1] == 1
    if binary:
        return LAST_BINARY_CONVOLUTION_TENSORS if last else MIDDLE_BINARY_CONVOLUTION_TENSORS
    return LAST_CONVOLUTION_TENSORS if last else MIDDLE_CONVOLUTION_TENSORS


def tensors_of(architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a packed file: its full name and its entry in the tables."""
    prefixes = [("", OUTER_TENSORS)]
    for index in range(len(architecture.channels)):
        prefixes.append((f"tokenizer.{index}.", convolution_tensors(architecture, index)))
    prefixes += [(f"heads.{head}.", HEAD_TENSORS) for head in range(len(architecture.heads))]
    prefixes += [(f"blocks.{index}.", BLOCK_TENSORS) for index in range(architecture.depth)]
    for prefix, tensors in prefixes:
        for tensor in tensors:
            if tensor.when is None or getattr(architecture, tensor.when[0]) == tensor.when[1]:
                yield prefix + tensor.name, tensor


def expected_tensors(architecture: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return every tensor of a packed file by name: NumPy dtype name and shape. Reader and writer share it."""
    return {
        name: (
            tensor.dtype,
            tuple(
                side.of(architecture, convolution_of(name)) if isinstance(side, Size) else side for side in tensor.shape
            ),
        )
        for name, tensor in tensors_of(architecture)
    }


def convolution_of(name: str) -> int:
    """Which convolution a tensor belongs to; 0 for those that belong to none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "tokenizer" else 0


def check_specs(
    expected: Mapping[str, tuple[str, tuple[int, ...]]], found: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """Compare the types and shapes found with those expected. Raises InputError naming the first that differs."""
    for name, (dtype, shape) in expected.items():
        if name not in found:
            raise InputError(f"tensor {name} is missing; export the model again")
        if found[name] != (dtype, shape):
            found_dtype, found_shape = found[name]
            raise InputError(
                f"tensor {name} is {found_dtype} {found_shape}, not {dtype} {shape}; export the model again"
            )
    for name in found:
        if name not in expected:
            raise InputError(f"tensor {name[:60]!r} does not belong in this model; export the model again")


def check_values(architecture: Architecture, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Check that every number is in range (``docs/packed-format.md``). Raises InputError naming the tensor."""
    for name, tensor in tensors_of(architecture):
        what = _fault(tensor.rule, tensor.rule.high.of(architecture, convolution_of(name)), tensors[name])
        if what:
            raise InputError(f"tensor {name} {what}; export the model again")


def _fault(rule: Rule, high: int, array: NDArray[Any]) -> str | None:
    """Say what is wrong with one tensor."""
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        return "holds numbers that are not finite"
    if rule.kind == "bits" and not pad_is_zero(array, high):
        return "has pad bits that are not zero"
    if rule.kind == "range" and (array.min() < rule.low or array.max() > high):
        return f"has values outside {rule.low} … {high}"
    if rule.kind == "positive" and array.min() <= 0:
        return "is not above 0"
    if rule.kind == "falling" and (array[0] != 1 or array.min() < 0 or np.any(np.diff(array) > 0)):
        return "does not fall from 1 towards 0"
    return None
