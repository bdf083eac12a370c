"""A packed model as one portable C file and its header: weights as constants, and behind them the engine of ``c/``.

NumPy alone. What the numbers mean is in ``docs/numerics.md``; the engine follows it to the last bit.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit import __version__
from gsb_vit.errors import InputError, ModelError, shown
from gsb_vit.files import as_path, refuse_other, staged
from gsb_vit.runtime.bits import unpack
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import PackedModel, read
from gsb_vit.runtime.schema import Architecture, Formats

_ENGINE = ("memory.c", "arithmetic.c", "tokens.c", "block.c", "heads.c", "picture.c", "interface.c")
MAX_PICTURE_WIDTH = 640  # of a camera's VGA; a macro that a user may define otherwise
STACK_BYTES = 1024  # more than every chain of calls takes: measured by tests/export/test_c_stack.py
MOST_BYTES = 64 << 20  # of constants; compilers take minutes and gigabytes for more
MOST_NAME_BYTES = 4095  # that C99 asks a compiler to take as one text
_SUPPORT = {"nearest": 0, "bilinear": 1, "bicubic": 2}
_BIASES = {"none": "BIAS_NONE", "relative": "BIAS_RELATIVE", "full": "BIAS_FULL"}
_SCORES = {None: "SCORE_NONE", "max_logit": "SCORE_MAX_LOGIT", "energy": "SCORE_ENERGY"}
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_NAME = re.compile("[a-z][a-z0-9_]{0,30}")
# NAME.h must not stand before a header of C's library, nor NAME_WIDTH be a macro of limits.h or stdint.h (C23).
_HEADERS = re.compile(
    "assert|complex|ctype|errno|fenv|float|inttypes|iso646|limits|locale|math|setjmp|signal|stdalign|stdarg|stdatomic|"
    "stdbit|stdbool|stdckdint|stddef|stdint|stdio|stdlib|stdnoreturn|string|tgmath|threads|time|uchar|wchar|wctype|"
    "memory|strings|unistd"
)
_WIDTHS = re.compile(
    "u?(char|shrt|int|long|llong|int(_least|_fast)?(8|16|32|64)|intptr|intmax)|schar|bool|ptrdiff|size|sig_atomic|wint"
)
_OWN = re.compile(r"\b(model|MODEL)(?=_|\.[ch]\b)")  # what is called by the model's name in the templates


@dataclass(frozen=True)
class CSource:
    """The two files, and what a device needs for them, in bytes.

    ``flash_bytes`` are weights, tables and names, without the code. ``run_bytes`` is the working memory to classify,
    ``resize_bytes`` that to resize a picture of at most ``max_picture_width`` columns. ``stack_bytes`` is a bound.
    """

    source: str
    header: str
    flash_bytes: int
    run_bytes: int
    resize_bytes: int
    max_picture_width: int = MAX_PICTURE_WIDTH
    stack_bytes: int = STACK_BYTES

    @property
    def arena_bytes(self) -> int:
        """The working memory that the caller gives: resizing ends before classifying begins."""
        return max(self.run_bytes, self.resize_bytes)


def write_c(model: Path, folder: Path, engine: str = "native", name: str = "model") -> CSource:
    """Write ``model.c`` and ``model.h`` of a packed file into ``folder``, which is made where it is missing.

    Both files appear when both are complete. ``engine`` classifies the picture of noise that ``model_check`` compares.
    With another ``name``, it stands in the place of ``model`` in files and functions.

    Raises:
        InputError: for what is no packed model, a model that C99 has no room for, a name that C does not take, and a
            folder that cannot be written; then nothing is written.
    """
    folder = check_place(folder, name)
    packed = read(model)
    check_fits(packed)
    classifier = load(model, threads=1, engine=engine)
    try:
        (logits,) = classifier.logits(noise(packed.architecture)[None])
    except ModelError as error:
        raise ModelError(f"{model}: {error}") from error
    made = c_source(packed, check_sum(logits), name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as both:
            for ending, text in (("h", made.header), ("c", made.source)):
                both.enter_context(staged(folder / f"{name}.{ending}")).write_bytes(text.encode())
    except OSError as error:
        raise _no_place(folder, name, error.strerror or str(error)) from error
    return made


def check_place(folder: Path, name: str, other: Path | None = None) -> Path:
    """Return the folder that ``name.c`` and ``name.h`` may go to, as far as that is known before they are made.

    Raises InputError for a name that C does not take, for what is no folder or holds folders of these names, and where
    ``other``, which is written, too, is one of the two files.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"the name {shown(name)} must be at most 31 of a-z, 0-9 and _, with a letter first")
    if _HEADERS.fullmatch(name) or _WIDTHS.fullmatch(name):
        raise InputError(f"the name {name!r} is one of C's library; choose another")
    folder = as_path(folder, "a folder for model.c and model.h")
    if folder.exists() and not folder.is_dir():
        raise _no_place(folder, name, "is no folder")
    for path in (folder / f"{name}.c", folder / f"{name}.h"):
        if path.is_dir():
            raise _no_place(folder, name, f"{path.name} is a folder")
        refuse_other(path, "a file of gsb-vit", b"made by gsb-vit")
        if other is not None and path.resolve() == other.resolve():
            raise InputError(
                f"{other} is named twice: as the packed file and as {path}; give the packed file another name"
            )
    return folder


