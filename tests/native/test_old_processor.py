"""A processor without AVX: no instruction beyond x86-64-v2 may run before a backend is chosen.

QEMU's Nehalem has SSE4.2 and POPCNT, and refuses what came later.
"""

import os
import platform
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from native_build import build_here, needed, run
from needs import needs
from random_packed import SHAPES
from selftest_models import write_models

import gsb_vit

pytestmark = needs("processors without AVX", "an x86-64 processor", platform.machine() in ("x86_64", "AMD64"))

AVX = 'int main(void) { __asm__ volatile("vxorps %ymm0, %ymm0, %ymm0"); return 0; }\n'

PREDICT = """
import sys
import numpy as np
import gsb_vit
from gsb_vit import _train_avx2, _train_avx512

path, pixels, threads = sys.argv[1:]
model = gsb_vit.load(path, threads=int(threads))
assert model.backend == "portable"
assert not _train_avx2.supported() and not _train_avx512.supported()
height, width = model.architecture.image_size
pictures = np.fromfile(pixels, np.uint8).reshape(-1, height, width, 3)
sys.stdout.buffer.write(model.logits(pictures).tobytes())
"""


@pytest.fixture(scope="module")
def nehalem():
    """The words that begin a command."""
    return needed("qemu-x86_64", "processors without AVX"), "-cpu", "Nehalem"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"), pictures=2)


def test_the_emulated_processor_refuses_avx(nehalem, tmp_path):
    (tmp_path / "avx.c").write_text(AVX)
    run(needed("cc"), tmp_path / "avx.c", "-o", tmp_path / "avx")
    assert run(*nehalem, tmp_path / "avx", ok=False).returncode == -signal.SIGILL


def test_a_c_program_classifies_a_picture(nehalem, models, tmp_path):
    path, pixels, logits = models["two_heads"]
    model = gsb_vit.load(path, engine="reference")
    height, width = model.architecture.image_size
    (tmp_path / "picture.ppm").write_bytes(
        f"P6 {width} {height} 255\n".encode() + pixels.read_bytes()[: height * width * 3]
    )
    expected = np.fromfile(logits, np.float32)[: len(model.class_names)]
    best = int(np.argmax(expected))
    done = run(*nehalem, build_here() / "classify", path, tmp_path / "picture.ppm")
    assert done.stdout.decode().startswith(f"{model.class_names[best]} {expected[best]:.9g} (portable, ")


@pytest.mark.parametrize("name", SHAPES)
def test_the_c_library_gives_the_logits_of_the_reference(nehalem, models, name):
    path, pixels, logits = models[name]
    done = run(*nehalem, build_here() / "native/tests/logits", path, pixels, 1, "portable")
    assert done.stdout == logits.read_bytes()


def test_a_backend_of_newer_processors_is_refused(nehalem, models):
    path, pixels, _ = models["two_heads"]
    done = run(*nehalem, build_here() / "native/tests/logits", path, pixels, 1, "avx2", ok=False)
    assert b"'avx2' cannot run on this machine; there is portable" in done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_python_predicts(nehalem, models, threads):
    path, pixels, logits = models["two_heads"]
    # NumPy's OpenBLAS asks the processor in a way that finds an AVX2 one here, so it is told.
    environment = {
        **os.environ, "PYTHONPATH": str(Path(gsb_vit.__file__).parents[1]), "OPENBLAS_CORETYPE": "Nehalem",
    }  # fmt: skip
    environment.pop("GSB_VIT_BACKEND", None)
    done = run(*nehalem, sys.executable, "-c", PREDICT, path, pixels, threads, env=environment)
    assert done.stdout == logits.read_bytes()
