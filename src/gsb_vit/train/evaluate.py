"""Logits and metrics of a model on pictures, as the device would see them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional

from gsb_vit.data.held_out import BATCH, judged_pictures, require_same_classes
from gsb_vit.data.splits import DataRecipe
from gsb_vit.decision import Decision, evaluation
from gsb_vit.errors import InputError
from gsb_vit.models.binarize import set_pixel_scaling
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.models.trained import load_model

from .batches import EvaluationPictures
from .recipe_io import load_recipe


def model_logits(model: nn.Module, pictures: EvaluationPictures, accelerator: Accelerator | None = None) -> np.ndarray:
    """Logits float32 (n, K) of a model in evaluation mode, full precision; processes share the work and all get all."""
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = next(model.parameters()).device
    training = model.training
    set_pixel_scaling(model, pictures.preprocessing)
    model.eval()
    parts: list[tuple[int, np.ndarray]] = []
    # Compiled once more for evaluation and for the last batch, a model would take longer than all the pictures do.
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        for number, start in enumerate(range(0, len(pictures), BATCH)):
            if number % world == rank:
                indices = np.arange(start, min(start + BATCH, len(pictures)))
                images = normalize(pictures.batch(indices), pictures.preprocessing).to(device)
                parts.append((number, model(images).float().cpu().numpy()))
    model.train(training)
    if world > 1:
        parts = gather_object(parts)
    return np.concatenate([logits for _, logits in sorted(parts, key=lambda part: part[0])])


def validation_score(logits: np.ndarray, labels: Tensor) -> tuple[float, float]:
    """Top-1 accuracy and mean cross-entropy."""
    values = torch.from_numpy(logits)
    top1 = (values.argmax(1) == labels).double().mean()
    return float(top1), float(functional.cross_entropy(values.double(), labels))


def evaluate_run(
    path_or_run: str | Path,
    data_spec: str,
    *,
    memory_limit_mb: int = 4096,
    everything: bool = False,
    skip_bad: bool = False,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return :func:`gsb_vit.decision.evaluation` of a trained model on pictures that it has not seen in training.

    ``n_given``, ``n_seen`` and ``n_left_out`` are as for a packed model. A model of before files kept digests of their
    pictures is judged on the test split that its recipe draws.
    Raises InputError where model or data cannot be read, their classes differ, all pictures are seen, or some do not
    decode.
    """
    trained = load_model(path_or_run)
    split = dataclasses.asdict(run_data_options(Path(path_or_run)))
    provenance = {**trained.info.provenance, "split": split}
    judged = judged_pictures(data_spec, provenance, trained.class_names, everything=everything, skip_bad=skip_bad)
    require_same_classes(trained.class_names, judged.class_names, data_spec)
    if say is not None:
        for line in judged.lines:
            say(line)
    pictures = EvaluationPictures(judged.pictures, trained.preprocessing, memory_limit_mb)
    decision = run_decision(Path(path_or_run)) or Decision()
    found = evaluation(model_logits(trained.model, pictures), judged.pictures.labels, judged.class_names, decision)
    return {**found, "n_given": judged.given, "n_seen": judged.seen, "n_left_out": len(judged.left_out)}


def run_decision(path: Path) -> Decision | None:
    """What the finished run in a folder fitted; None for a single model file, and for older runs."""
    summary = path / "summary.json"
    if not summary.is_file():
        return None
    try:
        values = json.loads(summary.read_text(encoding="utf-8")).get("decision")
        return None if values is None else Decision.from_json(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{summary} is damaged ({error}); train --resume writes it again") from error


def run_data_options(path: Path) -> DataRecipe:
    """Data options of the run that a path lies in; the defaults where it lies in none."""
    for folder in (path, *list(path.parents)[:2]):
        if (folder / "recipe.toml").is_file():
            return load_recipe(folder / "recipe.toml").data
    return DataRecipe()
