"""The WebAssembly module in wasmtime: the same bits as the reference, refusals in words, and what it was built from."""

from dataclasses import replace

import numpy as np
import pytest
from deciding import write_deciding
from native_build import found
from random_packed import SHAPES, TINY, random_packed, write_random_packed
from selftest_models import write_models
from wasm_build import MODULE, build_module

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import SCORES
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.reference import ReferenceModel

wasmtime = pytest.importorskip("wasmtime")
from wasm_module import WasmError, WasmModel  # noqa: E402

WASM = MODULE.read_bytes()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


def test_the_module_is_small_and_asks_its_host_for_nothing():
    module = wasmtime.Module(wasmtime.Engine(), WASM)
    assert not module.imports
    assert len(WASM) <= 250_000


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_masks_are_those_of_the_reference(models, name):
    path, pixels, logits = models[name]
    model = WasmModel(WASM, path.read_bytes())
    assert model.backend == "wasm"
    pictures = np.frombuffer(pixels.read_bytes(), np.uint8).reshape(-1, model.height, model.width, 3)
    assert model.logits(pictures).tobytes() == logits.read_bytes()
    trace = ReferenceModel(read(path)).trace(pictures[0])
    expected = np.stack([trace[f"blocks.{block}.attn.attention_masks"] for block in range(model.depth)])
    assert expected.any()
    assert not expected.all()
    assert np.array_equal(model.masks(pictures[0]), expected)


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_of_all_sizes_are_prepared_as_in_python(resize, interpolation, tmp_path):
    """Rows in fours and what is left of them, taps in fours and fewer, bytes of a row in sixteens and what is left."""
    rng = np.random.default_rng(9)
    path = tmp_path / "model.safetensors"
    for size in ((16, 16), (40, 24), (64, 88)):
        how = Preprocessing(size, resize, 0.9 if resize == "crop" else 1.0, interpolation)
        model = random_packed(seed=1, **dict(TINY, image_size=size))
        packed_file.write(path, replace(model, preprocessing=how))
        module = WasmModel(WASM, path.read_bytes())
        for index in range(40):
            shape = (*rng.integers(1, 150, 2), (1, 3, 4)[index % 3])
            picture = rng.integers(0, 2, shape, dtype=np.uint8) * 255  # it rings
            if index % 2:
                picture[..., 3:] = 255
            assert np.array_equal(module.prepare(picture), how(picture)), (size, shape)


@pytest.mark.parametrize("score", SCORES)
def test_decisions_are_those_of_python(score, tmp_path):
    path = tmp_path / "model.safetensors"
    decision, pictures, expected, unknown = write_deciding(path, score)
    model = WasmModel(WASM, path.read_bytes())
    logits = model.logits(pictures)
    assert np.array_equal(logits, expected)
    assert np.array_equal(model.is_unknown(logits), unknown)
    assert model.probabilities(logits) == pytest.approx(decision.probabilities(logits), rel=1e-13)


def test_a_file_that_is_no_model_is_refused_in_words(tmp_path):
    with pytest.raises(WasmError, match="its header is longer than the file"):
        WasmModel(WASM, b"PNG" * 10)
    path = tmp_path / "model.safetensors"
    shape = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_hidden": 40}
    write_random_packed(path, seed=1, num_classes=3, **shape)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    with pytest.raises(WasmError, match="payload_xxh64"):
        WasmModel(WASM, bytes(damaged))


# Compiles the whole engine, where build/tests/wasm is not up to date.
@pytest.mark.slow
def test_the_module_in_the_package_is_built_from_these_sources():
    assert found("cmake"), "the tests' own tools"
    assert build_module().read_bytes() == WASM, "run `make wasm` and commit src/gsb_vit/app/gsb_vit.wasm"
