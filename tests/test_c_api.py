"""The C library: built without Python, used by a C program; and the same under an emulated AArch64 processor."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from random_packed import random_pictures, write_random_packed

from gsb_vit.reference import ReferenceModel

ROOT = Path(__file__).resolve().parents[1]
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


def tool(*names):
    for name in names:
        if not shutil.which(name):
            pytest.skip(f"needs {name}")


def build(folder, *options):
    """Build the static library and the examples, and return their folder."""
    tool("cmake", "ninja")
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DGSB_VIT_PYTHON=OFF", "-DGSB_VIT_EXAMPLES=ON"]
    for command in ([*configure, *options], ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return build(tmp_path_factory.mktemp("native"), "-DGSB_VIT_NATIVE_WARNINGS=ON")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    tool("aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc", "qemu-aarch64")
    return build(
        tmp_path_factory.mktemp("emulated"),
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    )


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


def test_all_backends_agree(native, model):
    done = run(native / "compare_backends", model[0] / "model.safetensors", 3)
    assert done.returncode == 0, done.stderr
    assert "portable, 2 threads: 3 pictures agree" in done.stdout


def test_neon_agrees_with_the_reference(emulated, model):
    folder, name, logit = model
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    done = run(*emulator, emulated / "classify", folder / "model.safetensors", folder / "picture.ppm")
    check_classify(done, name, logit)
    assert "(neon, " in done.stdout
    done = run(*emulator, emulated / "compare_backends", folder / "model.safetensors", 2)
    assert done.returncode == 0, done.stderr
    assert "neon, 2 threads: 2 pictures agree" in done.stdout
    assert "portable, 2 threads: 2 pictures agree" in done.stdout


def test_a_c_program_gets_an_error_text(native, tmp_path):
    (tmp_path / "broken").write_bytes(b"no model, but long enough")
    done = run(native / "classify", tmp_path / "broken", "x.ppm")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{tmp_path / 'broken'}: not a packed model, or truncated")
    assert len(done.stderr.splitlines()) == 1
