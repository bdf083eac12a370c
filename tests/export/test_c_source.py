"""A model as one C file: logits equal to the bit, whatever compiles it; and what is refused."""

import json
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from c_model import COMPILERS, EXACT, LEVELS, WARNINGS, CModel, needs_compiler, run
from needs import skip_without
from paths import HELPERS
from random_packed import SHAPES, TINY, random_packed, random_pictures
from safetensors.numpy import save

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import Decision, Unknown, unknown_scores
from gsb_vit.errors import InputError, ModelError
from gsb_vit.export import c_source
from gsb_vit.export.c_source import check_fits, norm_signs, write_c
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import write
from gsb_vit.runtime.reference import ReferenceModel

X87 = "-DAS_A_COMPILER_FOR_THE_X87"
ENGINE = "native" if find_spec("gsb_vit._native") else "reference"  # both have the same logits; the first is quick
WAYS = [(compiler, level) for compiler in COMPILERS for level in LEVELS]


def exported(folder, model):
    """Write a model and its C files; → what write_c says."""
    write(folder / "model.safetensors", model)
    return write_c(folder / "model.safetensors", folder, ENGINE)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Return a function: a shape's name → its folder, model, what write_c says, two pictures and their logits."""

    @cache
    def of(name):
        folder = tmp_path_factory.mktemp(name)
        model = random_packed(seed=11, **SHAPES[name])
        pictures = random_pictures(model.architecture, 2, seed=3)
        made = exported(folder, model)
        return folder, model, made, pictures, load(folder / "model.safetensors", engine=ENGINE).logits(pictures)

    return of


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_reference(shapes, shape):
    """Shapes take the ways to compile in turn; the next test takes them all, on the reference's logits."""
    compiler, level = WAYS[list(SHAPES).index(shape) % len(WAYS)]
    needs_compiler(compiler)
    folder, model, made, pictures, expected = shapes(shape)
    built = CModel(folder, made, model.architecture, compiler, level)
    logits, status = built.logits(pictures)
    assert status == 0 and built.check() == 0
    assert logits.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("compiler", "level"), WAYS)
def test_every_way_to_compile_gives_the_references_logits(shapes, compiler, level):
    needs_compiler(compiler)
    folder, model, made, _, _ = shapes("mean_behind_a_prefix")
    pictures = random_pictures(model.architecture, 20, seed=4)
    logits, _ = CModel(folder, made, model.architecture, compiler, level).logits(pictures)
    assert logits.tobytes() == ReferenceModel(model).logits(pictures).tobytes()


def test_a_file_of_version_1_becomes_c_too(tmp_path):
    model = random_packed(seed=9, **SHAPES["two_heads"])
    header = {
        "architecture": model.architecture.to_json(),
        "class_names": list(model.class_names),
        "preprocessing": model.preprocessing.to_json(),
        "provenance": {},
    }
    metadata = {"format": "gsb-vit-packed", "version": "1", "model": json.dumps(header)}
    (tmp_path / "model.safetensors").write_bytes(save(dict(model.tensors), metadata))
    made = write_c(tmp_path / "model.safetensors", tmp_path, ENGINE)
    pictures = random_pictures(model.architecture, 2)
    built = CModel(tmp_path, made, model.architecture, "gcc", "-O1")
    assert built.logits(pictures)[0].tobytes() == ReferenceModel(model).logits(pictures).tobytes()


def has_fma():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return " fma " in file.read()
    except OSError:
        return False


def test_no_option_makes_gcc_fuse(shapes, tmp_path):
    """Without the pragma the options do change results, and model_check says so."""
    needs_compiler("gcc")
    if not has_fma():
        skip_without("fused multiply-add", "a processor that has it")
    folder, model, made, pictures, expected = shapes("mean_of_norms")
    options = ("-std=gnu99", "-O2", "-mfma", "-ffp-contract=fast")
    assert CModel(folder, made, model.architecture, "gcc", *options).logits(pictures)[0].tobytes() == expected.tobytes()
    (tmp_path / "model.h").write_text(made.header)
    (tmp_path / "model.c").write_text(made.source.replace('#pragma GCC optimize("fp-contract=off")', ""))
    assert CModel(tmp_path, made, model.architecture, "gcc", *options).check() == -3
    assert CModel(tmp_path, made, model.architecture, "gcc", *options, EXACT).check() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("-Ofast",), "fast-math"),
        (("-O2", "-ffinite-math-only"), "finite-math-only"),
        ((X87,), "x87"),
    ],
)
def test_options_that_change_results_do_not_compile(tmp_path, flags, says):
    needs_compiler("gcc")
    exported(tmp_path, random_packed(seed=1, **TINY))
    source = tmp_path / "model.c"
    if flags == (X87,):
        text = source.read_text()
        source.write_text(text.replace("#include <string.h>", "#undef FLT_EVAL_METHOD\n#define FLT_EVAL_METHOD 2"))
    with pytest.raises(AssertionError, match=says):
        run("gcc", "-std=c99", *flags, "-c", source, "-o", tmp_path / "model.o")


