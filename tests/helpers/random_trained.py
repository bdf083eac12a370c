"""Small binarized models with random but plausible parameters, for tests of the bridge: nothing is trained."""

from functools import partial

import timm
import torch
from random_packed import random_pictures
from timm.models.vision_transformer import VisionTransformer

import gsb_vit.models  # noqa: F401 (registers the models)
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.models.binarize import binarize, calibrate_thresholds, initialize_scales, set_pixel_scaling
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.nn.tokenizer import ConvEmbed
from gsb_vit.quantization import Quantization

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 72, "depth": 2, "num_heads": 3, "num_classes": 6}


class _Size:
    def __init__(self, size):
        self.image_size = size


def random_trained(seed=0, *, plain=False, switches=None, **shape):
    """Return (model in eval mode, preprocessing, pictures uint8 (24, H, W, 3)).

    Weights, biases, shifts, norms and attention biases are perturbed; scales start from the pictures and are then
    perturbed too, and so are the running statistics of a convolutional tokenizer. ``plain`` takes timm's
    VisionTransformer with a class token only, else the distilled one.
    """
    torch.manual_seed(seed)
    shape = {**SHAPE, **shape}
    if channels := shape.pop("tokenizer_channels", ()):
        shape["embed_layer"] = partial(ConvEmbed, channels)
    quantization = Quantization(**(switches or {}))
    if plain:
        model = binarize(VisionTransformer(**shape), quantization)
    else:
        model = timm.create_model("gsb_vit_tiny_patch16_224", quantization=quantization, **shape)
    size = shape["img_size"] if isinstance(shape["img_size"], tuple) else (shape["img_size"],) * 2
    preprocessing = Preprocessing(size=size, mean=(0.48, 0.46, 0.41), std=(0.23, 0.22, 0.23))
    pictures = random_pictures(_Size(size), 24, seed=seed)
    images = normalize(pictures, preprocessing)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += torch.randn_like(parameter) * _spread(name, parameter)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.normal_(0, 0.2)
                norm.running_var.uniform_(0.05, 0.5)
        initialize_scales(model, images)
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter *= 0.8 + 0.4 * torch.rand_like(parameter)
    if quantization.threshold_scope == "fixed":
        calibrate_thresholds(model, [images])
    set_pixel_scaling(model, preprocessing)
    return model.eval(), preprocessing, pictures


def _spread(name, parameter):
    if "attention_bias" in name:
        return 0.02
    if name.endswith("scale"):
        return 0.0
    if name.endswith("token") or "pos_embed" in name:
        return 0.3
    return 0.1 if parameter.dim() == 1 or "shift" in name else 0.05
