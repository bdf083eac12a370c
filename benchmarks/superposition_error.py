"""What a superposition leaves of the attention matrix A, the Value V and their product, at different thresholds.

    python benchmarks/superposition_error.py RUN/stage1 --data SPEC [--thresholds none 0.7,0.9 0.2,0.5] [--pictures 48]

The model's attention must be in full precision (a stage 1). Its training pictures go through it; in every block A and V
become superpositions with extremes of each picture and the best levels: those of least squares, A's base plane at the
best of some limits. Printed are relative errors |A - A_b|/|A|, |V - V_b|/|V| and |AV - A_b V_b|/|AV| over all entries,
the means over blocks, and how many entries of a row of A the groups beyond the base hold. Needs gsb-vit[train].
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsb_vit.data.stored_split import run_data
from gsb_vit.errors import InputError
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.models.trained import load_model
from gsb_vit.nn.attention import GSBAttention
from gsb_vit.nn.quantize import sign
from gsb_vit.nn.superpose import attention_groups, value_groups
from gsb_vit.nn.superposition_quantizers import AttentionSuperposition, ValueSuperposition
from gsb_vit.train.batches import EvaluationPictures
from gsb_vit.train.evaluate import run_data_options

DEFAULT = ["none", "0.7,0.9", "0.5,0.8", "0.3,0.6", "0.2,0.5", "0.2,0.4,0.7"]
BASE_LIMITS = (0.75, 1.0, 1.25, 1.5, 2.0, 3.0)  # of the mean of |A|


def error(x: Tensor, approximation: Tensor) -> float:
    """|x - approximation| / |x|."""
    return float((x - approximation).norm() / x.norm())


def least_squares(x: Tensor, planes: list[Tensor]) -> Tensor:
    """The best Σ level·plane."""
    columns = torch.stack([plane.double().flatten() for plane in planes], 1)
    levels = torch.linalg.lstsq(columns, x.double().flatten().unsqueeze(1)).solution
    return (columns @ levels).view_as(x).to(x.dtype)


def superposed_attention(A: Tensor, thresholds: tuple[float, ...]) -> tuple[Tensor, list[float]]:
    """The best A_b, and how many entries of a row each group beyond the base holds."""
    quantizer = AttentionSuperposition(thresholds)
    groups = attention_groups(A, quantizer.limits_of(quantizer.extremes(A))[:, 0])
    mean = A.abs().mean()
    found = [least_squares(A, [limit * mean < A, *groups]) for limit in BASE_LIMITS]
    return min(found, key=lambda A_b: error(A, A_b)), [float(group.sum(-1, dtype=A.dtype).mean()) for group in groups]


def superposed_value(V: Tensor, thresholds: tuple[float, ...]) -> Tensor:
    """The best V_b."""
    quantizer = ValueSuperposition(thresholds)
    signs = sign(V)
    groups = value_groups(V, quantizer.limits_of(quantizer.extremes(V)))
    return least_squares(V, [signs, *(signs * group for group in groups)])


@torch.no_grad()
def matrices(model: torch.nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A and V of every block. Raises InputError for a model whose attention is quantized or another."""
    found: list[tuple[Tensor, Tensor]] = []

    def see(attention: GSBAttention, inputs: tuple[Tensor, ...]) -> None:
        q, k, v = attention.project(inputs[0])
        found.append((attention.attention_matrix(q, k), v))

    attentions = [block.attn for block in model.blocks]
    if not all(isinstance(part, GSBAttention) and part.attention_quantizer is None for part in attentions):
        raise InputError("this model's attention is not GSBAttention in full precision: give stage 1 of a run")
    hooks = [part.register_forward_pre_hook(see) for part in attentions]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--thresholds", nargs="+", default=DEFAULT)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    trained = load_model(options.run)
    pictures = EvaluationPictures(
        run_data(options.run, options.data, run_data_options(options.run)).train, trained.preprocessing
    )
    chosen = np.linspace(0, len(pictures) - 1, min(options.pictures, len(pictures))).astype(np.int64)
    blocks = matrices(trained.model, normalize(pictures.batch(chosen), trained.preprocessing))
    rows = []
    for text in options.thresholds:
        thresholds = () if text == "none" else tuple(float(ratio) for ratio in text.split(","))
        errors, members = [], []
        for A, V in blocks:
            (A_b, held), V_b = superposed_attention(A, thresholds), superposed_value(V, thresholds)
            errors.append([error(A, A_b), error(V, V_b), error(A @ V, A_b @ V_b)])
            members.append(held)
        attention, value, product = np.mean(errors, 0).round(3).tolist()
        held = np.mean(members, 0).round(2).tolist()
        rows.append({"thresholds": text, "attention": attention, "value": value, "product": product, "members": held})
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| thresholds | A | V | A·V | members a row |\n|---|---|---|---|---|")
    for row in rows:
        held = ", ".join(map(str, row["members"]))
        print(f"| {row['thresholds']} | {row['attention']} | {row['value']} | {row['product']} | {held} |")


if __name__ == "__main__":
    main()