def _no_place(folder: Path, name: str, reason: str) -> InputError:
    return InputError(f"{folder}: cannot be written ({reason}); give a folder for {name}.c and {name}.h")


def noise(architecture: Architecture) -> NDArray[np.uint8]:
    """Return the picture of ``model_check``: uint8 (H, W, 3) from a linear congruential generator."""
    height, width = architecture.image_size
    values = np.empty(height * width * 3, dtype=np.uint8)
    state = 1
    for place in range(values.size):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        values[place] = state >> 24
    return values.reshape(height, width, 3)


def check_sum(logits: NDArray[np.float32]) -> int:
    """Return the FNV-1a hash, 32 bits, of logits as little-endian float32."""
    total = 2166136261
    for byte in logits.astype("<f4").tobytes():
        total = ((total ^ byte) * 16777619) & 0xFFFFFFFF
    return total


def check_fits(model: PackedModel) -> None:
    """Refuse, in one line, a model that the C engine does not run or C99 does not hold. Raises InputError."""
    a, how = model.architecture, model.preprocessing
    unknown = model.decision.unknown
    if a.formats != Formats():
        raise InputError("a C file holds models of one-bit activations only; use the C API (native/include/gsb_vit.h)")
    for what, value, known in (
        ("attention_bias", a.attention_bias, _BIASES),
        ("interpolation", how.interpolation, _SUPPORT),
        ("score", unknown.score if unknown else None, _SCORES),
    ):
        if value not in known:
            raise InputError(f"the C engine does not know {what} {value!r}; use the C API (native/include/gsb_vit.h)")
    for name in model.class_names:
        if "\0" in name or len(name.encode()) > MOST_NAME_BYTES:
            raise InputError(
                f"the class name {name[:40]!r} is no C text (it holds a NUL, or more than {MOST_NAME_BYTES} bytes); "
                "rename the class"
            )
    if (size := max(sum(array.nbytes for array in model.tensors.values()), _run_bytes(a))) > MOST_BYTES:
        raise InputError(
            f"{a.name} takes {size / 1e6:,.0f} MB, and a C file holds models of at most {MOST_BYTES / 1e6:.0f} MB; "
            "use the C API (native/include/gsb_vit.h)"
        )


