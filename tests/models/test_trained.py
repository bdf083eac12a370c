"""Model files: round trip, atomic writes, and what carries over from one model to the next."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.files import write_atomically
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.models.trained import ModelInfo, load_model, save_model
from gsb_vit.quantization import Quantization
from gsb_vit.train.checkpoint import optimizer_tensors, restore_optimizer, start_from

ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
NAME = "gsb_vit_tiny_patch16_224"


def make(quantization: Quantization) -> torch.nn.Module:
    return build_model(NAME, ARGS, 3, quantization)


def info(quantization: Quantization) -> ModelInfo:
    return ModelInfo(NAME, ARGS, quantization, ("a", "b", "ç"), Preprocessing(size=(16, 16)), "stage2", {"epoch": 4})


@pytest.mark.parametrize("preset", ["full_precision", "stage1", "stage2", "authors_stage1", "authors_stage2"])
def test_a_model_file_describes_itself(preset: str, tmp_path: Path) -> None:
    switches = Quantization.create(preset)
    model, x = make(switches), torch.randn(4, 3, 16, 16)
    initialize_scales(model, x)
    save_model(tmp_path / "best.safetensors", model, info(switches))
    loaded = load_model(tmp_path)
    assert loaded.info == info(switches) and loaded.class_names == ("a", "b", "ç")
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model.eval()(x))
    assert [p.name for p in tmp_path.iterdir()] == ["best.safetensors"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("gsb_vit.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no trained model"):
        load_model(tmp_path)
    with pytest.raises(InputError, match=r"nothing\.safetensors"):
        load_model(tmp_path / "nothing.safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(path)
    save_model(path, make(Quantization.stage2()), info(Quantization.stage2()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        load_model(path)
    save_model(path, make(Quantization.stage1()), info(Quantization.stage2()))
    with pytest.raises(InputError, match="do not fit"):
        load_model(path)


def test_what_matches_is_carried_and_the_rest_stays_to_be_initialised() -> None:
    teacher, stage1, stage2 = (make(getattr(Quantization, n)()) for n in ("full_precision", "stage1", "stage2"))
    carried, fresh = start_from(stage1, teacher)
    assert torch.equal(stage1.blocks[0].attn.qkv.weight, teacher.blocks[0].attn.qkv.weight)
    assert set(carried) == set(teacher.state_dict()) and "blocks.0.mlp.fc1.shift" in fresh
    carried, fresh = start_from(stage2, stage1)
    assert set(carried) == set(stage1.state_dict())
    assert {n for n in fresh if n.endswith("initialized")} == {n for n in stage2.state_dict() if "initialized" in n}
    assert not any(bool(t) for n, t in stage2.state_dict().items() if n.endswith("initialized"))


def test_scales_that_are_carried_are_not_initialised_again() -> None:
    first, second = make(Quantization.stage2()), make(Quantization.stage2())
    initialize_scales(first, torch.randn(4, 3, 16, 16))
    start_from(second, first)
    initialize_scales(second, 100 * torch.randn(4, 3, 16, 16))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_scales_of_another_number_of_groups_start_fresh() -> None:
    first, second = make(Quantization.stage2()), make(Quantization(attention_thresholds=(0.5,)))
    initialize_scales(first, torch.randn(4, 3, 16, 16))
    _, fresh = start_from(second, first)
    stem = "blocks.0.attn.attention_quantizer."
    assert fresh == [stem + "scale", stem + "initialized"]
    assert not second.blocks[0].attn.attention_quantizer.is_ready


def test_scales_of_other_bits_start_fresh() -> None:
    first, second = make(Quantization(activation_bits=8, weight_bits=8)), make(Quantization(weight_scale="learned_row"))
    initialize_scales(first, torch.randn(4, 3, 16, 16))
    carried, fresh = start_from(second, first)
    layer = "blocks.0.mlp.fc1"
    assert {f"{layer}.weight", f"{layer}.shift", f"{layer}.bias"} <= set(carried)
    assert {f"{layer}.input_quantizer.scale", f"{layer}.weight_quantizer.weight_scale"} <= set(fresh)
    edges = {name for name in carried if name.endswith("initialized")}
    assert edges and all(name.startswith(("patch_embed", "head")) for name in edges)


def test_the_optimiser_goes_on_as_if_never_stopped() -> None:
    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    one, two = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    two.load_state_dict(one.state_dict())
    optimizer = torch.optim.AdamW(one.parameters())
    steps(one, optimizer, 6)
    first = torch.optim.AdamW(two.parameters())
    steps(two, first, 3)
    second = torch.optim.AdamW(two.parameters())
    restore_optimizer(second, optimizer_tensors(first))
    steps(two, second, 3)
    assert torch.equal(one.weight, two.weight)