@pytest.mark.parametrize("shape", ["two_convolutions", "mean_of_norms"])
def test_sanitizers_find_nothing(shapes, tmp_path, shape):
    needs_compiler("gcc")
    folder, _, _, pictures, expected = shapes(shape)
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O0")
    sources, program = (HELPERS / "c_model_main.c", folder / "model.c"), tmp_path / "program"
    run("gcc", *WARNINGS, *checks, f"-I{folder}", *sources, "-lm", "-o", program)
    said = run(program, input=pictures[0].tobytes()).split()
    assert [int(word, 16) for word in said] == expected[0].view(np.uint32).tolist()


@pytest.mark.parametrize("shape", ["registers", "three_convolutions_mean", "one_head"])
def test_the_header_states_the_memory(shapes, tmp_path, shape):
    needs_compiler("gcc")
    folder, _, made, _, _ = shapes(shape)
    (tmp_path / "says.c").write_text(
        '#include <stdio.h>\n#include "model.c"\n'
        'int main(void) { printf("%zu %d %d %d", sizeof(struct arena), MODEL_ARENA_BYTES, MODEL_FLASH_BYTES, '
        "MODEL_RUN_BYTES); return 0; }\n"
    )
    run("gcc", "-O0", f"-I{folder}", tmp_path / "says.c", "-lm", "-o", tmp_path / "says")
    arena, stated, flash, run_bytes = map(int, run(tmp_path / "says").split())
    assert (stated, flash, run_bytes) == (made.arena_bytes, made.flash_bytes, made.run_bytes)
    assert stated - 64 <= arena <= stated


