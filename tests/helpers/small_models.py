"""A tiny registered model of any quantization, and its gradients on two fixed pictures."""

import timm
import torch
from goldens import images
from torch import nn

import gsb_vit.models  # noqa: F401 (registers the models)
from gsb_vit.models.binarize import initialize_scales


def small(quantization="stage2", **options) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    return timm.create_model("gsb_vit_tiny_patch16_224", quantization=quantization, **{**shape, **options})


def ready(quantization="stage2", **options) -> nn.Module:
    model = small(quantization, **options)
    initialize_scales(model, images())
    model.set_distilled_training(True)
    return model.train()


def gradients(model: nn.Module, forward=None) -> dict[str, torch.Tensor]:
    model.zero_grad()
    by_class, by_teacher = (model if forward is None else forward)(images())
    (by_class.square().sum() + by_teacher.sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
