"""``benchmark``: a row for each engine, in the packed model's favour only where it is measured so."""

import pytest
from random_packed import write_random_packed

from gsb_vit.benchmark import benchmark, default_peers
from gsb_vit.errors import InputError

KEYS = ["engine", "precision", "threads", "batch", "median_ms", "images_per_s", "file_mb", "peak_mb"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model.safetensors"
    write_random_packed(
        path, seed=1, image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=128, num_classes=4
    )
    return path


def check_figures(measurement):
    row = measurement.row()
    assert [key for key in row if key != "problem"] == KEYS
    if measurement.problem is not None:
        # A loaded machine may scatter; then there is a reason and no figure.
        assert measurement.problem.startswith("invalid")
        assert row["median_ms"] is row["images_per_s"] is None
        return
    assert row["median_ms"] > 0
    assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
    assert row["peak_mb"] > 5


def test_the_packed_model_alone(model):
    pytest.importorskip("gsb_vit._native")
    (own,) = benchmark(model, against=[], batch=3, rounds=2, tries=1)
    assert (own.engine, own.precision, own.threads, own.batch) == ("gsb-vit", "1-bit", 1, 3)
    assert own.file_mb == pytest.approx(model.stat().st_size / 1e6)
    check_figures(own)


def test_beside_its_full_precision_twin(model):
    pytest.importorskip("gsb_vit._native")
    pytest.importorskip("timm")
    assert default_peers() == ["torch:fp32"]
    own, twin = benchmark(model, rounds=2, tries=1)
    assert (own.engine, twin.engine, twin.precision) == ("gsb-vit", "torch", "fp32")
    assert twin.file_mb > 5 * own.file_mb
    check_figures(own)
    check_figures(twin)


def test_what_cannot_be_measured_is_told(model, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        benchmark(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="'tensorflow' is unknown"):
        benchmark(model, against="tensorflow")
    with pytest.raises(InputError, match="batch 0"):
        benchmark(model, against=[], batch=0)
    with pytest.raises(InputError, match="tries 0"):
        benchmark(model, against=[], tries=0)