def c_source(model: PackedModel, check: int, name: str = "model") -> CSource:
    """Return the C file and its header of a packed model that :func:`check_fits` takes.

    ``check`` is the :func:`check_sum` of the logits of :func:`noise`; ``name`` as in :func:`write_c`.
    """

    a = model.architecture
    header, engine = _templates(name, [*_shape(model, check)])
    arrays = [*_arrays(model)]
    names = sum(len(name.encode()) + 1 + 4 for name in model.class_names)  # and a pointer each
    flash = sum(array.bytes for array in arrays) + names
    parts = [
        _SOURCE_HEAD.format(file=name, name=_text(a.name), version=__version__),
        *(f"#define {key} {value}" for key, value in _shape(model, check).items()),
        "\n/* ---- Weights */\n",
        *(array.text for array in arrays),
        _convolutions(a),
        _names(model.class_names),
        engine,
    ]
    width, taps = a.image_size[1], _SUPPORT[model.preprocessing.interpolation]
    run = _run_bytes(a)
    resize = _resize_bytes(a, taps)
    widest = f"{name.upper()}_MAX_PICTURE_WIDTH"
    places = {
        "version": __version__,
        "guard": f"GSB_VIT_{name.upper()}_H",
        "name": _text(a.name),
        "height": a.image_size[0],
        "width": width,
        "classes": a.num_classes,
        "flash": flash,
        "stack": STACK_BYTES,
        "max_width": MAX_PICTURE_WIDTH,
        "most_taps": f"(({widest} + {width - 1}) / {width} * {2 * taps} + 2)",
        "run_bytes": run,
        "resize_bytes": "0" if taps == 0 else f"({resize} + {4 * width} * {name.upper()}_MOST_TAPS + 3 * {widest})",
        "preparation": _preparation(model),
    }
    header = _PLACE.sub(lambda place: str(places[place[1]]), header)
    most_taps = (MAX_PICTURE_WIDTH + width - 1) // width * 2 * taps + 2
    resizing = 0 if taps == 0 else resize + 4 * width * most_taps + 3 * MAX_PICTURE_WIDTH
    return CSource("\n".join(parts), header, flash, run, resizing)


def _templates(name: str, macros: Iterable[str]) -> tuple[str, str]:
    """Header and engine with ``name`` where they say model. Raises InputError where that makes a word twice."""
    folder = files(__package__).joinpath("c")
    texts = [folder.joinpath(file).read_text(encoding="utf-8") for file in ("model.h", *_ENGINE)]
    words = {*macros, *(word for text in texts for word in re.findall(r"\w+", text))}
    own = {word for word in words if _OWN.match(word)}

    def called(found: re.Match[str]) -> str:
        return name if found[1] == "model" else name.upper()

    if taken := sorted({_OWN.sub(called, word) for word in own} & (words - own)):
        raise InputError(f"the name {name!r} makes {taken[0]}, which the engine has; choose another")
    header, *engine = (_OWN.sub(called, text) for text in texts)
    return header, "\n".join(engine)


_SOURCE_HEAD = """\
/* A one-bit vision transformer, made by gsb-vit {version}: {name}
 * {file}.h says how to use it. Copyright (c) the gsb-vit authors; MIT licence.
 *
 *   cc -std=c99 -O2 -ffp-contract=off -c {file}.c
 */
#include "{file}.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

/* ---- The model's shape */
"""


def _shape(model: PackedModel, check: int) -> dict[str, Any]:
    """The macros that the engine reads."""
    a, how, decision = model.architecture, model.preprocessing, model.decision
    unknown, reads = decision.unknown, [head.reads for head in a.heads]
    even, odd = _level_words(a)
    return {
        "IMAGE_HEIGHT": a.image_size[0],
        "IMAGE_WIDTH": a.image_size[1],
        "PATCH_HEIGHT": a.patch_height,
        "PATCH_WIDTH": a.patch_width,
        "EMBED_DIM": a.embed_dim,
        "DEPTH": a.depth,
        "NUM_HEADS": a.num_heads,
        "MLP_HIDDEN": a.mlp_hidden,
        "PREFIX_TOKENS": a.prefix_tokens,
        "NUM_HEADS_OUT": len(a.heads),
        "NUM_CLASSES": a.num_classes,
        "LAYER_NORM_EPS": _float(np.float32(a.layer_norm_eps)),
        "ATTENTION_GROUPS": a.attention_groups,
        "VALUE_GROUPS": a.value_groups,
        "FIXED_LIMITS": int(a.threshold_scope == "fixed"),
        **{name: number for number, name in enumerate(_BIASES.values())},
        "ATTENTION_BIAS": _BIASES[a.attention_bias],
        "RELATIVE_BIAS_SIZE": a.relative_bias_size,
        "POOL_MEAN": int(a.global_pool == "avg"),
        "NORM_BEFORE_POOL": int(a.pool_norm == "before"),
        "READ_FIRST": f"{min(part.first for part in reads)} /* tokens that the heads read */",
        "READ_END": max(part.end for part in reads),
        "CONVOLUTIONS": len(a.channels),
        **({"EVEN_WORDS": even, "ODD_WORDS": odd} if a.channels else {}),
        "ONE_BIT_LEVELS": int(1 in a.level_bits),
        "FILTER_SUPPORT": f"{_SUPPORT[how.interpolation]} /* {how.interpolation} */",
        "KEEP_MIDDLE": int(how.resize == "crop"),
        "CROP_RATIO": how.crop_ratio.hex(),
        "TEMPERATURE": decision.temperature.hex(),
        **{name: number for number, name in enumerate(_SCORES.values())},
        "UNKNOWN_SCORE": _SCORES[unknown.score if unknown else None],
        "UNKNOWN_THRESHOLD": f"({float(unknown.threshold if unknown else 0).hex()})",
        "CHECK_SUM": f"0x{check:08X}u",
    }


