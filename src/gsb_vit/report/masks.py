"""Pictures of superposed attention: what each binary mask of a head lets one token look at."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from gsb_vit.runtime.packed_file import PackedModel
from gsb_vit.runtime.reference import ReferenceModel
from gsb_vit.runtime.schema import Architecture

from .charts import png_uri

PANEL_PIXELS = 168
TINTS = ((31, 158, 128), (240, 170, 88), (226, 92, 74), (150, 110, 220))


@dataclass(frozen=True)
class Panel:
    """One picture of a row; ``css`` is "flat" for the head's whole matrix and "" for a picture."""

    caption: str
    image: Markup
    css: str = ""


@dataclass(frozen=True)
class PanelRow:
    """The masks of one head, as one of its tokens sees them."""

    label: str
    panels: list[Panel]


def mask_rows(model: PackedModel, picture: np.ndarray, count: int = 3) -> list[PanelRow]:
    """Return the ``count`` most telling heads of a picture, uint8 (H, W, 3), at most one a block.

    A head's row shows one of its tokens (one of the queries, the rows of A): the one whose masks say most, neither
    empty nor full. The packed file keeps only products of attention and Value scales, so the superposition is drawn
    with the attention scales relative to the first.
    """
    architecture = model.architecture
    trace = ReferenceModel(model).trace(picture)
    found = []
    for block in range(architecture.depth):
        masks = trace[f"blocks.{block}.attn.attention_masks"]
        score, head, token = _most_telling(masks, architecture.prefix_tokens)
        found.append((score, block, head, token))
    chosen = sorted(sorted(found, key=lambda entry: -entry[0])[:count], key=lambda entry: entry[1])
    rows = []
    for _, block, head, token in chosen:
        products = model[f"blocks.{block}.attn.product_scale"]
        attention = trace[f"blocks.{block}.attn.attention"][head]
        masks = trace[f"blocks.{block}.attn.attention_masks"][:, head]
        scales = products[:, 0] / products[0, 0]
        who = _name_of_token(architecture, token)
        label = f"Block {block + 1} of {architecture.depth}, head {head + 1} of {architecture.num_heads}, {who}"
        rows.append(PanelRow(label, _panels(architecture, picture, attention, masks, scales, token)))
    return rows


def _most_telling(masks: np.ndarray, prefix_tokens: int) -> tuple[float, int, int]:
    """Return score, head and token of masks (A, h, N, N); a prefix token wins where the scores are equal.

    The score is the entropy of "is a patch in the mask?", summed over the masks: 0 where all are empty or full.
    """
    shares = masks[:, :, :, prefix_tokens:].mean(axis=-1)
    inside = shares.clip(1e-12, 1 - 1e-12)
    score = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).sum(axis=0)
    score[:, :prefix_tokens] += 1e-3
    head, token = np.unravel_index(int(score.argmax()), score.shape)
    return float(score[head, token]), int(head), int(token)


def _name_of_token(architecture: Architecture, token: int) -> str:
    if token < architecture.prefix_tokens:
        if architecture.global_pool == "token" and token < architecture.num_heads_out:
            return ("class token", "distillation token")[token]
        return f"prefix token {token + 1}"
    row, column = divmod(token - architecture.prefix_tokens, architecture.grid[1])
    return f"patch in row {row + 1}, column {column + 1}"


def _panels(
    architecture: Architecture,
    picture: np.ndarray,
    attention: np.ndarray,
    masks: np.ndarray,
    scales: np.ndarray,
    token: int,
) -> list[Panel]:
    patches = slice(architecture.prefix_tokens, None)
    superposed = np.tensordot(scales, masks.astype(np.float64), axes=1)
    panels = [
        Panel("the picture", png_uri(_outlined(architecture, picture, token), PANEL_PIXELS)),
        Panel("attention", png_uri(_heat(architecture, picture, attention[token, patches]), PANEL_PIXELS)),
    ]
    for group, mask in enumerate(masks):
        share = mask[token, patches].mean()
        caption = f"mask {group + 1}: {100 * share:.0f} %"
        tint = TINTS[group % len(TINTS)]
        panels.append(Panel(caption, png_uri(_tinted(architecture, picture, mask[token, patches], tint), PANEL_PIXELS)))
    panels.append(Panel("superposed", png_uri(_heat(architecture, picture, superposed[token, patches]), PANEL_PIXELS)))
    panels.append(Panel("all tokens", png_uri(_colours(superposed), PANEL_PIXELS), "flat"))
    return panels


def _spread(architecture: Architecture, values: np.ndarray) -> np.ndarray:
    """One value a patch (Np,) → one a pixel (H, W)."""
    height, width = architecture.patch_size
    return values.reshape(architecture.grid).repeat(height, axis=0).repeat(width, axis=1)


def _colours(values: np.ndarray) -> np.ndarray:
    """Values → viridis colours uint8 (..., 3), the smallest dark and the largest bright."""
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / (high - low) if high > low else np.zeros_like(values)
    from matplotlib import colormaps

    return (255 * colormaps["viridis"](shares)[..., :3]).round().astype(np.uint8)


def _heat(architecture: Architecture, picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    colours = _colours(_spread(architecture, values.astype(np.float64)))
    return (0.35 * picture + 0.65 * colours).round().astype(np.uint8)


def _tinted(
    architecture: Architecture, picture: np.ndarray, mask: np.ndarray, tint: tuple[int, int, int]
) -> np.ndarray:
    inside = _spread(architecture, mask)[..., None]
    return np.where(inside, 0.55 * picture + 0.45 * np.array(tint), 0.28 * picture).round().astype(np.uint8)


def _outlined(architecture: Architecture, picture: np.ndarray, token: int) -> np.ndarray:
    """Return the picture with a frame around the token's patch, if it is a patch."""
    if token < architecture.prefix_tokens:
        return picture
    factor = max(1, -(-PANEL_PIXELS // max(picture.shape[:2])))
    large = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = (side * factor for side in architecture.patch_size)
    row, column = divmod(token - architecture.prefix_tokens, architecture.grid[1])
    frame = np.zeros(large.shape[:2], dtype=bool)
    frame[row * height : (row + 1) * height, column * width : (column + 1) * width] = True
    edge = 3
    frame[row * height + edge : (row + 1) * height - edge, column * width + edge : (column + 1) * width - edge] = False
    large[frame] = TINTS[2]
    return large
