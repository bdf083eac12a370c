"""Seeds for every generator in use, so that an epoch's randomness depends on nothing that happened before it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*parts: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators (all devices) from the given whole numbers."""
    state = np.random.SeedSequence(parts).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed((int(state[2]) << 32) + int(state[3]))


@contextmanager
def seeded_generators(parts: Sequence[int]) -> Iterator[None]:
    """Seed the CPU generators inside the block and put back their state after it."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        seed_everything(*parts)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
