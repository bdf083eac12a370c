"""The C file on an Xtensa core under QEMU: equal logits, and what benchmarks/xtensa_instructions.py counts there."""

import importlib.util
import sys

import pytest
from needs import skip_without
from paths import ROOT
from random_packed import SHAPES, write_random_packed

pytest.importorskip("gsb_vit._native", reason="the native extension is not built")


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    path = ROOT / "benchmarks" / "xtensa_instructions.py"
    spec = importlib.util.spec_from_file_location("xtensa_instructions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lacks = module.lacks()
    if lacks:
        skip_without("the C file on Xtensa", *lacks)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("name", ["two_heads", "bits_and_bytes", "dense_groups"])
def test_logits_are_equal_and_floats_are_counted_apart(script, tmp_path, name):
    packed = write_random_packed(tmp_path / "model.safetensors", seed=1, **SHAPES[name])
    found = script.measure(tmp_path / "model.safetensors", tmp_path)
    a = packed.architecture
    assert found["equal"]
    assert found["calls"]["__mulsf3"] > a.num_tokens * a.embed_dim * a.depth
    assert found["in_functions"] > 2 * sum(found["calls"].values())
    assert found["classified"] > sum(found["calls"].values())
