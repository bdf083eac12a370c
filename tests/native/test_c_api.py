"""The C library: built without Python, used by a C program; and the same under an emulated AArch64 processor."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from native_build import build_aarch64, build_here, needed
from needs import skip_without
from paths import ROOT
from PIL import Image
from random_packed import random_pictures, write_random_packed

import gsb_vit
from gsb_vit import _native
from gsb_vit.decision import Decision, Unknown
from gsb_vit.runtime.packed_file import write
from gsb_vit.runtime.reference import NOT_FINITE, ReferenceModel

MODELS = {
    "relative": dict(
        image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=128, num_classes=7
    ),
    "full_head_80": dict(
        image_size=32, patch_size=4, embed_dim=160, depth=2, num_heads=2, mlp_hidden=333, num_classes=5,
        attention_bias="full", attention_thresholds=(0.02, 0.5), value_thresholds=(0.3, 0.6, 0.8),
    ),
    "none_fixed": dict(
        image_size=(24, 40), patch_size=(6, 5), embed_dim=96, depth=2, num_heads=2, mlp_hidden=200, num_classes=11,
        attention_bias="none", threshold_scope="fixed", prefix_tokens=1,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def native():
    return build_here()


@pytest.fixture(scope="module")
def emulated():
    return build_aarch64()


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A packed file, a picture file, and what the reference says: the class's name and its logit."""
    folder = tmp_path_factory.mktemp(request.param)
    packed = write_random_packed(folder / "model.safetensors", seed=7, **MODELS[request.param])
    picture = random_pictures(packed.architecture, 1, seed=3)[0]
    height, width = packed.architecture.image_size
    (folder / "picture.ppm").write_bytes(f"P6 {width} {height} 255\n".encode() + picture.tobytes())
    logits = ReferenceModel(packed).logits(picture[None])[0]
    best = int(np.argmax(logits))
    return folder, packed.class_names[best], logits[best]


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def check_classify(output, name, logit):
    assert output.returncode == 0, output.stderr
    said, number = output.stdout.split(" (")[0].rsplit(" ", 1)
    assert (said, np.float32(number)) == (name, logit)


def test_a_c_program_classifies_a_picture(native, model):
    folder, name, logit = model
    check_classify(run(native / "classify", folder / "model.safetensors", folder / "picture.ppm"), name, logit)


def test_a_photo_made_into_a_ppm_is_classified_as_in_python(native, tmp_path):
    """As docs/runtime.md tells, with its own line: JPEG → PPM → class and logit, with Python's for the JPEG."""
    text = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
    code = re.search(r'^python -c "(import sys; from PIL.*?)" photo.jpg photo.ppm', text, re.MULTILINE)
    write_random_packed(tmp_path / "model.safetensors", seed=7, **MODELS["relative"])
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((90, 70), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg")
    files = [tmp_path / name for name in ("model.safetensors", "photo.jpg", "photo.ppm")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code[1], *map(str, files[1:])], check=True, env=environment)
    model = gsb_vit.load(files[0], engine="reference")
    logits = model.logits(model.preprocessing(files[1])[None])[0]
    best = int(np.argmax(logits))
    check_classify(run(native / "classify", files[0], files[2]), model.class_names[best], logits[best])
    with files[2].open("rb") as picture:
        done = subprocess.run([native / "classify", files[0]], stdin=picture, capture_output=True, text=True)
    check_classify(done, model.class_names[best], logits[best])


def test_a_grey_picture_with_comments_is_classified(native, tmp_path):
    write_random_packed(tmp_path / "model.safetensors", seed=7, **MODELS["relative"])
    grey = np.random.default_rng(1).integers(0, 256, (41, 50), dtype=np.uint8)
    (tmp_path / "grey.pgm").write_bytes(b"P5 # made by hand\n50 # width\n41\n255\n" + grey.tobytes())
    model = gsb_vit.load(tmp_path / "model.safetensors", engine="reference")
    logits = model.logits(model.preprocessing(grey)[None])[0]
    best = int(np.argmax(logits))
    done = run(native / "classify", tmp_path / "model.safetensors", tmp_path / "grey.pgm")
    check_classify(done, model.class_names[best], logits[best])


