"""Classes of far different size: whether training shows each of them equally often, and in which order."""

from __future__ import annotations

import numpy as np

RATIO = 3.0  # pictures of the largest class a picture of the smallest, from which "auto" balances


def resolve(choice: str, labels: np.ndarray, classes: int, *, own: bool) -> str:
    """``sampling`` or ``none``: what ``data.balance`` means for training pictures with these labels (n,).

    ``auto`` samples where the data is the user's ``own`` and the largest class has ``RATIO`` times the pictures of the
    smallest or more.
    """
    if choice != "auto":
        return choice
    return "sampling" if own and imbalance(labels, classes) >= RATIO else "none"


def imbalance(labels: np.ndarray, classes: int) -> float:
    """How many times the pictures of the smallest class the largest one has; infinite where one has none."""
    counts = np.bincount(labels, minlength=classes)
    return float(counts.max() / counts.min()) if counts.min() else float("inf")


def balanced_order(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many places as labels (n,), int64, every class equally often: n / K of each, to within one.

    A small class comes round again and again, each of its pictures equally often to within one. Of a large class other
    pictures are drawn in every epoch.
    """
    present = np.unique(labels)
    quotas = np.full(len(present), len(labels) // len(present))
    quotas[generator.permutation(len(present))[: len(labels) - quotas.sum()]] += 1
    chosen = []
    for label, quota in zip(present, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        rounds = [generator.permutation(members) for _ in range(-(-int(quota) // len(members)))]
        chosen.append(np.concatenate([np.zeros(0, np.int64), *rounds])[:quota])
    return generator.permutation(np.concatenate(chosen))
