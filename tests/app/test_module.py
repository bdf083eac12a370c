"""The WebAssembly module in wasmtime: the same bits as the reference, refusals in words, and what it was built from."""

import numpy as np
import pytest
from deciding import write_deciding
from native_build import found
from random_packed import SHAPES, write_random_packed
from selftest_models import write_models
from wasm_build import MODULE, build_module

from gsb_vit.decision import SCORES
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