def check_jpegs(program, folder):
    """Every orientation and grey; blocks of one grey level each, on which all decoders of JPEG agree."""
    write_random_packed(folder / "model.safetensors", seed=7, **MODELS["relative"])
    levels = np.random.default_rng(6).integers(0, 256, (3, 5), dtype=np.uint8)
    image = Image.fromarray(np.kron(levels, np.ones((16, 16), dtype=np.uint8)))
    paths = [folder / f"{number}.jpg" for number in range(9)]
    image.save(paths[0], quality=90)
    for mark in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = mark
        image.convert("RGB").save(paths[mark], quality=90, exif=exif)
    model = gsb_vit.load(folder / "model.safetensors", engine="reference")
    expected = model.logits(np.stack([model.preprocessing(path) for path in paths]))
    done = run(program, folder / "model.safetensors", *paths)
    assert done.returncode == 0, done.stderr
    for path, logits, line in zip(paths, expected, done.stdout.splitlines(), strict=True):
        name, logit = line.removesuffix(f" {path}").rsplit(" ", 1)
        assert (name, np.float32(logit)) == (model.class_names[int(np.argmax(logits))], logits.max())
    assert len({row.tobytes() for row in expected}) > 4
    (folder / "cut.jpg").write_bytes(paths[1].read_bytes()[:-20])
    done = run(program, folder / "model.safetensors", folder / "cut.jpg", folder / "absent.jpg", paths[0])
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert "cut.jpg: damaged or truncated" in done.stderr
    assert "absent.jpg: cannot be opened" in done.stderr


def test_a_c_program_classifies_jpegs(native, tmp_path):
    if not (native / "classify_jpeg").exists():
        skip_without("the example that reads JPEG", "libjpeg-turbo's header")
    check_jpegs(native / "classify_jpeg", tmp_path)


def turned(pixels, orientation):
    """Pixels (h, w, C) as they are seen, by EXIF's mark, as NumPy turns them."""
    rows = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    across = pixels.transpose(1, 0, 2)
    return {**rows, 5: across, 6: across[:, ::-1], 7: across[::-1, ::-1], 8: across[::-1]}[orientation]


def pictures_of_all_kinds():
    """Lines and bytes as native/tests/images.c reads them, and what Python is to be asked."""
    rng = np.random.default_rng(4)
    for number in range(48):
        orientation, channels = 1 + number % 8, (1, 3, 4)[number % 3]
        height, width = (int(side) for side in rng.integers(1, (9, 90, 300)[number % 3], 2))
        stored = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        row = width * channels
        stride = row + int(rng.integers(0, 20)) if number % 2 else 0
        padded = rng.integers(0, 256, (height, stride or row), dtype=np.uint8)
        padded[:, :row] = stored.reshape(height, row)
        data = padded.tobytes()[: (height - 1) * (stride or row) + row]
        yield f"{width} {height} {stride} {channels} {orientation}\n".encode() + data, turned(stored, orientation)