def _preparation(model: PackedModel) -> str:
    """How a picture becomes the model's input, for the header."""
    how = model.preprocessing
    height, width = how.size
    if how.resize == "squash":
        return f"it is resized as a whole, {how.interpolation}, as in training"
    part = "" if how.crop_ratio == 1 else f", {how.crop_ratio:.6g} of it along each side,"
    return f"its largest middle of {width} to {height}{part} is resized, {how.interpolation}, as in training"


# ---- Constants


@dataclass(frozen=True)
class _Array:
    text: str
    bytes: int


def _arrays(model: PackedModel) -> Iterator[_Array]:
    a = model.architecture
    if not a.channels:
        yield _array("int8_t", "patch_weight", model["patch_embed.weight"])
        yield _array("float", "patch_scale", model["patch_embed.scale"])
    for index in range(len(a.channels)):
        name = f"tokenizer.{index}."
        if index and a.level_bits[index - 1] == 1:
            yield _array("uint32_t", f"tokenizer_{index}_bits", _by_tap(model[name + "weight"], a.channels[index - 1]))
        else:
            yield _array("int8_t", f"tokenizer_{index}_weight", model[name + "weight"])
        yield _array("float", f"tokenizer_{index}_scale", model[name + "scale"])
        if index + 1 < len(a.channels):
            yield _array("float", f"tokenizer_{index}_offset", model[name + ("bias" if index else "offset")])
    yield _array("float", "position", model["patch_embed.position"])
    if a.prefix_tokens:
        yield _array("float", "prefix_tokens", model["prefix_tokens"])
    if a.threshold_scope == "sample":
        if a.attention_thresholds:
            yield _array("float", "attention_ratios", np.array(a.attention_thresholds, np.float32))
        if a.value_thresholds:
            yield _array("float", "value_ratios", np.array(a.value_thresholds, np.float32))
    yield from _block_arrays(model)
    yield _array("float", "norm_weight", model["norm.weight"])
    yield _array("float", "norm_bias", model["norm.bias"])
    for name, ctype in (("weight", "int8_t"), ("shift", "float"), ("scale", "float"), ("bias", "float")):
        yield _table(ctype, f"head_{name}", "NUM_HEADS_OUT", [model[f"heads.{j}.{name}"] for j in range(len(a.heads))])
    scales = np.concatenate([model[f"heads.{j}.input_scale"] for j in range(len(a.heads))])
    yield _array("float", "head_input_scale", scales)


