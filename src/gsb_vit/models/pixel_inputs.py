"""Pictures of whole pixels: scaled for a model, and embedded as its packed file embeds them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.nn.exact import OrderedNorm, Scaling, in_order, mean_tokens


def normalize(pictures: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Scale whole pixels for a model: uint8 (B, H, W, 3) → float32 (B, 3, H, W), (u/255 − mean)/std."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return ((images - mean) / std).contiguous()


@torch.no_grad()
def stored_tokens(vit: Any, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Return the prefix tokens (P, C) with their position added, and ``position`` (Np, C), each rounded once.

    position[n,o] = pos_embed[n,o] + what the patch embedding or the tokenizer says (``position_offset``).
    """
    pos_embed, offset = vit.pos_embed, vit.patch_embed.proj.position_offset(scaling)
    tokens = [vit.cls_token] if vit.has_class_token else []
    tokens += [vit.dist_token] if isinstance(vit, VisionTransformerDistilled) else []
    tokens += [vit.reg_token] if vit.num_reg_tokens else []
    prefixes = torch.cat([token[0] for token in tokens] or [offset.new_zeros(0, len(offset))]).double()
    position = offset.new_zeros(vit.patch_embed.num_patches, len(offset))
    if pos_embed is not None:
        position = pos_embed[0].double()
        if not vit.no_embed_class:
            prefixes, position = prefixes + position[: len(prefixes)], position[len(prefixes) :]
    return prefixes.float(), (position + offset).float()


class PixelInputs:
    """Mixin for a timm VisionTransformer whose patch embedding may know what its pictures were scaled from.

    Then pictures (u/255 − mean)/std of whole u are embedded as docs/numerics.md says. The patch embedding tells so by
    its sums' type: float64 from a float32 model means sums to which ``position`` is still to be added.
    """

    def _pos_embed(self, x: Tensor) -> Tensor:
        vit: Any = self
        if x.dtype != torch.float64 or next(vit.patch_embed.parameters()).dtype == torch.float64:
            return super()._pos_embed(x)  # type: ignore[misc]
        prefixes, position = stored_tokens(vit, vit.patch_embed.proj.pixel_scaling)
        value = torch.cat([prefixes.expand(len(x), -1, -1), x.float() + position], dim=1)
        return in_order(value, lambda: super(PixelInputs, self)._pos_embed(x.float()))  # type: ignore[misc]

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        vit: Any = self
        kind = vit.global_pool if pool_type is None else pool_type
        plain = super().pool  # type: ignore[misc]
        norm = vit.norm if isinstance(vit.fc_norm, nn.Identity) else vit.fc_norm
        if kind != "avg" or not (isinstance(norm, OrderedNorm) and norm.is_ordered(x)):
            return plain(x, pool_type)
        return in_order(mean_tokens(x[:, vit.num_prefix_tokens :]), lambda: plain(x, pool_type))


class PixelVisionTransformer(PixelInputs, VisionTransformer):
    """timm's VisionTransformer with ``PixelInputs``."""


class PixelVisionTransformerDistilled(PixelInputs, VisionTransformerDistilled):
    """timm's distilled VisionTransformer with ``PixelInputs``."""


PIXEL_MODELS: dict[type, type] = {
    VisionTransformer: PixelVisionTransformer,
    VisionTransformerDistilled: PixelVisionTransformerDistilled,
}
