"""The tables of the packed file: the C++ copy is what the generator writes, and each fact has one value."""

import runpy
from dataclasses import fields, replace

import numpy as np
import pytest
from paths import ROOT
from random_packed import SHAPES, random_packed

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.runtime import packed_file, schema
from gsb_vit.runtime.relative_bias import relative_bias_index, relative_bias_size


def test_the_c_plus_plus_tables_are_generated_from_these():
    text = runpy.run_path(str(ROOT / "native" / "generate_schema.py"))["generate"]()
    committed = (ROOT / "native" / "src" / "file" / "schema.h").read_text(encoding="utf-8")
    assert text == committed, "run PYTHONPATH=src python native/generate_schema.py"


@pytest.mark.parametrize(
    ("keys", "kind"), [(schema.ARCHITECTURE, schema.Architecture), (schema.PREPROCESSING, Preprocessing)]
)
def test_keys_are_the_fields(keys, kind):
    assert [key.name for key in keys] == [item.name for item in fields(kind)]


@pytest.mark.parametrize("shape", SHAPES)
def test_expected_tensors_are_those_of_a_model(shape):
    model = random_packed(seed=0, **SHAPES[shape])
    expected = schema.expected_tensors(model.architecture)
    assert expected == {name: (array.dtype.name, array.shape) for name, array in model.tensors.items()}


def test_the_longest_list_of_tensors_leaves_room_in_the_longest_header():
    place = '{"dtype":"F32","shape":[1048576,1048576],"data_offsets":[1000000000000000,1000000000000000]},'
    block = {f'"blocks.1023.{tensor.name}":{place}' for tensor in schema.BLOCK_TENSORS}
    assert 1024 * sum(map(len, block)) < 3 << 20 < schema.MAX_HEADER_BYTES / 2


def test_a_header_that_is_too_long_is_not_written(tmp_path):
    model = replace(random_packed(seed=0, **SHAPES["one_head"]), provenance={"x": "x" * schema.MAX_HEADER_BYTES})
    with pytest.raises(InputError, match="shorten"):
        packed_file.write(tmp_path / "model.safetensors", model)
    deep = []
    for _ in range(70):
        deep = [deep]
    for provenance in ({"x": deep}, {"\ud800": 1}, {"1": 1, 1: 1}):
        with pytest.raises(InputError, match="not JSON"):
            packed_file.write(tmp_path / "model.safetensors", replace(model, provenance=provenance))
    assert list(tmp_path.iterdir()) == []


def test_each_prefix_token_is_read_by_a_head_and_all_is_one_bit():
    architecture = random_packed(seed=0, **SHAPES["two_heads"]).architecture
    assert [(head.reads.first, head.reads.count, head.reads.end) for head in architecture.heads] == [
        (0, 1, 1),
        (1, 1, 2),
    ]
    assert {getattr(architecture.formats, item.name).planes for item in fields(schema.Formats)} == {1}
    bits = np.array([True, False])
    assert schema.SIGNS.numbers(bits).tolist() == [1, -1] and schema.STEPS.numbers(bits).tolist() == [1, 0]


@pytest.mark.parametrize("prefixes", [0, 1, 2, 3, 16])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 2), (1, 5)])
def test_training_and_the_device_read_the_same_entries_of_the_relative_bias(grid, prefixes):
    pytest.importorskip("torch")
    from gsb_vit.nn.attention_bias import RelativeAttentionBias, relative_index

    index = relative_bias_index(grid, prefixes)
    assert np.array_equal(relative_index(grid, prefixes).numpy(), index)
    assert RelativeAttentionBias(1, grid, prefixes).table.shape[1] == relative_bias_size(grid, prefixes)
