"""Parameter groups: what decays, and how fast scales learn."""

import dataclasses

import pytest
import torch

pytest.importorskip("timm")

from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.quantization import Quantization
from gsb_vit.train.optimize import make_optimizer, parameter_groups, scale_factors
from gsb_vit.train.recipe import StageRecipe

RECIPE = StageRecipe(epochs=10, learning_rate=1e-2, warmup_epochs=1, min_learning_rate=1e-6, clip_grad=0.0)
ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    made = build_model("gsb_vit_tiny_patch16_224", ARGS, 3, Quantization.stage2())
    initialize_scales(made, torch.randn(8, 3, 16, 16))
    return made


def test_every_parameter_is_in_one_group_and_vectors_do_not_decay(model: torch.nn.Module) -> None:
    groups = parameter_groups(model, 0.05, scale_factors(model, RECIPE))
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim <= 1 or name in ("pos_embed", "cls_token", "dist_token")
        assert decay[id(parameter)] == (0.0 if exempt else 0.05), name


def test_muon_is_for_the_weights_of_layers_alone(model: torch.nn.Module) -> None:
    """Positions and the bias of attention have two dimensions, too, and are no maps from vectors to vectors."""
    recipe = dataclasses.replace(RECIPE, optimizer="muon")
    optimizer, schedule = make_optimizer(model, recipe, scale_factors(model, recipe), steps=5)
    schedule.step_update(5)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    by_muon = {name for name, p in model.named_parameters() if optimizer.state[p]["use_muon"]}
    matrices = {name for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1}
    assert by_muon == matrices - {"head.weight", "head_dist.weight"}  # three rows here, too few for timm
    assert any("qkv" in name for name in by_muon)


def test_one_step_moves_a_scale_by_a_share_of_itself(model: torch.nn.Module) -> None:
    optimizer, schedule = make_optimizer(model, RECIPE, scale_factors(model, RECIPE), steps=5)
    schedule.step_update(5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name.endswith("scale"):
            moved = float((before[name] - parameter.detach()).abs().mean() / before[name].abs().mean())
            assert moved < 1.5e-2, name
    head = model.head.weight_scale.detach()
    assert float((head - before["head.weight_scale"]).abs()) < 1e-3 and float(head) > 0


def test_absolute_is_the_rate_of_all(model: torch.nn.Module) -> None:
    assert scale_factors(model, dataclasses.replace(RECIPE, scale_learning_rate="absolute")) == {}
