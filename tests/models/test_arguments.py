"""What a trained model file may ask for: known arguments of bounded size, registered names, no file and no code."""

import json
import os
import pickle
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

pytest.importorskip("timm")

import timm
import torch

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.models.arguments import ARGUMENTS, check_arguments, least_bytes, require_architecture
from gsb_vit.models.build import build_model
from gsb_vit.models.trained import ModelInfo, load_model, save_model
from gsb_vit.quantization import Quantization
from gsb_vit.train.recipe import ModelRecipe

NAME = "gsb_vit_tiny_patch16_224"
ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def metadata():
    quantization = Quantization.stage2()
    info = ModelInfo(NAME, ARGS, quantization, ("a", "b", "c"), Preprocessing(size=(16, 16)), "stage2", {})
    return json.loads(json.dumps(info.to_json()))


@pytest.fixture
def refused(tmp_path, metadata, monkeypatch):
    """Load a file with other metadata, which must be refused before timm builds anything: → the line."""
    path = tmp_path / "best.safetensors"
    quantization = Quantization.stage2()
    save_model(path, build_model(NAME, ARGS, 3, quantization), ModelInfo.from_json(metadata))
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])

    def call(values):
        header["__metadata__"]["gsb_vit"] = json.dumps(values)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])
        with pytest.raises(InputError, match=r"best\.safetensors") as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


class Payload:
    """What a loader without weights_only would run."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


FACTORY = {
    "checkpoint_path": "evil.pth",
    "pretrained_cfg": {"file": "evil.pth"},
    "pretrained_cfg_overlay": {"file": "evil.pth"},
    "cache_dir": "elsewhere",
    "scriptable": True,
    "features_only": True,
    "norm_layer": "layernorm",
    "weight_init": "skip",
    "quantization": "stage1",
    "num_classes": 7,
    "pretrained": True,
}


@pytest.mark.parametrize("argument", FACTORY)
def test_arguments_of_the_factory_are_refused_by_name(refused, metadata, tmp_path, monkeypatch, argument):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Payload()}))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    metadata["model_args"][argument] = FACTORY[argument]
    assert argument in refused(metadata)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(InputError, match=argument):
        build_model(NAME, {**ARGS, argument: FACTORY[argument]}, 3, Quantization.stage2())


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:someone/model",
        "hf_hub:someone/model",
        "local-dir:.",
        "./model",
        NAME + ".hf-hub:x",
        NAME + ".a.b",
        NAME + "\n",
        "",
        "hf-hub:" + NAME,
    ],
)
def test_names_that_are_places_are_refused(refused, metadata, monkeypatch, name):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    assert "unknown architecture" in refused({**metadata, "architecture": name})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("depth", 10**9),
        ("depth", 10**400),
        ("depth", 0),
        ("depth", 1.0),
        ("depth", "1"),
        ("depth", True),
        ("depth", None),
        ("depth", [1, 1]),
        ("embed_dim", 10**6),
        ("img_size", [16, 16, 16]),
        ("img_size", [[16], 16]),
        ("img_size", 10**5),
        ("mlp_ratio", float("nan")),
        ("mlp_ratio", float("inf")),
        ("drop_rate", -0.1),
        ("drop_path_rate", {}),
    ],
)
def test_values_out_of_range_are_refused(refused, metadata, argument, value):
    metadata["model_args"][argument] = value
    assert argument in refused(metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 16384, "depth": 256},
        {"img_size": 8192, "patch_size": 1},
        {"embed_dim": 8192, "mlp_ratio": 64, "depth": 64},
    ],
)
def test_a_model_of_many_gigabytes_is_refused_before_it_is_built(refused, metadata, monkeypatch, change):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    metadata["model_args"].update(change)
    assert "GB" in refused(metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "vit_giant_patch14_224", "model_args": {}},
        {"model_args": {**ARGS, "embed_dim": 4096, "depth": 24}},
    ],
)
def test_a_small_file_never_builds_a_large_model(refused, metadata, change):
    start = time.perf_counter()
    metadata["quantization"] = Quantization.full_precision().to_dict()
    assert "do not fit" in refused({**metadata, **change})
    assert time.perf_counter() - start < 30


@given(
    st.sampled_from(
        ["architecture", "model_args", "quantization", "class_names", "preprocessing", "stage", "provenance"]
    ),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
    ),
)
def test_wrong_types_in_metadata_are_input_errors(key, value):
    info = ModelInfo(NAME, ARGS, Quantization.stage2(), ("a", "b"), Preprocessing(size=(16, 16)), "stage2", {})
    values = {**json.loads(json.dumps(info.to_json())), key: value}
    try:
        found = ModelInfo.from_json(values)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert getattr(found, key) in (value, tuple(value))


@pytest.mark.parametrize("value", [[], "text", 5, None])
def test_metadata_that_is_no_object_is_refused(refused, tmp_path, value):
    path = tmp_path / "best.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"gsb_vit": json.dumps(value)})
    with pytest.raises(InputError, match=r"best\.safetensors"):
        load_model(path)
    save_file({"a": torch.zeros(1)}, path, metadata={"gsb_vit": "[" * 100_000})
    with pytest.raises(InputError, match=r"best\.safetensors"):
        load_model(path)


def test_what_recipes_give_is_allowed():
    check_arguments(NAME, ModelRecipe(embed_dim=32, depth=2, num_heads=2, mlp_ratio=4).arguments(), 102)
    assert set(ModelRecipe(embed_dim=1, depth=1, num_heads=1, mlp_ratio=1).arguments()) <= set(ARGUMENTS)
    require_architecture("vit_tiny_patch16_224.augreg_in21k")
    check_arguments(NAME, {"img_size": (32, 48), "patch_size": [8, 8]}, 0)


@pytest.mark.parametrize("args", [{}, ARGS, {"embed_dim": 96, "depth": 3, "num_heads": 3, "mlp_ratio": 2.5}])
def test_the_estimate_is_from_below(args):
    with torch.device("meta"):
        model = build_model(NAME, dict(args), 10, Quantization.full_precision())
    assert least_bytes(args, 10) - 8 * args.get("depth", 1) * 16**2 <= 4 * sum(p.numel() for p in model.parameters())
