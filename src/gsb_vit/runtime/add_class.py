"""A further class for a packed model from a few pictures, without training: one more row in each head.

The row of a head is r·m/‖m‖ + W̄. m is the mean, over the new pictures, of what the head reads. W̄ is the mean row of
the old classes, r the mean length of their rows without it: so the new row stands as far from the common one as the old
ones do. It is the imprinting of Qi et al. (https://arxiv.org/abs/1712.07136), whose rows all have length 1; the rows
here have lengths that training gave them.

The bias makes the new logit comparable with the old ones. It is set so that on the new pictures the mean of the new
logit equals the mean of the largest old logit. Each picture's new logit is taken with a row made of the other pictures,
since its own row knows it.

That takes pictures from the old classes. With held-out pictures of them, the bias is set otherwise (:func:`refit`), and
temperature and threshold of the decision are fitted again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsb_vit.data.class_names import class_name, class_names
from gsb_vit.data.digests import pack_seen, unpack_seen
from gsb_vit.decision import DEFAULT_SCORE, Decision, calibrate, fit_temperature
from gsb_vit.errors import InputError, shown
from gsb_vit.files import is_utf8
from gsb_vit.metrics import softmax

from .packed_file import PackedModel
from .schema import Architecture

LEAST_PICTURES = 2
METHOD = "mean of features; bias from the largest old logit, one picture left out"
METHOD_HELD_OUT = "mean of features; bias, temperature and threshold from held-out pictures"
_HIGHEST = 127
_LONGEST = 1000  # characters of a name
_ROUNDS, _HALVINGS = 10, 60

Features = NDArray[np.floating]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What a model says of m pictures that it was not trained on, and the new class is not made of.

    ``features`` (m, heads · C), ``logits`` (m, K), ``labels`` (m): 0 … K − 1, and K for the new class.
    """

    features: Features
    logits: Features
    labels: NDArray[np.integer]


def with_class(
    packed: PackedModel,
    name: str,
    features: Features,
    logits: Features,
    digests: Sequence[str] = (),
    held_out: HeldOut | None = None,
) -> PackedModel:
    """Return the model with the class ``name`` behind the others.

    ``features`` (n, heads · C) and ``logits`` (n, K) are what the model says of the class's n ≥ 2 pictures. Old logits
    stay as they are, bit for bit. So does the decision, whose temperature and threshold were fitted on the old classes;
    with ``held_out`` both are fitted again. ``digests`` are those of all these pictures, which the provenance then
    counts among the seen ones.

    Raises:
        InputError: fewer than two pictures, a name that is no text, empty or taken, features that are all zero, and
            ``held_out`` without a picture of an old class.
    """
    name = require_name(packed.class_names, name)
    if len(features) < LEAST_PICTURES:
        raise InputError(
            f"{len(features)} pictures make no class; give at least {LEAST_PICTURES}, better 5 to 20, of {name!r}"
        )
    heads = [_Head(packed, index, part) for index, part in enumerate(_parts(packed, features))]
    everything = np.ones(len(features), bool)
    new = np.mean([head.left_out_logits() for head in heads], axis=0)
    decision = packed.decision
    if held_out is None:
        bias = float(np.mean(np.max(logits, axis=1) - new))
    else:
        pairs = zip(heads, _parts(packed, held_out.features), strict=True)
        others = np.mean([head.logits(part, everything) for head, part in pairs], axis=0)
        labels = np.concatenate([held_out.labels, np.full(len(new), len(packed.class_names))])
        bias, decision = refit(
            np.concatenate([held_out.logits, logits]), np.concatenate([others, new]), labels, decision
        )
    tensors = dict(packed.tensors)
    for index, head in enumerate(heads):
        tensors |= head.tensors(f"heads.{index}.", head.row(everything), bias)
    values = packed.architecture.to_json() | {"num_classes": packed.architecture.num_classes + 1}
    return dataclasses.replace(
        packed,
        architecture=Architecture.from_json(values),
        class_names=(*packed.class_names, name),
        tensors=tensors,
        provenance=_provenance(packed, name, len(features), digests, held_out),
        decision=decision,
    )


def _parts(packed: PackedModel, features: Features) -> list[Features]:
    """What each head reads, of features (n, heads · C)."""
    return np.split(np.asarray(features, dtype=np.float64), len(packed.architecture.heads), axis=1)


