import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from bad_packed import sealed
from random_packed import random_packed, write_random_packed
from safetensors.numpy import save_file

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.runtime import packed_file, schema
from gsb_vit.runtime.packed_file import PackedModel
from gsb_vit.runtime.schema import Architecture

SHAPE = dict(
    seed=3, image_size=(16, 24), patch_size=8, embed_dim=36, depth=2, num_heads=3, mlp_hidden=70, num_classes=5
)


@pytest.fixture
def model():
    return random_packed(**SHAPE)


def with_tensor(model, name, array):
    tensors = dict(model.tensors)
    if array is None:
        del tensors[name]
    else:
        tensors[name] = array
    return replace(model, tensors=tensors)


def save_unchecked(path, model, /, **changes):
    header = {
        "architecture": model.architecture.to_json(),
        "class_names": list(model.class_names),
        "preprocessing": model.preprocessing.to_json(),
        "provenance": {},
    }
    header.update(changes.pop("header", {}))
    metadata = {"format": packed_file.FORMAT, "version": packed_file.VERSION, "model": json.dumps(header), **changes}
    metadata.update({key: "0" * 16 for key in schema.CHECKSUM_KEYS})
    save_file(dict(model.tensors), path, metadata)
    path.write_bytes(sealed(path.read_bytes()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_bias": "none", "prefix_tokens": 1},
        {"attention_bias": "full", "threshold_scope": "fixed"},
        {"attention_thresholds": (), "value_thresholds": (0.5,), "threshold_scope": "fixed"},
        {"attention_thresholds": (0.2, 0.5, 0.8), "value_thresholds": ()},
    ],
)
def test_read_returns_what_was_written(tmp_path, options):
    path = tmp_path / "model.safetensors"
    model = write_random_packed(path, **SHAPE, **options)
    found = packed_file.read(path)
    assert found.architecture == model.architecture
    assert (found.class_names, found.preprocessing) == (model.class_names, model.preprocessing)
    assert found.provenance == model.provenance
    assert set(found.tensors) == set(model.tensors)
    for name, array in model.tensors.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array), name
    assert [item.name for item in tmp_path.iterdir()] == ["model.safetensors"]


def test_random_models_repeat_from_their_seed():
    first, again, other = random_packed(**SHAPE), random_packed(**SHAPE), random_packed(**{**SHAPE, "seed": 4})
    assert all(np.array_equal(first[name], again[name]) for name in first.tensors)
    assert not np.array_equal(first["blocks.1.mlp.fc1.weight"], other["blocks.1.mlp.fc1.weight"])


def test_the_file_starts_aligned_and_tensors_are_aligned_to_their_type(tmp_path):
    path = tmp_path / "model.safetensors"
    write_random_packed(path, **SHAPE, attention_bias="full")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    sizes = {"U64": 8, "F32": 4, "F16": 2, "I16": 2, "I8": 1}
    assert length % 8 == 0
    assert all(item["data_offsets"][0] % sizes[item["dtype"]] == 0 for item in header.values())


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "model.safetensors"
    write_random_packed(path, **SHAPE)
    data = path.read_bytes()
    for end in (0, 5, 8, 100, 2000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(InputError, match=r"model\.safetensors.*truncated"):
            packed_file.read(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(100), b"hello " * 50])
def test_a_foreign_file_is_refused(tmp_path, content):
    path = tmp_path / "foreign.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"foreign\.bin: not a packed model"):
        packed_file.read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent: cannot be read"):
        packed_file.read(tmp_path / "absent")
    with pytest.raises(InputError, match="is a folder"):
        packed_file.read(tmp_path)


def test_another_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3, dtype=np.float32)}, path)
    with pytest.raises(InputError, match="gsb-vit export"):
        packed_file.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "3"}, "version '3' is unknown"),
        ({"format": "else"}, "not a packed model"),
        ({"model": "{"}, "not JSON"),
        ({"model": "[" * 100_000}, "not JSON"),
        ({"model": "3"}, "the metadata must be a JSON object"),
        ({"header": {"class_names": ["a"]}}, "1 names for 5 classes"),
        ({"header": {"class_names": [1, 2, 3, 4, 5]}}, "name each"),
        ({"header": {"class_names": "abcde"}}, "must be a list"),
        ({"header": {"architecture": []}}, "JSON object"),
        ({"header": {"preprocessing": {}}}, "preprocessing: key 'size' is missing"),
    ],
)
def test_bad_metadata_is_refused_in_one_line(tmp_path, model, changes, message):
    path = tmp_path / "model.safetensors"
    save_unchecked(path, model, **changes)
    with pytest.raises(InputError, match=message) as caught:
        packed_file.read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