def _block_arrays(model: PackedModel) -> Iterator[_Array]:
    a = model.architecture

    def of_blocks(name: str) -> list[NDArray[Any]]:
        return [model[f"blocks.{index}.{name}"] for index in range(a.depth)]

    for norm in ("norm1", "norm2"):
        pairs = zip(of_blocks(f"{norm}.weight"), of_blocks(f"{norm}.bias"), strict=True)
        signs = [norm_signs(weight, bias) for weight, bias in pairs]
        yield _table("float", f"{norm}_threshold", "DEPTH", [threshold for threshold, _ in signs])
        yield _table("uint32_t", f"{norm}_flip", "DEPTH", [_words(flip[None], a.embed_dim) for _, flip in signs])
    for name, depth in (("attn.qkv", a.embed_dim), ("attn.proj", a.embed_dim), ("mlp.fc1", a.embed_dim)):
        weights = [_words_32(words, depth) for words in of_blocks(f"{name}.weight")]
        yield _table("uint32_t", f"{name.partition('.')[2]}_weight", "DEPTH", weights)
    yield _table("uint32_t", "fc2_weight", "DEPTH", [_words_32(w, a.mlp_hidden) for w in of_blocks("mlp.fc2.weight")])
    yield _table("int16_t", "qkv_threshold", "DEPTH", of_blocks("attn.qkv.threshold"))
    yield _table("int16_t", "fc1_zero_interval", "DEPTH", of_blocks("mlp.fc1.zero_interval"))
    floats = ["v_scale", "v_bias", "exp_table", "product_scale", "proj.shift", "proj.scale", "proj.bias"]
    for name in [*(f"attn.{name}" for name in floats), "mlp.fc2.scale", "mlp.fc2.bias"]:
        yield _table("float", name.partition(".")[2].replace(".", "_"), "DEPTH", of_blocks(name))
    yield _array("float", "attention_half_scale", np.concatenate(of_blocks("attn.attention_half_scale")))
    if a.threshold_scope == "fixed" and a.attention_thresholds:
        yield _table("float", "attention_fixed_limits", "DEPTH", of_blocks("attn.attention_limits"))
    if a.threshold_scope == "fixed" and a.value_thresholds:
        yield _table("float", "value_limits", "DEPTH", of_blocks("attn.value_limits"))
    if a.attention_bias == "relative":
        yield _table("float", "attention_bias", "DEPTH", of_blocks("attn.bias"))
    elif a.attention_bias == "full":
        halves = [bias.view(np.uint16) for bias in of_blocks("attn.bias")]
        yield _table("uint16_t", "attention_bias", "DEPTH", halves)