def refit(old: Features, new: Features, labels: NDArray[np.integer], decision: Decision) -> tuple[float, Decision]:
    """Return the bias of the new class, and the decision for all classes.

    Given are the old logits (n, K) of pictures, their new logit (n) without a bias, and labels (n), K for the new
    class. Each class counts equally, however many pictures it has. The bias minimizes the cross-entropy of
    softmax(logits / T). There the mean probability of the new class equals its share, 1/(K + 1) where every class has
    pictures. T depends on the bias, so both are fitted in turns. The threshold's score stays; its rate is the default.

    Raises:
        InputError: no picture of an old class.
    """
    counts = np.bincount(labels, minlength=old.shape[1] + 1)
    if not counts[:-1].any():
        raise InputError("the held-out pictures are none of the old classes; give some of each old class")
    weights = 1 / (counts[labels] * np.count_nonzero(counts))
    share = 1 / np.count_nonzero(counts)
    wide, missing = np.asarray(old, dtype=np.float64), np.max(old, axis=1) - new
    temperature = fit_temperature(wide[labels < old.shape[1]], labels[labels < old.shape[1]])
    for _ in range(_ROUNDS):
        low, high = missing.min() - 50 * temperature, missing.max() + 50 * temperature
        for _ in range(_HALVINGS):
            bias = (low + high) / 2
            reached = float(weights @ softmax(np.column_stack([wide, new + bias]) / temperature)[:, -1])
            low, high = (low, bias) if reached > share else (bias, high)
        temperature = fit_temperature(np.column_stack([wide, new + bias]), labels)
    score = decision.unknown.score if decision.unknown else DEFAULT_SCORE
    return float(bias), calibrate(np.column_stack([wide, new + bias]), labels, score=score)


def added_classes(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a model's file says of classes that were added: each with ``class``, its name, and ``pictures``, how many.

    Raises InputError where it says something else.
    """
    found = provenance.get("added", [])
    if isinstance(found, list) and all(isinstance(one, dict) and _is_added(one) for one in found):
        return found
    raise InputError(f"the model's list of added classes is damaged ({shown(found)}); export the model again")


def _is_added(one: Mapping[str, Any]) -> bool:
    return isinstance(one.get("class"), str) and type(one.get("pictures")) is int


def require_name(names: Sequence[str], name: str) -> str:
    """Return the name of a further class as ``class_name`` spells it. Raises InputError where it can be none."""
    if not isinstance(name, str) or not name.strip() or name != name.strip() or not _is_written(name):
        raise InputError(f"{shown(name)} is no name of a class; give text without spaces around it, as in 'rose'")
    if class_name(name) in class_names(names):
        raise InputError(f"the model has a class {name!r} already; give another name")
    return class_name(name)


def _is_written(name: str) -> bool:
    """Whether files hold a name and C takes it: no NUL, no half of a surrogate pair, no novel."""
    return "\0" not in name and is_utf8(name) and len(name) <= _LONGEST


class _Head:
    """A head in float64: what it reads of the new pictures (n, C), shift added, and the rows of its classes."""

    def __init__(self, packed: PackedModel, index: int, read: Features) -> None:
        self.packed, self.index = packed, index
        tensor = {name: packed[f"heads.{index}.{name}"] for name in ("shift", "input_scale", "weight", "scale")}
        self.input_scale = float(tensor["input_scale"][0])
        self.read = read + tensor["shift"]
        rows = tensor["weight"] * (tensor["scale"].astype(np.float64) / self.input_scale)[:, None]
        self.common = rows.mean(axis=0)
        self.length = float(np.linalg.norm(rows - self.common, axis=1).mean())

    def row(self, chosen: NDArray[np.bool_]) -> Features:
        mean = self.read[chosen].mean(axis=0)
        length = float(np.linalg.norm(mean))
        if not length > 0:
            raise InputError("the model's features of these pictures are all zero, which makes no class; give others")
        return self.common + self.length / length * mean

    def logits(self, read: Features, chosen: NDArray[np.bool_]) -> Features:
        """Of other pictures, of which the head reads (m, C), without a bias, by the row of the chosen: (m)."""
        found: Features = (read + self.packed[f"heads.{self.index}.shift"]) @ self.row(chosen)
        return found

    def left_out_logits(self) -> Features:
        """Of each picture, without a bias, by the row of the others: (n)."""
        numbers = np.arange(len(self.read))
        return np.array([self.read[n] @ self.row(numbers != n) for n in numbers])

    def tensors(self, prefix: str, row: Features, bias: float) -> dict[str, NDArray[Any]]:
        """The head's tensors with one more row, its weights in eight bits with a scale of their own."""
        step = max(float(np.abs(row).max()) / _HIGHEST, float(np.finfo(np.float32).tiny))
        new = {
            "weight": np.rint(row / step).astype(np.int8)[None],
            "scale": np.array([step * self.input_scale], dtype=np.float32),
            "bias": np.array([bias], dtype=np.float32),
        }
        return {f"{prefix}{name}": np.concatenate([self.packed[f"{prefix}{name}"], new[name]]) for name in new}


def _provenance(
    packed: PackedModel, name: str, pictures: int, digests: Sequence[str], held_out: HeldOut | None
) -> dict[str, Any]:
    """The provenance with what was added; a model that does not say what it has seen still does not."""
    found = dict(packed.provenance)
    added: dict[str, Any] = {"class": name, "pictures": pictures, "method": METHOD}
    if held_out is not None:
        added |= {"method": METHOD_HELD_OUT, "held_out": len(held_out.labels)}
    found["added"] = [*added_classes(found), added]
    if (seen := unpack_seen(packed.provenance)) is not None:
        found["seen"] = pack_seen({*seen, *digests})
    return found