BAD_TENSORS = [
    ("norm.weight", None, "norm.weight is missing"),
    ("norm.extra", np.zeros(2, dtype=np.float32), "norm.extra' does not belong"),
    ("norm.weight", np.zeros(36, dtype=np.float64), "norm.weight'? is float64"),
    ("norm.weight", np.zeros((36, 1), dtype=np.float32), r"norm.weight is float32 \(36, 1\), not float32 \(36,\)"),
    ("blocks.1.attn.v_scale", np.full(36, np.nan, dtype=np.float32), "blocks.1.attn.v_scale holds numbers"),
    ("blocks.0.attn.qkv.threshold", np.full(108, 37, dtype=np.int16), "values outside -1 … 36"),
    ("blocks.0.attn.qkv.threshold", np.full(108, -2, dtype=np.int16), "values outside"),
    ("blocks.0.mlp.fc1.zero_interval", np.full((70, 2), 37, dtype=np.int16), "values outside 0 … 36"),
    ("blocks.0.mlp.fc1.weight", np.full((70, 1), 2**63, dtype=np.uint64), "pad bits"),
    ("blocks.1.mlp.fc2.weight", np.full((36, 2), 2**6, dtype=np.uint64), "pad bits"),
    ("blocks.0.attn.exp_table", np.linspace(0, 1, 13, dtype=np.float32), "exp_table does not fall"),
    ("blocks.0.attn.attention_half_scale", np.zeros(1, dtype=np.float32), "not above 0"),
    ("heads.1.input_scale", np.zeros(1, dtype=np.float32), "heads.1.input_scale is not above 0"),
]


@pytest.mark.parametrize(("name", "array", "message"), BAD_TENSORS)
def test_reader_and_writer_refuse_a_bad_tensor(tmp_path, model, name, array, message):
    path = tmp_path / "model.safetensors"
    bad = with_tensor(model, name, array)
    with pytest.raises(InputError, match=message):
        packed_file.write(path, bad)
    assert list(tmp_path.iterdir()) == []
    save_unchecked(path, bad)
    with pytest.raises(InputError, match=message):
        packed_file.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 0},
        {"embed_dim": True},
        {"embed_dim": 36.0},
        {"embed_dim": 40000},
        {"depth": 10**9},
        {"num_heads": 5},
        {"patch_size": [7, 8]},
        {"image_size": [16]},
        {"image_size": [16, 65600]},
        {"image_size": [32768, 32768], "patch_size": [8, 8]},
        {"prefix_tokens": 17},
        {"num_heads_out": 3},
        {"num_heads_out": 2, "prefix_tokens": 1},
        {"num_heads_out": 2, "global_pool": "avg"},
        {"layer_norm_eps": -1},
        {"layer_norm_eps": float("nan")},
        {"attention_thresholds": [0.9, 0.7]},
        {"attention_thresholds": [0.5, 1.0]},
        {"value_thresholds": [0.1] * 40},
        {"value_thresholds": ["a"]},
        {"threshold_scope": "batch"},
        {"attention_bias": None},
        {"name": 3},
        {"surprise": 1},
    ],
)
def test_architecture_refuses_values_out_of_range(model, change):
    with pytest.raises(InputError, match=f"architecture.*{next(iter(change))}|tokens"):
        Architecture.from_json({**model.architecture.to_json(), **change})


def test_the_picture_size_must_be_the_models(tmp_path, model):
    with pytest.raises(InputError, match="make them equal"):
        packed_file.write(tmp_path / "model.safetensors", replace(model, preprocessing=Preprocessing(size=(8, 8))))


def test_a_failed_write_leaves_the_old_file(tmp_path, model):
    path = tmp_path / "model.safetensors"
    packed_file.write(path, model)
    before = path.read_bytes()
    with pytest.raises(InputError):
        packed_file.write(path, with_tensor(model, "norm.weight", None))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="cannot be written"):
        packed_file.write(tmp_path / "no" / "model.safetensors", model)


def test_numpy_numbers_in_provenance_do_not_leave_a_file(tmp_path, model):
    with pytest.raises(InputError, match="provenance"):
        packed_file.write(tmp_path / "model.safetensors", replace(model, provenance={"top1": np.float32(1)}))
    assert list(tmp_path.iterdir()) == []


def test_block_strips_the_prefix(model):
    assert isinstance(model, PackedModel)
    block = model.block(1)
    assert block["mlp.fc2.bias"] is model["blocks.1.mlp.fc2.bias"]
    assert len(block) == sum(name.startswith("blocks.1.") for name in model.tensors)
