"""A model as one C file: logits equal to the bit, whatever compiles it; and what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from c_model import COMPILERS, EXACT, LEVELS, WARNINGS, CModel, needs_compiler, run
from needs import skip_without
from paths import HELPERS
from random_packed import SHAPES, TINY, random_packed, random_pictures

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import Decision, Unknown
from gsb_vit.errors import InputError, ModelError
from gsb_vit.export import c_source
from gsb_vit.export.c_source import check_fits, norm_signs, write_c
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import write
from gsb_vit.runtime.reference import ReferenceModel

WAYS = [(compiler, level) for compiler in COMPILERS for level in LEVELS]


def exported(folder, model):
    """Write a model and its C files; → what write_c says."""
    write(folder / "model.safetensors", model)
    return write_c(folder / "model.safetensors", folder, "reference")


def assert_equal_logits(model, built, pictures):
    logits, status = built.logits(pictures)
    assert status == 0 and built.check() == 0
    expected = ReferenceModel(model).logits(pictures)
    assert logits.tobytes() == expected.tobytes()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_the_reference(tmp_path, shape, compiler):
    """Shapes take the levels of optimization in turn; the next test takes them all."""
    needs_compiler(compiler)
    model = random_packed(seed=11, **SHAPES[shape])
    level = LEVELS[(list(SHAPES).index(shape) + COMPILERS.index(compiler)) % len(LEVELS)]
    built = CModel(tmp_path, exported(tmp_path, model), model.architecture, compiler, level)
    assert_equal_logits(model, built, random_pictures(model.architecture, 2, seed=3))


@pytest.mark.parametrize(("compiler", "level"), WAYS)
def test_every_way_to_compile_gives_the_engines_logits(tmp_path, compiler, level):
    needs_compiler(compiler)
    pytest.importorskip("gsb_vit._native")
    model = random_packed(seed=12, **SHAPES["mean_behind_a_prefix"])
    built = CModel(tmp_path, exported(tmp_path, model), model.architecture, compiler, level)
    pictures = random_pictures(model.architecture, 20, seed=4)
    logits, _ = built.logits(pictures)
    assert logits.tobytes() == load(tmp_path / "model.safetensors").logits(pictures).tobytes()


def has_fma():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return " fma " in file.read()
    except OSError:
        return False


def test_no_option_makes_gcc_fuse(tmp_path):
    """Without the pragma the options do change results, and model_check says so."""
    if not has_fma():
        skip_without("fused multiply-add", "a processor that has it")
    model = random_packed(seed=13, **SHAPES["head_48"])
    made = exported(tmp_path, model)
    options = ("-O2", "-mfma", "-ffp-contract=fast")
    assert_equal_logits(model, CModel(tmp_path, made, model.architecture, "gcc", *options), random_pictures(model.architecture, 2))
    text = (tmp_path / "model.c").read_text()
    (tmp_path / "model.c").write_text(text.replace('#pragma GCC optimize("fp-contract=off")', ""))
    assert CModel(tmp_path, made, model.architecture, "gcc", *options, "-DFUSED").check() == -3
    assert CModel(tmp_path, made, model.architecture, "gcc", *options, EXACT).check() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("-Ofast",), "fast-math"),
        (("-O2", "-ffinite-math-only"), "finite-math-only"),
        (("-DFLT_EVAL_METHOD=2",), "x87"),
    ],
)
def test_options_that_change_results_do_not_compile(tmp_path, flags, says):
    needs_compiler("gcc")
    exported(tmp_path, random_packed(seed=1, **TINY))
    source = tmp_path / "model.c"
    if flags[0].startswith("-D"):  # as of a compiler for the x87
        source.write_text(source.read_text().replace("#include <string.h>", "#include <string.h>\n#undef FLT_EVAL_METHOD\n#define FLT_EVAL_METHOD 2"))
    with pytest.raises(AssertionError, match=says):
        run("gcc", "-std=c99", *flags, "-c", source, "-o", tmp_path / "model.o")


def test_sanitizers_find_nothing(tmp_path):
    needs_compiler("gcc")
    for shape in ("oblong_full_bias", "two_convolutions", "mean_of_norms"):
        folder = tmp_path / shape
        folder.mkdir()
        model = random_packed(seed=14, **SHAPES[shape])
        exported(folder, model)
        program = folder / "program"
        checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
        run("gcc", *WARNINGS, *checks, f"-I{folder}", HELPERS / "c_model_main.c", folder / "model.c", "-lm", "-o", program)
        (picture,) = random_pictures(model.architecture, 1, seed=5)
        said = run(program, input=picture.tobytes()).split()
        expected = ReferenceModel(model).logits(picture[None])[0].view(np.uint32)
        assert [int(word, 16) for word in said] == expected.tolist()


def test_the_header_is_c_and_cpp_and_states_the_memory(tmp_path):
    needs_compiler("gcc")
    for shape in ("registers", "three_convolutions_mean", "one_head"):
        folder = tmp_path / shape
        folder.mkdir()
        made = exported(folder, random_packed(seed=2, **SHAPES[shape]))
        (folder / "says.c").write_text(
            '#include <stdio.h>\n#include "model.c"\n'
            'int main(void) { printf("%zu %d %d %d", sizeof(struct arena), MODEL_ARENA_BYTES, MODEL_FLASH_BYTES, '
            "MODEL_RUN_BYTES); return 0; }\n"
        )
        run("gcc", "-O0", folder / "says.c", "-lm", "-o", folder / "says")
        arena, stated, flash, run_bytes = map(int, run(folder / "says").split())
        assert (stated, flash, run_bytes) == (made.arena_bytes, made.flash_bytes, made.run_bytes)
        assert stated - 64 <= arena <= stated
    if shutil.which("g++"):
        run("g++", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only", "-x", "c++", folder / "model.h")


def test_flash_is_what_the_object_file_holds(tmp_path):
    needs_compiler("gcc")
    model = random_packed(seed=2, **SHAPES["registers"])
    made = exported(tmp_path, model)
    run("gcc", "-Os", "-c", tmp_path / "model.c", "-o", tmp_path / "model.o")
    sizes = dict(line.split()[:2] for line in run("size", "-A", tmp_path / "model.o").splitlines() if line.startswith("."))
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
    for height, width in [(1, 1), (16, 24), (24, 16), (7, 640), (333, 5), (61, 97), (200, 31), *rng.integers(1, 130, (25, 2))]:
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
                np.ascontiguousarray(upright), how.size, how.resize, how.crop_ratio, how.interpolation, "portable", 10**6
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
        from gsb_vit.decision import unknown_scores

        middle = float(np.median(unknown_scores(logits, score, 0.37)))
        decision = Decision(0.37, Unknown(score, middle, 0.5))
    model = replace(model, decision=decision, class_names=names)
    built = CModel(tmp_path, exported(tmp_path, model), model.architecture, "gcc", "-O1")
    for row in logits:
        assert np.allclose(built.probabilities(row), decision.probabilities(row[None])[0], rtol=1e-14, atol=0)
        assert built.best(row) == int(np.argmax(row))
        assert built.is_unknown(row) == (int(decision.is_unknown(row[None])[0]) if score else -1)
    assert [built.class_name(k) for k in (-1, 0, 1, 2, 3)] == [None, *(name.encode() for name in names), None]


def test_numbers_that_overflow_give_a_status_and_nan(tmp_path):
    model = random_packed(seed=5, **TINY)
    built_from = exported(tmp_path, model)
    text = (tmp_path / "model.c").read_text()
    (name,) = {line for line in text.splitlines() if line.startswith("static const float prefix_tokens")}
    (tmp_path / "model.c").write_text(text.replace(name, name + "\n0x1p126f, -0x1p126f,").replace("prefix_tokens[64]", "prefix_tokens[66]"))
    built = CModel(tmp_path, built_from, model.architecture, "gcc", "-O1")
    assert built.check() in (-1, -3)


def test_a_model_whose_numbers_overflow_is_refused(tmp_path):
    model = random_packed(seed=5, **TINY)
    tensors = {**model.tensors, "prefix_tokens": np.full_like(model["prefix_tokens"], 3e38)}
    tensors["prefix_tokens"][:, ::2] = -3e38
    write(tmp_path / "model.safetensors", replace(model, tensors=tensors))
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