def check_images(command, path, backends):
    """Pixels and logits of pictures of all kinds are Python's: those of Pillow and the reference."""
    kinds = list(pictures_of_all_kinds())
    model = gsb_vit.load(path, engine="reference")
    prepared = np.stack([model.preprocessing(seen) for _, seen in kinds])
    logits = model.logits(prepared)
    expected = b"".join(a.tobytes() + b.tobytes() for a, b in zip(prepared, logits, strict=True))
    for backend in backends:
        done = subprocess.run([*command, path, backend], input=b"".join(line for line, _ in kinds), capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == expected, backend


def test_pictures_of_any_size_format_and_orientation_give_the_logits_of_python(native, model):
    check_images([native / "native/tests/images"], model[0] / "model.safetensors", _native.backends())


def test_neon_makes_the_same_pixels(emulated, model):
    command = ["qemu-aarch64", emulated / "native/tests/images"]
    check_images(command, model[0] / "model.safetensors", ["neon_dot", "neon", "portable"])


def test_all_backends_agree(native, model):
    done = run(native / "compare_backends", model[0] / "model.safetensors", 3)
    assert done.returncode == 0, done.stderr
    assert "portable, 2 threads: 3 pictures agree" in done.stdout


def test_neon_agrees_with_the_reference(emulated, model):
    folder, name, logit = model
    done = run("qemu-aarch64", emulated / "classify", folder / "model.safetensors", folder / "picture.ppm")
    check_classify(done, name, logit)
    assert "(neon_dot, " in done.stdout
    done = run("qemu-aarch64", emulated / "compare_backends", folder / "model.safetensors", 2)
    assert done.returncode == 0, done.stderr
    assert "neon, 2 threads: 2 pictures agree" in done.stdout
    assert "neon_dot, 2 threads: 2 pictures agree" in done.stdout
    assert "portable, 2 threads: 2 pictures agree" in done.stdout


def test_a_c_program_gets_an_error_text(native, tmp_path):
    (tmp_path / "broken").write_bytes(b"no model, but long enough")
    done = run(native / "classify", tmp_path / "broken", "x.ppm")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{tmp_path / 'broken'}: not a packed model, or truncated")
    assert len(done.stderr.splitlines()) == 1


def test_a_c_program_gets_an_error_where_numbers_overflow(native, tmp_path):
    path = tmp_path / "model.safetensors"
    packed = write_random_packed(path, seed=7, **MODELS["relative"])
    scale = np.full_like(packed["heads.0.scale"], 3e38)
    write(path, replace(packed, tensors={**packed.tensors, "heads.0.scale": scale}))
    (tmp_path / "picture.ppm").write_bytes(b"P6 32 32 255\n" + bytes(range(256)) * 12)
    done = run(native / "classify", path, tmp_path / "picture.ppm")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == NOT_FINITE


def test_a_c_compiler_and_the_archive_are_enough(native, model, tmp_path):
    folder, name, logit = model
    program = tmp_path / "classify"
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native/include'}"]
    libraries = [native / "libgsb_vit.a", "-lstdc++", "-lm", "-pthread"]
    done = run(needed("cc"), *strict, ROOT / "native/examples/classify.c", *libraries, "-o", program)
    assert done.returncode == 0, done.stderr
    check_classify(run(program, folder / "model.safetensors", folder / "picture.ppm"), name, logit)
    assert "python" not in run(needed("ldd"), program).stdout


EVERY_FUNCTION = r"""
#include <stdio.h>
#include <string.h>
#include "gsb_vit.h"

#define CHECK(condition) do { if (!(condition)) return printf("line %d: %s\\n", __LINE__, #condition), 1; } while (0)

int main(int argc, char** argv) {
    static uint8_t pixels[2 * 32 * 32 * 3];
    float logits[14] = {0};
    gsb_vit_stage stages[64];
    CHECK(argc == 3);
    CHECK(gsb_vit_load(NULL, 1, NULL) == NULL && strcmp(gsb_vit_error(), "no path given") == 0);
    CHECK(gsb_vit_load(argv[1], 1, "avx9") == NULL);
    CHECK(strstr(gsb_vit_error(), "'avx9' cannot run on this machine; there is "));
    CHECK(strstr(gsb_vit_error(), "portable"));
    CHECK(gsb_vit_load(argv[1], -1, NULL) == NULL && strstr(gsb_vit_error(), "threads -1"));
    CHECK(gsb_vit_load_within(argv[1], 1, NULL, 1) == NULL && strstr(gsb_vit_error(), "bytes, more than 1; raise"));
    CHECK(gsb_vit_load_within(argv[1], 1, NULL, 60000) == NULL);
    CHECK(strstr(gsb_vit_error(), "a model may take 0.06 MB"));
    gsb_vit_free(gsb_vit_load_within(argv[1], 1, NULL, 4000000));
    CHECK(strstr(gsb_vit_backends(), "portable"));
    gsb_vit_model* model = gsb_vit_load(argv[1], 2, "portable");
    CHECK(model);
    const gsb_vit_info info = gsb_vit_get_info(model);
    CHECK(info.height == 32 && info.width == 32 && info.classes == 7 && info.tokens == 18);
    CHECK(info.embed_dim == 64 && info.depth == 2 && info.num_heads == 2 && info.mlp_hidden == 128);
    CHECK(info.threads == 2 && strcmp(info.backend, "portable") == 0 && strcmp(info.name, "random_7") == 0);
    CHECK(strcmp(gsb_vit_class_name(model, 6), "class 6") == 0);
    CHECK(!gsb_vit_class_name(model, 7) && !gsb_vit_class_name(model, -1));
    CHECK(gsb_vit_predict(model, NULL, 0, NULL) == 0);
    CHECK(gsb_vit_predict(model, NULL, 1, logits) == -1 && strstr(gsb_vit_error(), "no pixels"));
    CHECK(gsb_vit_predict(model, pixels, 1, NULL) == -1 && strstr(gsb_vit_error(), "no room"));
    static uint8_t bytes[1 << 20], masks[2 * 4 * 2 * 18 * 18];
    FILE* file = fopen(argv[1], "rb");
    CHECK(file);
    const size_t size = fread(bytes, 1, sizeof bytes, file);
    CHECK(fclose(file) == 0 && size > 0 && size < sizeof bytes);
    CHECK(gsb_vit_load_bytes(NULL, 0, 1, NULL) == NULL && strstr(gsb_vit_error(), "no bytes"));
    CHECK(gsb_vit_load_bytes(bytes, size - 1, 1, NULL) == NULL);
    gsb_vit_model* copy = gsb_vit_load_bytes(bytes, size, 1, "portable");
    CHECK(copy && info.attention_groups <= 4);
    float copied[7];
    CHECK(gsb_vit_predict(copy, pixels, 1, copied) == 0 && gsb_vit_predict(model, pixels, 1, logits) == 0);
    CHECK(memcmp(copied, logits, sizeof copied) == 0);
    CHECK(gsb_vit_masks(copy, pixels, masks) == 0 && memchr(masks, 1, sizeof masks));
    CHECK(gsb_vit_masks(copy, NULL, masks) == -1 && gsb_vit_masks(copy, pixels, NULL) == -1);
    gsb_vit_free(copy);
    float one[7];
    static uint8_t prepared[32 * 32 * 3];
    for (int i = 0; i < 3072; ++i) pixels[i] = pixels[3072 + i] = (uint8_t)(i * i % 251);
    CHECK(gsb_vit_predict_image(model, pixels, 32, 32, 0, GSB_VIT_RGB, 1, one) == 0);
    CHECK(gsb_vit_predict(model, pixels, 1, logits) == 0 && memcmp(logits, one, 28) == 0);
    CHECK(gsb_vit_prepare_image(model, pixels, 32, 32, 96, GSB_VIT_RGB, 1, prepared) == 0);
    CHECK(memcmp(pixels, prepared, 3072) == 0);
    CHECK(gsb_vit_prepare_image(model, pixels, 16, 16, 16, GSB_VIT_GREY, 6, prepared) == 0);
    CHECK(prepared[0] == prepared[1] && prepared[0] == prepared[2]);
#define REFUSED(pixels, width, height, stride, format, orientation, why) \
    CHECK(gsb_vit_predict_image(model, pixels, width, height, stride, format, orientation, one) == -1 && \
          strstr(gsb_vit_error(), why) && !strchr(gsb_vit_error(), '\n'))
    REFUSED(NULL, 8, 8, 0, GSB_VIT_RGB, 1, "no pixels");
    REFUSED(pixels, 0, 8, 0, GSB_VIT_RGB, 1, "0 x 8 pixels are no picture");
    REFUSED(pixels, 8, -8, 0, GSB_VIT_RGB, 1, "8 x -8 pixels are no picture");
    REFUSED(pixels, -2147483647 - 1, -2147483647 - 1, 0, GSB_VIT_RGB, 1, "no picture");
    REFUSED(pixels, 8, 8, 0, 2, 1, "format 2");
    REFUSED(pixels, 8, 8, 0, -1, 1, "format -1");
    REFUSED(pixels, 8, 8, 0, GSB_VIT_RGB, 9, "orientation 9");
    REFUSED(pixels, 8, 8, 0, GSB_VIT_RGB, 0, "orientation 0");
    REFUSED(pixels, 8, 8, 23, GSB_VIT_RGB, 1, "stride 23");
    REFUSED(pixels, 8, 8, (size_t)-1 / 8, GSB_VIT_RGB, 1, "stride");
    REFUSED(pixels, 8000, 8001, 0, GSB_VIT_RGB, 1, "8000 x 8001 pixels are more than 64000000");
    REFUSED(pixels, 2147483647, 2147483647, 0, GSB_VIT_RGBA, 1, "are more than 64000000");
    gsb_vit_set_max_pixels(model, 63);
    REFUSED(pixels, 8, 8, 0, GSB_VIT_RGB, 1, "8 x 8 pixels are more than 63; give a smaller picture");
    gsb_vit_set_max_pixels(model, 64);
    CHECK(gsb_vit_predict_image(model, pixels, 8, 8, 0, GSB_VIT_RGB, 1, one) == 0);
    CHECK(gsb_vit_predict_image(model, pixels, 8, 8, 0, GSB_VIT_RGB, 1, NULL) == -1);
    CHECK(strstr(gsb_vit_error(), "no room"));
    CHECK(gsb_vit_prepare_image(model, pixels, 8, 8, 0, GSB_VIT_RGB, 1, NULL) == -1);
    gsb_vit_set_profiling(model, 1);
    CHECK(gsb_vit_predict(model, pixels, 2, logits) == 0 && memcmp(logits, logits + 7, 28) == 0 && logits[0] != 0);
    const size_t count = gsb_vit_profile(model, stages, 64);
    CHECK(count == 10 && gsb_vit_profile(model, NULL, 0) == count);
    CHECK(strcmp(stages[2].name, "qkv") == 0 && stages[2].seconds > 0 && stages[2].bit_macs == 2.0 * 2 * 18 * 64 * 192);
    gsb_vit_set_profiling(model, 0);
    const gsb_vit_decision decision = gsb_vit_get_decision(model);
    CHECK(decision.temperature == 2.5 && decision.has_unknown == 1 && decision.false_alarm_rate == 0.25);
    const float given[14] = {1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0};
    double probabilities[14];
    CHECK(gsb_vit_probabilities(model, given, 2, probabilities) == 0);
    for (int k = 0; k < 14; ++k) printf("%.17g\n", probabilities[k]);
    CHECK(gsb_vit_probabilities(model, given, 1, NULL) == -1 && strstr(gsb_vit_error(), "no room"));
    CHECK(gsb_vit_probabilities(model, NULL, 0, NULL) == 0);
    CHECK(gsb_vit_is_unknown(model, given) == 0 && gsb_vit_is_unknown(model, given + 7) == 1);
    CHECK(gsb_vit_is_unknown(model, NULL) == -1 && strstr(gsb_vit_error(), "no logits"));
    gsb_vit_free(model);
    CHECK((model = gsb_vit_load(argv[2], 1, NULL)));
    CHECK(gsb_vit_get_decision(model).temperature == 1 && gsb_vit_get_decision(model).has_unknown == 0);
    CHECK(gsb_vit_is_unknown(model, given) == -1 && strstr(gsb_vit_error(), "no threshold"));
    gsb_vit_free(model);
    gsb_vit_free(NULL);
    return 0;
}
"""


def test_every_function_of_the_header(native, tmp_path):
    packed = write_random_packed(tmp_path / "plain.safetensors", seed=7, **MODELS["relative"])
    decision = Decision(2.5, Unknown("energy", 5.0, 0.25))
    write(tmp_path / "model.safetensors", replace(packed, decision=decision))
    (tmp_path / "every.c").write_text(EVERY_FUNCTION)
    header = (ROOT / "native" / "include" / "gsb_vit.h").read_text(encoding="utf-8")
    functions = set(re.findall(r"(gsb_vit_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))
    assert len(functions) == 18 and all(f"{name}(" in EVERY_FUNCTION for name in functions)
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native/include'}"]
    libraries = [native / "libgsb_vit.a", "-lstdc++", "-lm", "-pthread"]
    done = run(needed("cc"), *strict, tmp_path / "every.c", *libraries, "-o", tmp_path / "every")
    assert done.returncode == 0, done.stderr
    done = run(tmp_path / "every", tmp_path / "model.safetensors", tmp_path / "plain.safetensors")
    assert done.returncode == 0, done.stdout + done.stderr
    found = np.array(done.stdout.split(), dtype=np.float64).reshape(2, 7)
    expected = decision.probabilities(np.array([[1, 2, 3, 4, 5, 6, 7], [0] * 7], dtype=np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_a_picture_that_does_not_fit_is_refused(native, model, tmp_path):
    folder, _, _ = model
    whole = (folder / "picture.ppm").read_bytes()
    for wrong in (
        whole[:-1],
        whole.replace(b"P6", b"P3", 1),
        b"P6 0 1 255\n123",
        b"P6 2 1 255\n12345",
        b"P6 1 1 65535\n12",
        b"",
    ):
        (tmp_path / "wrong.ppm").write_bytes(wrong)
        done = run(native / "classify", folder / "model.safetensors", tmp_path / "wrong.ppm")
        assert done.returncode == 2
        assert re.search("wrong.ppm: (not a binary PPM or PGM of 8 bits|truncated)", done.stderr)