def test_the_header_is_cpp_too(shapes):
    needs_compiler("g++")
    folder = shapes("one_head")[0]
    run("g++", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-x", "c++", folder / "model.h")


def test_flash_is_what_the_object_file_holds(shapes, tmp_path):
    needs_compiler("gcc")
    folder, model, made, _, _ = shapes("registers")
    run("gcc", "-Os", "-c", folder / "model.c", "-o", tmp_path / "model.o")
    lines = run("size", "-A", tmp_path / "model.o").splitlines()
    sizes = dict(line.split()[:2] for line in lines if line.startswith("."))
    held = sum(int(size) for name, size in sizes.items() if "rodata" in name or name.startswith(".data.rel.ro"))
    assert made.flash_bytes <= held <= made.flash_bytes + 2000 + 4 * model.architecture.num_classes
    assert int(sizes.get(".data", 0)) == int(sizes.get(".bss", 0)) == 0


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_pictures_of_any_size_give_pillows_pixels(tmp_path, interpolation, resize):
    how = Preprocessing(size=(16, 24), resize=resize, interpolation=interpolation, crop_ratio=0.83)
    model = replace(random_packed(seed=3, **{**TINY, "image_size": (16, 24)}), preprocessing=how)
    built = CModel(tmp_path, exported(tmp_path, model), model.architecture, "gcc", "-O1")
    rng = np.random.default_rng(6)
    for height, width in [
        (1, 1),
        (16, 24),
        (24, 16),
        (7, 640),
        (333, 5),
        (61, 97),
        (200, 31),
        *rng.integers(1, 130, (25, 2)),
    ]:
        picture = rng.integers(0, 2, (height, width, 3)) * rng.integers(100, 256)
        picture = picture.astype(np.uint8)
        assert np.array_equal(built.prepare(picture), how(picture)), (height, width)
    logits, status = built.picture_logits(picture)
    assert status == 0
    assert logits.tobytes() == ReferenceModel(model).logits(how(picture)[None])[0].tobytes()


def test_every_format_and_orientation_equals_the_engine(tmp_path):
    native = pytest.importorskip("gsb_vit._native")
    model = random_packed(seed=3, **{**TINY, "image_size": (16, 24)})
    built = CModel(tmp_path, exported(tmp_path, model), model.architecture, "gcc", "-O1")
    rng = np.random.default_rng(7)
    for channels in (1, 3, 4):
        for orientation in range(1, 9):
            pixels = rng.integers(0, 256, (29, 47, channels), dtype=np.uint8)
            found = built.prepare(pixels, orientation)
            upright = turned(pixels, orientation)
            how = model.preprocessing
            expected = native.prepare(
                np.ascontiguousarray(upright),
                how.size,
                how.resize,
                how.crop_ratio,
                how.interpolation,
                "portable",
                10**6,
            )
            assert np.array_equal(found, expected), (channels, orientation)


def turned(pixels, orientation):
    """EXIF's tag 274, done by NumPy."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    across, down = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    return pixels[:: -1 if down else 1, :: -1 if across else 1]


def test_rows_may_be_padded_and_bad_pictures_are_refused(tmp_path):
    model = random_packed(seed=3, **TINY)
    built = CModel(tmp_path, exported(tmp_path, model), model.architecture, "gcc", "-O1")
    wide = np.random.default_rng(8).integers(0, 256, (21, 40, 3), dtype=np.uint8)
    assert np.array_equal(built.prepare(wide, stride=120, size=(33, 21)), model.preprocessing(wide[:, :33].copy()))
    assert built.prepare(wide, stride=119) is None
    assert built.prepare(wide, orientation=0) is None and built.prepare(wide, orientation=9) is None
    assert built.prepare(np.zeros((5, 5, 2), np.uint8)) is None
    assert built.prepare(wide, size=(0, 21)) is None and built.prepare(wide, size=(40, 0)) is None
    assert built.prepare(np.zeros((2, 641, 3), np.uint8)) is None
    assert built.prepare(np.zeros((641, 2, 3), np.uint8)) is not None
    assert built.prepare(np.zeros((641, 2, 3), np.uint8), orientation=6) is None
    assert built.picture_logits(np.zeros((2, 641, 3), np.uint8))[1] == -2


@pytest.mark.parametrize("score", ["max_logit", "energy", None])
def test_decision_and_names(tmp_path, score):
    names = ('say "no"', "ünder\\??/", "*/ x")
    model = random_packed(seed=4, **{**TINY, "num_classes": 3})
    pictures = random_pictures(model.architecture, 12, seed=9)
    logits = ReferenceModel(model).logits(pictures)
    decision = Decision(0.37)
    if score:
        middle = float(np.median(unknown_scores(logits, score, 0.37)))
        decision = Decision(0.37, Unknown(score, middle, 0.5))
    model = replace(model, decision=decision, class_names=names)
    built = CModel(tmp_path, exported(tmp_path, model), model.architecture, "gcc", "-O1")
    for row in logits:
        assert np.allclose(built.probabilities(row), decision.probabilities(row[None])[0], rtol=1e-14, atol=0)
        assert built.best(row) == int(np.argmax(row))
        assert built.is_unknown(row) == (int(decision.is_unknown(row[None])[0]) if score else -1)
    assert [built.class_name(k) for k in (-1, 0, 1, 2, 3)] == [None, *(name.encode() for name in names), None]


def overflowing():
    """A model with prefix tokens whose squares no float holds."""
    model = random_packed(seed=5, **TINY)
    tokens = np.where(np.arange(model.architecture.embed_dim) % 2, 3e38, -3e38) * np.ones((2, 1))
    return replace(model, tensors={**model.tensors, "prefix_tokens": tokens.astype(np.float32)})


def test_numbers_that_overflow_give_a_status_and_nan(tmp_path):
    model = overflowing()
    made = c_source.c_source(model, 0)
    (tmp_path / "model.h").write_text(made.header)
    (tmp_path / "model.c").write_text(made.source)
    built = CModel(tmp_path, made, model.architecture, "gcc", "-O1")
    logits, status = built.logits(random_pictures(model.architecture, 2))
    assert status == built.check() == -1
    assert np.isnan(logits).all()


def test_a_model_whose_numbers_overflow_is_refused(tmp_path):
    write(tmp_path / "model.safetensors", overflowing())
    with pytest.raises(ModelError, match=r"model.safetensors: the model's numbers overflow"):
        write_c(tmp_path / "model.safetensors", tmp_path / "c", "reference")
    assert not (tmp_path / "c").exists()


def test_what_c_cannot_hold_is_refused(tmp_path, monkeypatch):
    model = random_packed(seed=6, **TINY)
    for name in ("a\0b", "x" * 5000):
        with pytest.raises(InputError, match="rename the class"):
            check_fits(replace(model, class_names=(name, "b", "c", "d")))
    monkeypatch.setattr(c_source, "MOST_BYTES", 10_000)
    with pytest.raises(InputError, match="C API"):
        check_fits(model)


def test_thresholds_of_norms_decide_as_the_floats_do():
    rng = np.random.default_rng(10)
    weight = np.concatenate([rng.normal(0, 1, 300), [0, -0.0, 1e-38, -1e38, 0]]).astype(np.float32)
    bias = np.concatenate([rng.normal(0, 1, 300), [1, -1, -1e30, 1e30, 0]]).astype(np.float32)
    threshold, flip = norm_signs(weight, bias)
    near = threshold.view(np.int32)[:, None] + np.arange(-3, 4)
    for t in [*near.astype(np.int32).view(np.float32).T, *rng.normal(0, 2, (50, len(weight))).astype(np.float32)]:
        finite = np.isfinite(t)
        with np.errstate(all="ignore"):
            expected = t * weight + bias >= 0
        assert np.array_equal(((t >= threshold) != flip)[finite], expected[finite])
