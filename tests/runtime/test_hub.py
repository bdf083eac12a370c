"""Models on the hub: there and back through a server on this machine, the card, the cache, a line for what fails."""

import builtins
import dataclasses
import json
import re

import numpy as np
import pytest
from fake_hub import fake_hub
from random_packed import random_packed

import gsb_vit
from gsb_vit.cli import main
from gsb_vit.data.digests import pack_seen
from gsb_vit.decision import Decision, Unknown
from gsb_vit.errors import InputError
from gsb_vit.runtime.hub_card import model_card
from gsb_vit.runtime.packed_file import read, write

SHAPE = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_hidden": 40}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", "2.0", reason="an older huggingface_hub keeps the endpoint it began with")
    from huggingface_hub import constants

    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server


@pytest.fixture
def model(tmp_path):
    packed = random_packed(seed=4, **SHAPE, num_classes=3)
    provenance = {"data": "flowers", "training_pictures": 12, "seen": pack_seen(["00" * 16])}
    decision = Decision(1.5, Unknown("max_logit", 0.25, 0.05))
    path = tmp_path / "model.safetensors"
    write(path, dataclasses.replace(packed, provenance=provenance, decision=decision))
    return path


def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_there_and_back_gives_equal_logits(hub, model):
    address = gsb_vit.push_to_hub(model, "user/name", license="mit", metrics={"top1": 0.875})
    assert address == f"{hub.url}/user/name"
    assert set(hub.files["user/name"]) >= {"model.safetensors", "README.md"}
    assert hub.files["user/name"]["model.safetensors"] == model.read_bytes()
    card = hub.files["user/name"]["README.md"].decode()
    assert 'license: "mit"' in card and "| top-1 | 87.50 |" in card
    for name in ("hf:user/name", f"hf:user/name@{hub.commit_of('user/name')}"):
        for engine in ("native", "reference"):
            loaded = gsb_vit.load(name, engine=engine)
            assert np.array_equal(loaded.logits(pictures()), gsb_vit.load(model).logits(pictures()))


def test_the_second_load_takes_the_file_from_the_cache(hub, model):
    gsb_vit.push_to_hub(model, "user/name")
    for _ in range(2):
        gsb_vit.load("hf:user/name")
    downloads = [one for one in hub.requests if one[0] == "GET" and "/resolve/" in one[1]]
    assert len(downloads) == 1


def test_a_new_version_is_fetched(hub, model, tmp_path):
    gsb_vit.push_to_hub(model, "user/name")
    assert len(gsb_vit.load("hf:user/name").class_names) == 3
    write(tmp_path / "other", random_packed(seed=9, **SHAPE, num_classes=5))
    gsb_vit.push_to_hub(tmp_path / "other", "user/name")
    assert len(gsb_vit.load("hf:user/name").class_names) == 5


def test_without_the_server_the_cache_is_enough_and_else_one_line_says_so(hub, model, monkeypatch):
    gsb_vit.push_to_hub(model, "user/name")
    gsb_vit.load("hf:user/name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again, later and later
    assert len(gsb_vit.load("hf:user/name").class_names) == 3
    with pytest.raises(
        InputError, match=r"^hf:user/other is not in the cache, and the hub cannot be reached; go online"
    ):
        gsb_vit.load("hf:user/other")
    with pytest.raises(InputError, match=r"^hf:user/other cannot be used \(.*\); try again"):
        gsb_vit.push_to_hub(model, "user/other")


@pytest.mark.parametrize("large", [1000, 10**9], ids=["LFS", "Git"])
def test_a_damaged_file_in_the_cache_is_found(model, tmp_path, monkeypatch, hub, large):
    hub.large = large
    gsb_vit.push_to_hub(model, "user/name")
    gsb_vit.load("hf:user/name")
    (blob,) = [path for path in (tmp_path / "cache").rglob("blobs/*") if path.stat().st_size > 1000]
    data = bytearray(blob.read_bytes())
    data[-5] ^= 1
    blob.write_bytes(data)
    with pytest.raises(InputError, match=rf"^hf:user/name is damaged: .*{blob.name} .*; remove it and load it again"):
        gsb_vit.load("hf:user/name")


def test_what_is_not_there_is_said_in_one_line(hub, model):
    with pytest.raises(InputError, match="hf:user/nobody is no model there, or a private one"):
        gsb_vit.load("hf:user/nobody")
    gsb_vit.push_to_hub(model, "user/name")
    with pytest.raises(InputError, match="hf:user/name@old has no such revision"):
        gsb_vit.load("hf:user/name@old")
    del hub.files["user/name"]["model.safetensors"]
    with pytest.raises(InputError, match=r"hf:user/name holds no model\.safetensors"):
        gsb_vit.load("hf:user/name")


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:a b/c"])
def test_names_that_are_none_are_refused_without_the_library(name):
    with pytest.raises(InputError, match=r"is no name of a model on the hub; give hf:USER/NAME"):
        gsb_vit.load(name)


def test_what_is_no_packed_file_is_not_pushed(hub, tmp_path):
    (tmp_path / "text").write_text("no model")
    with pytest.raises(InputError, match="not a packed model"):
        gsb_vit.push_to_hub(tmp_path / "text", "user/name")
    with pytest.raises(InputError, match="'name' is no name of a model; give USER/NAME"):
        gsb_vit.push_to_hub(tmp_path / "text", "name")
    assert hub.requests == []


def test_a_private_model_is_made_so(hub, model):
    gsb_vit.push_to_hub(model, "user/name", private=True)
    assert hub.private["user/name"]


def test_without_the_library_the_extra_is_named(monkeypatch, model):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "huggingface_hub":
            raise ModuleNotFoundError("No module named 'huggingface_hub'", name="huggingface_hub")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=re.escape("pip install 'gsb-vit[hub]'")):
        gsb_vit.load("hf:user/name")


def test_the_card_says_what_the_file_says(model):
    packed = read(model)
    card = model_card(packed, 1_234_000, "user/my-flowers")
    for part in (
        "# my-flowers",
        'gsb_vit.load("hf:user/my-flowers")',
        "class 0, class 1, class 2",
        "1.234 MB",
        "| data | flowers |",
    ):
        assert part in card
    assert "temperature 1.5" in card and "5.0% of pictures of known classes unknown" in card
    assert "digests of the pictures" in card and "license" not in card and "## Test" not in card
    bare = dataclasses.replace(packed, provenance={}, decision=Decision())
    plain = model_card(bare, 1, "a/b")
    assert "not calibrated" in plain and "digests" not in plain and "## Training" not in plain


def test_names_cannot_break_the_card(model):
    packed = read(model)
    names = ("a|b", "<script>", "line\nbreak")
    card = model_card(dataclasses.replace(packed, class_names=names), 1, "a/b")
    assert "a\\|b, \\<script\\>, line\\\\nbreak" in card


def test_the_commands_take_a_name_on_the_hub(hub, model, tmp_path, capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(one) for one in arguments])
        return (stop.value.code, *capsys.readouterr())

    status, output, _ = call("push", model, "user/name", "--json")
    assert status == 0 and json.loads(output) == {"address": f"{hub.url}/user/name"}
    status, output, _ = call("summary", "hf:user/name", "--json")
    assert status == 0 and json.loads(output)["classes"] == ["class 0", "class 1", "class 2"]
    status, output, _ = call("evaluate", "hf:user/nobody", "--data", "digits", "--json")
    assert status == 2 and "is no model there" in json.loads(output)["error"]
