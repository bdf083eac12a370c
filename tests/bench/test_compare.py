"""``benchmark``: a row for each engine, in the packed model's favour only where it is measured so."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from random_packed import random_pictures, write_random_packed

from gsb_vit.bench.compare import benchmark, choose_pictures, default_peers
from gsb_vit.bench.densities import measure_densities
from gsb_vit.bench.peers.plot import check_plot, plot
from gsb_vit.bench.peers.timing import Measurement
from gsb_vit.bench.profile import BITS_PER_INSTRUCTION, profile
from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.export.untrained import pack_untrained
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.reference import ReferenceModel

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
    assert list(row) == KEYS
    assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
    assert row["peak_mb"] > 5


def test_the_packed_model_alone(model, no_noise):
    pytest.importorskip("gsb_vit._native")
    (own,) = benchmark(model, against=[], batch=3, rounds=2, tries=1)
    assert (own.engine, own.precision, own.threads, own.batch) == ("gsb-vit", "1-bit", 1, 3)
    assert own.file_mb == pytest.approx(model.stat().st_size / 1e6)
    check_figures(own)


def test_beside_its_full_precision_twin(model, no_noise):
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
    found = profile(model, batch=2, seconds=1e-9)
    stages = {stage.name: stage for stage in found}
    assert sum(stage.share for stage in stages.values()) == pytest.approx(1)
    of_bits = {name for name, stage in stages.items() if stage.bit_macs_per_ns}
    assert of_bits == {"qkv", "scores", "attention x value", "projection", "fc1", "fc2"}
    assert {name for name, stage in stages.items() if stage.byte_macs_per_ns} == {"patch embedding", "heads"}
    with pytest.raises(InputError, match="batch 0"):
        profile(model, batch=0)
    with pytest.raises(InputError, match="'mmx' is unknown"):
        profile(model, isa="mmx")


class Clocked:
    """A classifier whose stages took what a test says: 1 µs of its own clock each, and so many products a call."""

    def __init__(self, classifier, stages):
        self.classifier, self.stages, self.calls = classifier, stages, 0

    def __getattr__(self, name):
        return getattr(self.classifier, name)

    def set_profiling(self, on):
        self.calls = 0

    def logits(self, pictures):
        self.calls += 1
        return self.classifier.logits(pictures)

    def profile(self):
        return [SimpleNamespace(**{key: n if key == "name" else n * self.calls for key, n in s.items()})
                for s in self.stages]  # fmt: skip


def test_the_profile_counts_cycles_and_shares_of_the_ceiling(model, monkeypatch):
    """By hand: a core of 2 GHz that starts two vector additions and 128 byte products a cycle."""
    native = pytest.importorskip("gsb_vit._native")
    stages = [
        {"name": "fc1", "seconds": 3e-6, "bit_macs": 6e5, "byte_macs": 0},
        {"name": "heads", "seconds": 1e-6, "bit_macs": 0, "byte_macs": 64e3},
        {"name": "norms", "seconds": 0, "bit_macs": 0, "byte_macs": 0},
    ]
    monkeypatch.setattr("gsb_vit.runtime.classifier.load", lambda *given, **more: Clocked(load(*given, **more), stages))
    monkeypatch.setattr(native, "core_hz", lambda: 2e9)
    for backend in native.backends():
        known = backend in BITS_PER_INSTRUCTION
        monkeypatch.setattr(native, "core_speed", lambda _, known=known: (2e9, 2.0, 128.0) if known else (2e9, 0, 0))
        monkeypatch.setenv("GSB_VIT_BACKEND", backend)
        found = profile(model, batch=2, seconds=1e-9)
        assert (found.backend, found.ghz) == (backend, 2.0)
        assert found.bit_ceiling == (2 * BITS_PER_INSTRUCTION[backend] if known else None)
        assert found.byte_ceiling == (128 if known else None)
        fc1, heads, norms = found
        assert (fc1.us, fc1.cycles, fc1.share) == pytest.approx((1.5, 3000, 0.75))  # a picture: half a call
        assert (heads.us, heads.cycles, heads.share) == pytest.approx((0.5, 1000, 0.25))
        assert (fc1.bit_macs_per_ns, fc1.byte_macs_per_ns) == pytest.approx((200, 0))
        assert (heads.bit_macs_per_ns, heads.byte_macs_per_ns) == pytest.approx((0, 64))
        assert fc1.of_ceiling == (pytest.approx(100 / found.bit_ceiling) if known else None)
        assert heads.of_ceiling == (pytest.approx(32 / 128) if known else None)
        assert (norms.us, norms.share, norms.bit_macs_per_ns, norms.of_ceiling) == (0, 0, 0, None)


def test_the_profile_is_printed(model, capsys):
    pytest.importorskip("gsb_vit._native")
    with pytest.raises(SystemExit) as stopped:
        main(["bench", str(model), "--profile", "--isa", "sse4"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "Stages of the portable engine, 1 thread(s), batch 1, at" in text
    for word in ("cycles", "of ceiling", "unknown", "fc2", "attention 2", "value 1", "fullest block"):
        assert word in text


def test_the_core_is_measured():
    """For each backend whose instructions are known; what is counted for them: tests/native/test_core_speed.py."""
    native = pytest.importorskip("gsb_vit._native")
    assert native.core_hz() > 0
    for backend in native.backends():
        hz, adds, macs = native.core_speed(backend)
        known = backend in BITS_PER_INSTRUCTION
        assert hz > 0 and (adds > 0, macs > 0) == (known, known)
    with pytest.raises(native.NativeError, match=r"'avx9' cannot run on this machine; there is .*portable"):
        native.core_speed("avx9")


def test_densities_are_the_shares_of_group_members(model):
    packed = read(model)
    pictures = random_pictures(packed.architecture, 3, seed=5)
    found = measure_densities(packed, pictures, most=2)  # the first and the last
    traces = [ReferenceModel(packed).trace(picture) for picture in pictures[[0, 2]]]
    assert found.pictures == 2
    for kind, mean, blocks in (
        ("attention", found.attention, found.attention_blocks),
        ("value", found.value, found.value_blocks),
    ):
        masks = np.array([[trace[f"blocks.{b}.attn.{kind}_masks"] for b in range(2)] for trace in traces])
        for group in (1, 2):
            shares = [masks[:, block, group].mean() for block in range(2)]
            assert 0 < shares[0] < 0.5
            assert [row[group - 1] for row in blocks] == pytest.approx(shares)
            assert mean[group - 1] == pytest.approx(np.mean(shares))
    text = found.to_json()
    assert text["attention_largest_block"] == [max(row[g] for row in found.attention_blocks) for g in (0, 1)]


def test_one_group_has_no_densities(tmp_path):
    packed = write_random_packed(
        tmp_path / "m.safetensors", seed=1, image_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=1,
        mlp_hidden=48, num_classes=4, attention_thresholds=(), value_thresholds=(),
    )  # fmt: skip
    found = measure_densities(packed, random_pictures(packed.architecture, 1)).to_json()
    assert found["attention"] == found["value"] == found["value_largest_block"] == []


def test_pictures_given_are_run_and_tell_their_densities(model):
    pytest.importorskip("gsb_vit._native")
    packed = read(model)
    pictures = random_pictures(packed.architecture, 3, seed=5)
    (own,) = benchmark(model, against=[], pictures=pictures, rounds=2, tries=1)
    assert own.densities == own.row()["densities"] == measure_densities(packed, pictures).to_json()
    with pytest.raises(InputError, match=r"\(1, 16, 32, 3\)"):
        profile(model, pictures=pictures[:, :16], seconds=0.01)


def test_held_out_pictures_of_a_data_set(model, tmp_path, capsys):
    pytest.importorskip("gsb_vit._native")
    from PIL import Image

    for name in "abcd":
        (tmp_path / "test" / name).mkdir(parents=True)
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 36), (number, 0, 0)).save(tmp_path / "test" / name / f"{number}.png")
        Image.new("RGB", (40, 36), (200, 0, 0)).save(tmp_path / "train" / name / "0.png")
    pictures = choose_pictures(read(model), str(tmp_path))
    assert pictures.shape == (12, 32, 32, 3)
    assert sorted(pictures[:, 0, 0, 0]) == [0] * 4 + [1] * 4 + [2] * 4
    assert choose_pictures(read(model), str(tmp_path), most=5).tobytes() == pictures[:5].tobytes()
    with pytest.raises(SystemExit) as stopped:
        main(["bench", str(model), "--profile", "--data", str(tmp_path), "--batch", "2", "--json"])
    assert stopped.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["densities"]["pictures"] == 8
    assert {"us", "cycles", "share", "of_ceiling"} < set(found["stages"][0])


def test_a_backend_that_is_not_there_is_refused(model, monkeypatch):
    native = pytest.importorskip("gsb_vit._native")
    from gsb_vit.bench.peers.isa import ISAS

    monkeypatch.setenv("GSB_VIT_BACKEND", "avx9")
    with pytest.raises(InputError, match=r"'avx9' cannot run on this machine; there is .*portable"):
        benchmark(model, against=[])
    monkeypatch.delenv("GSB_VIT_BACKEND")
    missing = next(name for name in ("neon", "avx512") if name not in native.backends())
    monkeypatch.setitem(ISAS["avx2"], "GSB_VIT_BACKEND", missing)
    for refused in (lambda: benchmark(model, against=[], isa="avx2"), lambda: profile(model, isa="avx2")):
        with pytest.raises(InputError, match=f"'{missing}' cannot run on this machine; there is .*portable"):
            refused()


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
        (["m.safetensors", "--profile", "--plot", "x.png"], "--profile goes with"),
        (["m.safetensors", "--isa", "mmx"], "instruction set 'mmx' is unknown: use avx2, sse4"),
        (["m.safetensors", "--plot", "x.txt"], "ending"),
    ],
)
def test_options_that_do_not_fit_together(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
