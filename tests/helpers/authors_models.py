"""The authors' small golden models, imported, and the loss their tensors were made with."""

import torch
from goldens import case
from torch.nn import functional

from gsb_vit.models.authors import import_authors_checkpoint

SIZES = {"image_size": 32, "patch_size": 8, "num_heads": 2}
# The true gradient is zero: softmax ignores a shift common to all keys, BatchNorm one common to all pictures. What
# the released code's floats have there is rounding noise, so only its size can be compared.
NO_GRADIENT = {1: {"blocks.0.attn.k_shift", "blocks.1.attn.k_shift", "patch_embed.proj.bias"}, 2: set()}


def imported(stage: int, **options):
    return import_authors_checkpoint(case(f"model_stage{stage}", "state"), **{**SIZES, **options})


def training(stage: int):
    model = imported(stage).train()
    model.set_distilled_training(True)
    return model


def loss_of(model, data) -> torch.Tensor:
    by_class, by_teacher = model(data["x"])
    cross_entropy = functional.cross_entropy
    return (cross_entropy(by_class, data["labels"]) + cross_entropy(by_teacher, data["teacher_labels"])) / 2
