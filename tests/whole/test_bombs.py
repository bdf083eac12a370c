"""The bombs of benchmarks/bombs.py: refused in one line, for little memory."""

import importlib.util

import pytest
from paths import ROOT

pytest.importorskip("timm", reason="PyTorch is not installed")
pytest.importorskip("gsb_vit._native", reason="the native extension is not built")

spec = importlib.util.spec_from_file_location("bombs", ROOT / "benchmarks" / "bombs.py")
bombs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bombs)

READ = {name for name in bombs.BOMBS if name.startswith("64 megapixels")}  # as large as they may be, and read


# A process each, and some of them import PyTorch.
@pytest.mark.slow
@pytest.mark.parametrize("name", bombs.BOMBS)
def test_a_bomb_costs_little(name):
    row = bombs.measure(name)
    assert row["peak_mb"] is not None, row["answer"]
    if name in READ:
        assert row["answer"] == "read" and row["peak_mb"] < 600
    else:
        assert row["answer"] != "read" and len(row["answer"].splitlines()) == 1
        assert row["peak_mb"] < 160
