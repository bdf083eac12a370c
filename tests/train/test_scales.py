"""Learned scales stay above zero: each of every scheme and preset is pushed below it, and training goes on."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("accelerate")

from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.nn.input_quantizers import InitializedOnce
from gsb_vit.nn.quantize import SCALE_MIN
from gsb_vit.quantization import Quantization
from gsb_vit.train.guards import ScaleFloor
from gsb_vit.train.optimize import quantizer_scales
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import train

KINDS = {
    **{name: Quantization.create(name) for name in ("stage1", "stage2", "authors_stage1", "authors_stage2")},
    **{name: Quantization(scheme=name) for name in ("bit", "xnor", "reactnet", "bibert")},
    "learned_row": Quantization(weight_scale="learned_row"),
    "fixed": Quantization(threshold_scope="fixed"),
    "w2a8": Quantization(weight_bits=2, activation_bits=8),
    "w8a8": Quantization(weight_bits=8, activation_bits=8),
    "w8a8_layer": Quantization(weight_bits=8, activation_bits=8, weight_scale="layer"),
}
CONVOLUTIONS = {"tokenizer_channels": [8, 8], "patch_size": 8, "global_pool": "avg"}
TOKENIZERS = {"patches": {}, "tokenizer": CONVOLUTIONS, "one-bit tokenizer": CONVOLUTIONS}


def tiny(quantization: Quantization, **args: object) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, **args}
    model = build_model("gsb_vit_tiny_patch16_224", shape, 4, quantization)
    initialize_scales(model, torch.randn(4, 3, 16, 16))
    return model.train()


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    out = model(torch.randn(4, 3, 16, 16))
    return torch.nn.functional.cross_entropy(out, torch.arange(4))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_scales_pushed_below_zero_are_held_and_training_goes_on(kind: str, tokenizer: str) -> None:
    one_bit = tokenizer == "one-bit tokenizer" and KINDS[kind].edge_bits == 8
    model = tiny(replace(KINDS[kind], tokenizer_bits=1 if one_bit else 8), **TOKENIZERS[tokenizer])
    scales = dict(quantizer_scales(model))
    owners = {name for name, module in model.named_modules() if isinstance(module, InitializedOnce)}
    assert {name.rpartition(".")[0] for name in scales} == owners  # whatever owns a learned scale is walked
    optimizer, floor = torch.optim.AdamW(model.parameters(), lr=1e-3), ScaleFloor(model)
    for name, scale in scales.items():
        with torch.no_grad():
            scale.sub_(2 * scale.abs().max())
        assert float(scale.detach().max()) <= 0, name
    floor.hold()
    assert all(torch.equal(scale, torch.full_like(scale, SCALE_MIN)) for scale in scales.values())
    told = floor.news()
    assert (told is None) == (not scales)
    if told is not None:
        assert "\n" not in told and next(iter(scales)) in told and (len(scales) <= 4 or f"{len(scales)} in all" in told)
    for _ in range(3):
        loss = loss_of(model)
        assert bool(torch.isfinite(loss))
        loss.backward()
        optimizer.step()
        floor.hold()
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            assert bool(torch.isfinite(parameter).all()), name
        for name, scale in scales.items():
            assert bool((scale.detach() >= SCALE_MIN).all()), name
    assert floor.news() is None  # each is told once


def test_scales_above_the_floor_are_left_alone_and_nothing_is_said() -> None:
    model = tiny(Quantization())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    floor = ScaleFloor(model)
    floor.hold()
    assert floor.news() is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_held_scale_of_a_row_is_told_and_the_others_keep_their_bits() -> None:
    model = tiny(Quantization(weight_scale="learned_row"))
    scale = dict(quantizer_scales(model))["blocks.0.attn.qkv.weight_quantizer.weight_scale"]
    before = scale.detach().clone()
    with torch.no_grad():
        scale[3] = -0.5
    floor = ScaleFloor(model)
    floor.hold()
    before[3] = SCALE_MIN
    assert torch.equal(scale.detach(), before)
    assert "blocks.0.attn.qkv.weight_quantizer.weight_scale" in str(floor.news())


def test_a_run_whose_rates_throw_scales_across_zero_ends_well_and_says_so_once(tmp_path: Path) -> None:
    shape = ["model.depth=1", "model.embed_dim=32", "model.num_heads=2", "data.shots=20", "threads=1"]
    stage = ["stage2.epochs=4", "stage2.batch_size=32", "stage2.warmup_epochs=0", "stage2.learning_rate=0.02"]
    switches = ["stage2.quantization.preset=authors_stage2", "stage2.scale_learning_rate=absolute"]
    recipe = load_recipe("quickstart", [*shape, *stage, *switches, "teacher.source=none", "stage1.epochs=0"])
    console = Console(file=io.StringIO(), width=2000)
    summary = train(recipe, "digits", tmp_path / "run", console=console)
    told = console.file.getvalue().replace("\n  ", " ")
    lines = [line for line in told.splitlines() if "are held there" in line]
    assert len(lines) >= 1 and "stage2, epoch 1" in lines[0]
    names = [name for line in lines for name in line.partition("held there: ")[2].partition(";")[0].split(", ")]
    assert len(names) == len(set(names))
    assert summary.final_stage == "stage2" and 0 <= summary.test["top1"] <= 1
    assert len([json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]) == 4
