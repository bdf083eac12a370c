"""The tour from training to the report, cut short, on the reference engine."""

import io
from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("accelerate")

from gsb_vit.errors import InputError
from gsb_vit.quickstart import quickstart
from gsb_vit.runtime.packed_file import read

SHORT = [f"{stage}.epochs=1" for stage in ("teacher", "stage1", "stage2")]


# Trains three stages, and checks and reports in NumPy.
@pytest.mark.slow
def test_the_tour_packs_predicts_and_reports(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    settings = [*SHORT, "model.depth=1", "data.shots=20", "threads=1"]
    summary = quickstart(tmp_path / "tour", overrides=settings, engine="reference", console=console)
    assert list(summary.stages) == ["teacher", "stage1", "stage2"]
    assert read(tmp_path / "tour" / "model.safetensors").class_names == tuple("0123456789")
    page = (tmp_path / "tour" / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "data:image/png" in page
    text = " ".join(console.file.getvalue().split())  # lines fold where the path is long
    assert "same answer as the trained model" in text and "a held-out" in text and "report.html" in text
    with pytest.raises(InputError, match="not empty"):
        quickstart(tmp_path / "tour", overrides=settings, engine="reference", console=console)
