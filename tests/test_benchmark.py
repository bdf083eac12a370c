"""``benchmark``: a row for each engine, in the packed model's favour only where it is measured so."""

import pytest
from random_packed import write_random_packed

from gsb_vit.benchmark import benchmark, default_peers, pack_untrained, profile
from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.packed import read
from gsb_vit.peers.plot import check_plot, plot
from gsb_vit.peers.timing import Measurement

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


def test_the_profile_covers_every_product(model):
    pytest.importorskip("gsb_vit._native")
    stages = {stage.name: stage for stage in profile(model, batch=2, seconds=0.05)}
    assert sum(stage.share for stage in stages.values()) == pytest.approx(1)
    assert all(stage.us > 0 for stage in stages.values())
    assert all(stages[name].bit_macs_per_ns > 0 for name in ("qkv", "scores", "projection", "fc1", "fc2"))
    assert stages["patch embedding"].byte_macs_per_ns > 0
    with pytest.raises(InputError, match="batch 0"):
        profile(model, batch=0)


def test_an_untrained_architecture_can_be_timed(tmp_path):
    pytest.importorskip("timm")
    path = tmp_path / "tiny.safetensors"
    pack_untrained("gsb_vit_tiny_patch16_224", path)
    architecture = read(path).architecture
    assert (architecture.embed_dim, architecture.depth, architecture.image_size) == (192, 12, (224, 224))
    with pytest.raises(InputError, match="gsb_vit_base_patch16_224"):
        pack_untrained("vit_tiny_patch16_224", path)


def test_rows_become_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        Measurement("gsb-vit", "1-bit", 1, 1, 0.1, median_ms=1.0),
        Measurement("torch", "fp32", 1, 1, 2.0, median_ms=20.0),
        Measurement("openvino", "bf16", 1, 1, 2.0, problem="invalid: noise"),
    ]
    path = tmp_path / "bars.svg"
    check_plot(path)
    plot(rows, path)
    text = path.read_text()
    assert text.lstrip().startswith("<?xml") and len(text) > 1000
    with pytest.raises(InputError, match="no engine has a figure"):
        plot(rows[2:], path)
    with pytest.raises(InputError, match="ending"):
        check_plot(tmp_path / "bars.txt")
    with pytest.raises(InputError, match="no folder"):
        check_plot(tmp_path / "missing" / "bars.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either MODEL"),
        (["m.safetensors", "--arch", "gsb_vit_tiny_patch16_224"], "give either MODEL"),
        (["m.safetensors", "--profile", "--against", "torch"], "--profile goes with"),
        (["m.safetensors", "--isa", "mmx"], "'mmx' is unknown"),
        (["m.safetensors", "--plot", "x.txt"], "ending"),
    ],
)
def test_options_that_do_not_fit_together(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