def norm_signs(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return thresholds and flips (C) so that ``t·weight + bias ≥ 0`` is ``(t ≥ threshold) ≠ flip`` for each float t.

    The rounded product and sum are monotonic in t, so the floats, in their order, are bisected for the first t whose
    bit is 1; for a negative weight, 0. −infinity and infinity stand for all and none.
    """
    flip = weight < 0
    low = np.full(weight.shape, _ordered(np.float32(-np.inf)))
    high = np.full(weight.shape, _ordered(np.float32(np.inf)))
    with np.errstate(all="ignore"):
        while np.any(open_ := low < high):
            middle = low + (high - low) // 2
            found = ((_unordered(middle) * weight + bias) >= 0) != flip
            high = np.where(open_ & found, middle, high)
            low = np.where(open_ & ~found, middle + 1, low)
    return _unordered(low), flip


def _ordered(x: NDArray[np.float32] | np.float32) -> Any:
    """Floats as whole numbers in the same order; −0 before +0."""
    bits = np.asarray(x, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -1 - (bits & 0x7FFFFFFF))


def _unordered(order: NDArray[np.int64]) -> NDArray[np.float32]:
    bits = np.where(order >= 0, order, (-1 - order) | 0x80000000)
    return bits.astype(np.uint32).view(np.float32)


def _words(bits: NDArray[np.bool_], depth: int) -> NDArray[np.uint32]:
    """Booleans (rows, depth) → words (rows, ⌈depth/32⌉)."""
    padded = np.zeros((len(bits), -(-depth // 32) * 32), dtype=np.uint8)
    padded[:, :depth] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def _words_32(words: NDArray[np.uint64], depth: int) -> NDArray[np.uint32]:
    """Words of 64 bits (rows, ⌈depth/64⌉) → of 32 bits (rows, ⌈depth/32⌉)."""
    return words.astype("<u8").view("<u4").astype(np.uint32)[:, : -(-depth // 32)]


def _by_tap(words: NDArray[np.uint64], inputs: int) -> NDArray[np.uint32]:
    """Rows of nine taps (O, ⌈9·I/64⌉) → words of 32 bits (O·9, ⌈I/32⌉): each tap begins one."""
    return _words(unpack(words, 9 * inputs).reshape(-1, inputs), inputs)


def _array(ctype: str, name: str, values: NDArray[Any]) -> _Array:
    return _Array(f"static const {ctype} {name}[{values.size}] = {{\n{_numbers(values)}}};\n", values.nbytes)


def _table(ctype: str, name: str, rows: str, values: Sequence[NDArray[Any]]) -> _Array:
    """One row a block or head."""
    lines = ",\n".join(f"{{\n{_numbers(row)}}}" for row in values)
    text = f"static const {ctype} {name}[{rows}][{values[0].size}] = {{\n{lines}}};\n"
    return _Array(text, sum(row.nbytes for row in values))


def _numbers(values: NDArray[Any]) -> str:
    if values.dtype == np.float32:
        texts, each = [_float(value) for value in values.reshape(-1)], 8
    elif values.dtype == np.uint32:
        texts, each = [f"0x{value:08X}u" for value in values.reshape(-1).tolist()], 10
    else:
        texts, each = [str(value) for value in values.reshape(-1).tolist()], 24
    return ",\n".join(", ".join(texts[at : at + each]) for at in range(0, len(texts), each))


def _float(value: np.float32) -> str:
    """A float as C reads it back, bit for bit."""
    if np.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    mantissa, _, exponent = float(value).hex().partition("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}f"


def _convolutions(a: Architecture) -> str:
    if not a.channels:
        return ""
    rows, inputs, last = [], 3, len(a.channels) - 1
    bits = (8, *a.level_bits, 32)  # of what each convolution reads, and of the tokens
    for index, outputs in enumerate(a.channels):
        height, width = (side >> (index + 1) for side in a.image_size)
        offset = "position" if index == last else f"tokenizer_{index}_offset"
        weight = f"NULL, tokenizer_{index}_bits" if bits[index] == 1 else f"tokenizer_{index}_weight, NULL"
        pointers = f"{weight}, tokenizer_{index}_scale, {offset}"
        rows.append(f"    {{{inputs}, {outputs}, {height}, {width}, {int(bits[index + 1] == 1)}, {pointers}}},")
        inputs = outputs
    return "\n".join(
        [
            "struct convolution {",
            "    int inputs, outputs, height, width; /* of the outputs */",
            "    int gives_bits;",
            "    const int8_t *weight;",
            "    const uint32_t *bits; /* instead of weight, where the inputs are one-bit levels */",
            "    const float *scale, *offset;",
            "};",
            "static const struct convolution convolutions[CONVOLUTIONS] = {",
            *rows,
            "};\n",
        ]
    )


def _names(names: Iterable[str]) -> str:
    lines = ",\n".join(_text(name) for name in names)
    return f"static const char *const class_names[NUM_CLASSES] = {{\n{lines}}};\n"


def _text(text: str) -> str:
    """A C text; what is not plain ASCII, and what C could take for something else, as octal numbers."""
    plain = (chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?*' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


# ---- Memory: struct arena of c/memory.c


def _run_bytes(a: Architecture) -> int:
    """What struct arena takes while the network runs, each array rounded up to 8 bytes."""
    tokens, width, words = a.num_tokens, a.embed_dim, -(-a.num_tokens // 32)
    head_words = a.num_heads * -(-a.head_dim // 32)
    pixels = a.image_size[0] * a.image_size[1] * 3
    taps = 6 * -(-a.patch_height * a.patch_width // 4) * 4
    levels = [4 * words for words in _level_words(a)] if a.channels else [taps]
    embedding = _sum_of([pixels, *levels])
    values, queries = 2 * tokens * width, 4 * tokens * head_words
    planes, masks = 4 * a.value_groups * width * words, 4 * a.attention_groups * words
    bits = 4 * (-(-width // 32) + -(-a.mlp_hidden // 32))
    block = _sum_of([values, queries, queries, planes, masks, 4 * tokens, 2 * tokens, bits])
    classifying = _sum_of([4 * width, width, 4 * a.num_classes])
    return max(embedding, block, classifying) + _sum_of([4 * tokens * width])


def _level_words(a: Architecture) -> tuple[int, int]:
    """Words of the levels between convolutions, of those with an even and an odd number."""
    sizes = []
    for index, (outputs, bits) in enumerate(zip(a.channels, a.level_bits, strict=False)):
        places = (a.image_size[0] >> (index + 1)) * (a.image_size[1] >> (index + 1))
        sizes.append(places * -(-outputs // 32) if bits == 1 else -(-places * outputs // 4))
    return max(sizes[0::2], default=1), max(sizes[1::2], default=1)


def _resize_bytes(a: Architecture, support: int) -> int:
    """What struct resizing takes but for its weights and the picture's line."""
    height, width = a.image_size
    return _sum_of([4 * 3 * height * width, 8 * width, 16 * height, 3 * width]) + 16 if support else 0


def _sum_of(sizes: Iterable[int]) -> int:
    return sum(-(-size // 8) * 8 for size in sizes)
