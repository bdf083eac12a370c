"""Read the checkpoints of the authors' released GSB code (https://arxiv.org/abs/2305.07931), stage 1 or stage 2."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from gsb_vit.errors import InputError
from gsb_vit.quantization import Quantization

from .zoo import GSBVisionTransformer

# Their names, where they differ from ours; the three scales of a superposition are stacked afterwards.
_RENAMED = (
    (r"\.attn\.move_([qkv])\.bias$", r".attn.\1_shift"),
    (r"\.attn\.move_att\.bias$", ".attn.attention_bias.bias"),
    (r"\.attn\.clip_query$", ".attn.query_quantizer.scale"),
    (r"\.attn\.clip_key$", ".attn.key_quantizer.scale"),
    (r"\.move\.bias$", ".shift"),
    (r"\.input_clip_val$", ".input_quantizer.scale"),
    (r"\.weight_clip_val$", ".weight_scale"),
    (r"^patch_embed\.proj\.alpha$", "patch_embed.proj.weight_scale"),
)
_STACKED = {"value_quantizer": ("clip_value", "clip_value2", "clip_value3"),
            "attention_quantizer": ("clip_attn", "clip_attn2", "clip_attn3")}  # fmt: skip
_REQUIRED = ("cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight", "norm.weight", "head.weight",
             "head_dist.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.move_q.bias",
             "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.move.bias")  # fmt: skip


def translate_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a released checkpoint (or their gradients) under our names.

    The three scales of each superposition become one tensor (3,). Left out: ``weight_clip_val`` of one-bit weights
    (a pair that the released code never reads) and ``init_state``.
    """
    translated: dict[str, Tensor] = {}
    stacked = {f"{name}" for names in _STACKED.values() for name in names}
    for key, tensor in tensors.items():
        if key.endswith(".init_state") or (key.endswith(".weight_clip_val") and not key.startswith("head")):
            continue
        if key.rsplit(".", 1)[-1] in stacked:
            continue
        for pattern, name in _RENAMED:
            key = re.sub(pattern, name, key)
        translated[key] = tensor
    for block in sorted({key.rsplit(".", 1)[0] for key in tensors if key.endswith((".clip_value", ".clip_attn"))}):
        for module, names in _STACKED.items():
            scales = [tensors[f"{block}.{name}"].reshape(()) for name in names if f"{block}.{name}" in tensors]
            if scales:
                translated[f"{block}.{module}.scale"] = torch.stack(scales)
    return translated


def import_authors_checkpoint(
    state_dict: Mapping[str, Tensor],
    *,
    image_size: int | tuple[int, int],
    patch_size: int | tuple[int, int],
    num_heads: int,
    threshold_scope: Literal["sample", "batch", "fixed"] = "batch",
    aligned_gradients: bool = False,
) -> GSBVisionTransformer:
    """Return the model of a released checkpoint, in eval mode; with the defaults it reproduces the authors' logits.

    Stage 1 or stage 2 is told from the keys. ``threshold_scope="sample"`` makes predictions independent of the batch
    and ``aligned_gradients`` trains on with ``value_gradient="aligned"``.

    Raises InputError for a state dict that is not of the released code, naming what is missing, or that does not fit
    the sizes given.
    """
    tensors = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    if missing := [key for key in _REQUIRED if key not in tensors]:
        raise InputError(
            f"this is not a checkpoint of the released GSB code: {', '.join(missing)} missing; pass the state dict "
            "itself (often under the key 'model' or 'state_dict' of the file)"
        )
    stage2 = "blocks.0.attn.clip_query" in tensors
    quantization = Quantization.authors_stage2() if stage2 else Quantization.authors_stage1()
    quantization = replace(
        quantization, threshold_scope=threshold_scope, value_gradient="aligned" if aligned_gradients else "authors"
    )
    width = tensors["cls_token"].shape[-1]
    if width % num_heads:
        raise InputError(f"num_heads is {num_heads}, but the checkpoint's width {width} is not divisible by it")
    model = GSBVisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=tensors["patch_embed.proj.weight"].shape[1],
        embed_dim=width,
        depth=1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")),
        num_heads=num_heads,
        mlp_ratio=tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
        num_classes=tensors["head.weight"].shape[0],
        quantization=quantization,
    )
    _load(model, translate_keys(tensors))
    return model.eval()


def _load(model: GSBVisionTransformer, tensors: dict[str, Tensor]) -> None:
    own = model.state_dict()
    # The released code does not save whether its scales are set; in a checkpoint they are. Stored extremes of scope
    # "fixed" are ours alone and must be calibrated afterwards.
    flags = {key: torch.tensor(True) for key in own if key.endswith(".initialized")}
    expected = {key for key in own if key not in flags and not key.endswith(".running_extremes")}
    if missing := sorted(expected - set(tensors)):
        raise InputError(f"the checkpoint lacks {', '.join(missing[:5])}: it is no complete GSB checkpoint")
    if foreign := sorted(set(tensors) - set(own)):
        raise InputError(f"the checkpoint has {', '.join(foreign[:5])}, which the released GSB code does not know")
    for key in expected:
        if own[key].shape != tensors[key].shape:
            raise InputError(
                f"{key} is {tuple(tensors[key].shape)} in the checkpoint and {tuple(own[key].shape)} in the model; "
                "check image_size, patch_size and num_heads"
            )
    model.load_state_dict({**tensors, **flags}, strict=False)
