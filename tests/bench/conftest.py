"""What the tests of the benchmarks share."""

import pytest


@pytest.fixture
def no_noise(monkeypatch):
    """Every measurement counts as a figure: on a busy machine calls scatter, which is right and no failure."""
    for limit in ("MAX_SPREAD", "MAX_DRIFT", "MAX_IDLE_CPU"):
        monkeypatch.setattr(f"gsb_vit.bench.peers.timing.{limit}", float("inf"))
