"""How full the upper groups of a packed model are on given pictures: what decides the time of attention × Value."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.runtime.packed_file import PackedModel
from gsb_vit.runtime.reference import ReferenceModel

PICTURES = 8


@dataclass(frozen=True)
class Densities:
    """Shares of entries in the upper groups, over ``pictures`` pictures.

    ``attention[g]`` is the share of all h·N·N entries of the attention matrix in group g + 1, ``value[g]`` that of all
    h·N·d entries of the Value, the mean over blocks and pictures; ``attention_blocks`` and ``value_blocks`` (depth,
    groups − 1) are the means of each block. A model with one group has empty tuples.
    """

    pictures: int
    attention: tuple[float, ...]
    value: tuple[float, ...]
    attention_blocks: tuple[tuple[float, ...], ...]
    value_blocks: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the means and the largest block's share of each group."""
        return {
            "pictures": self.pictures,
            "attention": list(self.attention),
            "value": list(self.value),
            "attention_largest_block": _largest(self.attention_blocks),
            "value_largest_block": _largest(self.value_blocks),
        }


def measure_densities(model: PackedModel, pictures: NDArray[np.uint8], most: int = PICTURES) -> Densities:
    """Run the NumPy reference on up to ``most`` of the pictures (B, H, W, 3), spread evenly, and count group members.

    The reference makes the same bits as the native engine, so these are the densities that the engine runs at.

    Raises:
        InputError: for pictures of another shape or type.
    """
    reference = ReferenceModel(model)
    chosen = pictures[np.linspace(0, len(pictures) - 1, min(most, len(pictures))).astype(int)]
    attention, value = [], []
    for picture in chosen:
        trace = reference.trace(picture)
        names = [f"blocks.{index}.attn" for index in range(model.architecture.depth)]
        attention.append([trace[f"{name}.attention_masks"][1:].mean(axis=(1, 2, 3)) for name in names])
        value.append([trace[f"{name}.value_masks"][1:].mean(axis=(1, 2, 3)) for name in names])
    # (pictures, depth, groups − 1) → (depth, groups − 1)
    blocks = [np.array(found).reshape(len(chosen), len(names), -1).mean(axis=0) for found in (attention, value)]
    means = [tuple(found.mean(axis=0).tolist()) for found in blocks]
    by_block = [tuple(tuple(row) for row in found.tolist()) for found in blocks]
    return Densities(len(chosen), means[0], means[1], by_block[0], by_block[1])


def _largest(blocks: tuple[tuple[float, ...], ...]) -> list[float]:
    return [max(group) for group in zip(*blocks, strict=True)]
