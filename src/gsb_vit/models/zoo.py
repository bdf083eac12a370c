"""The models registered with timm: DeiT shapes with a class and a distillation token.

Importing this module registers them, so that ``timm.create_model("gsb_vit_small_patch16_224", img_size=64)`` works.
"""

from functools import partial
from typing import Any, cast

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from gsb_vit.errors import InputError
from gsb_vit.quantization import Quantization

from .binarize import binarize, quantize_heads
from .pixel_inputs import PixelInputs

LAYER_NORM_EPS = 1e-12


class _Binarized(PixelInputs):
    """Mixin for a timm vision transformer that is binarized when it is built."""

    quantization: Quantization | None

    def __init__(
        self, *args: Any, quantization: Quantization | dict[str, Any] | str | None = None, **kwargs: Any
    ) -> None:
        if kwargs.get("norm_layer") is None:
            kwargs["norm_layer"] = partial(LayerNorm, eps=LAYER_NORM_EPS)
        super().__init__(*args, **kwargs)
        self.quantization = None
        binarize(cast(VisionTransformer, self), quantization)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model fresh heads for num_classes classes, 8-bit ones where it had them."""
        super().reset_classifier(num_classes, global_pool)  # type: ignore[misc]
        if self.quantization is not None and self.quantization.edge_bits == 8:
            quantize_heads(cast(VisionTransformer, self))

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Change the input size of an unquantized model.

        Raises InputError for a quantized one, whose scales and biases belong to one grid of patches.
        """
        if self.quantization != Quantization.full_precision():
            raise InputError("a quantized model keeps its input size; build a new one with img_size=... instead")
        super().set_input_size(img_size=img_size, patch_size=patch_size)  # type: ignore[misc]


class GSBVisionTransformer(_Binarized, VisionTransformerDistilled):
    """timm's distilled vision transformer, binarized as ``quantization`` says.

    ``quantization`` is a Quantization, a dict of its switches, a preset's name (``"stage1"``, ``"full_precision"``
    for the twin without any quantization, ...) or None for ``stage2``; all else goes to timm's VisionTransformer.
    LayerNorm's eps is 1e-12 unless ``norm_layer`` is given. In train mode after ``set_distilled_training(True)`` the
    forward pass returns the logits (B, K) of both heads, else their mean.
    """


class GSBPooledVisionTransformer(_Binarized, VisionTransformer):
    """The same with the mean of all patch tokens in place of class and distillation token, and one head.

    ``global_pool="avg"`` of the registered models builds it: y = norm(1/N·Σ_n x_n), as timm has it.
    """


def _cfg() -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": ("head", "head_dist"),
    }


default_cfgs = generate_default_cfgs(
    {
        "gsb_vit_tiny_patch16_224": _cfg(),
        "gsb_vit_small_patch16_224": _cfg(),
        "gsb_vit_base_patch16_224": _cfg(),
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    out_indices = kwargs.pop("out_indices", 3)
    feature_cfg = {"out_indices": out_indices, "feature_cls": "getter"}
    kind: type[VisionTransformer] = GSBVisionTransformer
    if kwargs.get("global_pool") == "avg":
        kind, kwargs = GSBPooledVisionTransformer, {"class_token": False, **kwargs}
    elif kwargs.get("reg_tokens"):
        raise InputError(f"{variant} takes reg_tokens with global_pool = 'avg' only; set both, or neither")
    return build_model_with_cfg(kind, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def gsb_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return DeiT-Tiny's shape: width 192, 3 heads, depth 12."""
    shape = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 3}
    return _create("gsb_vit_tiny_patch16_224", pretrained, **{**shape, **kwargs})


@register_model
def gsb_vit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return DeiT-Small's shape: width 384, 6 heads, depth 12."""
    shape = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}
    return _create("gsb_vit_small_patch16_224", pretrained, **{**shape, **kwargs})


@register_model
def gsb_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Return DeiT-Base's shape: width 768, 12 heads, depth 12."""
    shape = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
    return _create("gsb_vit_base_patch16_224", pretrained, **{**shape, **kwargs})
