"""The scripts that make the figures of docs/performance.md run, and memory keeps within the limits promised.

No time is asserted here: a machine that runs tests is busy. What would make times pointless is counted instead: the
instructions of a start (tests/native/test_cross.py) and threads that do not sleep (tests/runtime/test_classifier.py).
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from needs import needs, skip_without
from paths import ROOT
from PIL import Image
from processes import HANG_SECONDS
from random_packed import write_random_packed

from gsb_vit.data.folder import can_open
from gsb_vit.decision import area_under_roc
from gsb_vit.metrics import wilson_interval

pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
linux = needs("memory", "/proc", Path("/proc/self/maps").exists())


def script(name, *arguments):
    """Run a script and return what it printed, JSON."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "benchmarks" / name), *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def imported(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def deit_small(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model.safetensors"
    write_random_packed(
        path, seed=1, image_size=224, patch_size=16, embed_dim=384, depth=12, num_heads=6, mlp_hidden=1536,
        num_classes=1000,
    )  # fmt: skip
    return path


def test_jpegs_are_compared_with_pillow(tmp_path):
    if shutil.which("cc") is None:
        skip_without("decoders of gsb-vit-classify", "cc")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(tmp_path / f"{number}.jpg")
    row = script("jpeg.py", tmp_path, "--count", 2)
    assert row == {"photos": 2, "equal_pixels": 2, "equal_logits": 2, "largest_pixel": 0, "largest_logit": 0.0}


def test_resizing_is_compared_with_pillow():
    from gsb_vit import _native

    rows = script("resize.py", "--rounds", "1")
    assert len(rows) == 8
    for row in rows:
        assert row.keys() == {"from", "to", "pillow_ms", *_native.backends()}
        assert all(row[name] > 0 for name in ("pillow_ms", *_native.backends()))


@linux
def test_start_and_memory(deit_small):
    found = script("startup.py", deit_small, "--runs", "3", "--threads", "2")
    assert 10 < found["bare_mb"] < 200
    assert 4 < found["above_bare_mb"] <= 60
    assert {"load_s", "first_prediction_s"} < found.keys()


@linux
@pytest.mark.parametrize("batch", [1, 8])
def test_memory_does_not_grow_with_calls(deit_small, batch):
    code = """
import sys, numpy, gsb_vit
model = gsb_vit.load(sys.argv[1], threads=2)
pictures = numpy.zeros((int(sys.argv[2]), 224, 224, 3), numpy.uint8)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
for _ in range(3):
    model.logits(pictures)
before = resident()
for _ in range(40):
    model.logits(pictures)
print(resident() - before)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code, deit_small, str(batch)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_000_000


@needs("benchmarks/threads.py", "two cores", hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1)
def test_threads_are_compared_in_seven_settings(deit_small):
    """That threads sleep and share the work: tests/runtime/test_classifier.py, native/tests/selftest_threads.cpp."""
    rows = script("threads.py", deit_small, "--seconds", "0.05")
    assert [(row["threads"], row["batch"], row["cores"], row["neighbour"]) for row in rows] == [
        (1, 1, 1, False), (2, 1, 2, False), (1, 8, 1, False), (2, 8, 2, False),
        (1, 1, 2, True), (2, 1, 2, True), (2, 8, 2, True),
    ]  # fmt: skip
    figures = {"median_ms", "p90_ms", "images_per_s", "busiest_thread", "idle_cpu"}
    assert all(row.keys() == {"threads", "batch", "cores", "neighbour", *figures} for row in rows)


@pytest.fixture(scope="module")
def cost():
    pytest.importorskip("timm")
    return imported("cost")


def test_cost_packs_the_densities_it_names(cost, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "DEPTH", 1)
    monkeypatch.setattr(cost, "ROUNDS", 2)
    monkeypatch.setattr(cost, "TURN_SECONDS", 0.001)
    points = [
        cost.Point("Value density", density, image_size=96, width=96, heads=3, value_density=density)
        for density in (0.01, 0.1)
    ]
    rows = cost.measure(points, tmp_path)
    for row, density in zip(rows, (0.01, 0.1), strict=True):
        assert row["ms"] > 0 and row["tokens"] == 38
        assert row["value_found"][0] == pytest.approx(density, rel=0.3)
        assert row["attention_found"][0] == pytest.approx(0.01, rel=0.5)
        assert row["value_found"][1] == pytest.approx(density / 4, rel=0.5)
    assert cost.table(rows).count("\n") == 3
    pytest.importorskip("matplotlib")
    cost.plot(rows, tmp_path / "cost.svg")
    assert len((tmp_path / "cost.svg").read_text()) > 1000


def test_every_point_of_cost_is_a_model(cost):
    points = cost.points()
    assert all(point.width % point.heads == 0 for point in points)
    assert len({point.file_name for point in points}) == len(points)
    sizes = [point.x for point in points if point.series == "tokens"]
    assert (min(sizes), max(sizes)) == (32, 384)
    assert {32, 48, 64, 80} <= {point.width // point.heads for point in points if point.series == "heads"}
    assert any(point.width % 64 for point in points if point.series == "width")
    thresholds = cost.quantiles(np.linspace(0, 1, 101), 0.2, 3)
    assert thresholds == pytest.approx((0.8, 0.95))


# PyTorch converts a twin for each width that is tried.
@pytest.mark.slow
def test_twins_of_equal_bytes_fit(tmp_path):
    pytest.importorskip("timm")
    write_random_packed(
        tmp_path / "m.safetensors", seed=1, image_size=64, patch_size=16, embed_dim=256, depth=2, num_heads=4,
        mlp_hidden=1024, num_classes=10,
    )  # fmt: skip
    rows = script(
        "equal_bytes.py", tmp_path / "m.safetensors", "--peers", "torch:fp32", "--rounds", "2", "--tries", "1"
    )
    assert [row["engine"] for row in rows] == ["gsb-vit", "torch"]
    assert 0.5 * rows[0]["file_mb"] < rows[1]["file_mb"] <= rows[0]["file_mb"]
    assert rows[1]["width"] < rows[0]["width"] and rows[1]["width"] % 16 == 0


def test_the_error_of_a_superposition():
    pytest.importorskip("accelerate")
    from random_trained import random_trained

    from gsb_vit.errors import InputError
    from gsb_vit.models.pixel_inputs import normalize
    from gsb_vit.quantization import Quantization

    bench = imported("superposition_error")
    model, preprocessing, pictures = random_trained(switches=Quantization.stage1().to_dict())
    blocks = bench.matrices(model, normalize(pictures[:4], preprocessing))
    assert len(blocks) == 2
    A, V = blocks[0]
    seen = []
    model.blocks[0].attn.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(normalize(pictures[:4], preprocessing))
    assert bench.error((A @ V).transpose(1, 2).flatten(2), seen[0]) < 1e-5
    errors = []
    for thresholds in ((), (0.5,), (0.5, 0.8)):
        A_b, members = bench.superposed_attention(A, thresholds)
        V_b = bench.superposed_value(V, thresholds)
        assert all(len(plane.unique()) <= 2 ** (1 + len(thresholds)) for plane in (A_b, V_b.abs()))
        assert members == sorted(members, reverse=True) and len(members) == len(thresholds)
        assert bench.error(V, bench.superposed_value(V_b, thresholds)) <= bench.error(V, V_b) + 1e-6
        errors.append((bench.error(A, A_b), bench.error(V, V_b)))
    assert all(one > two > three > 0 for one, two, three in zip(*errors, strict=True)), errors
    binary, *_ = random_trained()
    with pytest.raises(InputError, match="stage 1"):
        bench.matrices(binary, normalize(pictures[:4], preprocessing))


@pytest.fixture(scope="module")
def peers_data(tmp_path_factory):
    """The folder of docs/peers.md, made of smooth random pictures."""
    if not can_open(".avif"):
        skip_without("the folder of the peers", "a Pillow with AVIF")
    folder = imported("peers_folder")
    root, out = tmp_path_factory.mktemp("flowers"), tmp_path_factory.mktemp("peers") / "data"
    labels = np.array([*np.repeat(list(folder.CLASSES), 24), *[1] * 5])
    for number in range(1, len(labels) + 1):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 64), Image.Resampling.BICUBIC).save(root / f"image_{number:05}.jpg")
    folder.build(root, labels, out, train=16)
    return out


def test_the_folder_of_the_peers_has_one_thing_wrong_in_each_case(peers_data):
    from gsb_vit.data.splits import DataRecipe, read_raw
    from gsb_vit.data.stored_split import draw_split
    from gsb_vit.errors import InputError

    def said(case, **ways):
        spec = str(peers_data / case)
        try:
            return "\n".join(draw_split(spec, read_raw(spec), DataRecipe(), **ways).lines)
        except InputError as error:
            return f"refused: {error}"

    whole = read_raw(str(peers_data / "flowers"))
    assert np.bincount(whole.train.labels).tolist() == [16] * 6 and np.bincount(whole.test.labels).tolist() == [8] * 6
    assert len(list((peers_data / "strangers").iterdir())) == 5
    assert "2 of 108 pictures cannot be used" in said("cases/corrupt")
    assert "2 undecodable pictures left out" in said("cases/corrupt", skip_bad=True)
    told = said("cases/copies")
    assert "left out of the test, copies of pictures for training or validation: 1, as" in told
    assert "flatter the model: 1 of 37" in told and "labels that contradict: copies in several classes, once" in told
    assert "unequal classes" in said("cases/imbalanced")
    assert "6 classes: passion_flower 18, petunia 18" in said("cases/nested")
    assert "refused" in said("cases/split") and "trian/" in said("cases/split")
    assert "refused" in said("cases/class") and "'wallflour'" in said("cases/class")
    suffixes = {path.suffix for path in (peers_data / "cases" / "phone").rglob("*.*")}
    assert {".jpg", ".avif"} <= suffixes <= {".jpg", ".avif", ".heic"}


def test_a_peer_is_judged_on_the_held_out_pictures(peers_data):
    peers = imported("peers")
    names = sorted(path.name for path in (peers_data / "flowers" / "test").iterdir())
    roses = np.eye(6)[names.index("rose")]
    made = peers.Made(names, lambda paths: np.tile(roses, (len(paths), 1)), [])
    found = peers.judge(made, peers_data / "flowers" / "test", peers_data / "strangers")
    assert found.pop("interval") == pytest.approx(wilson_interval(8, 48))
    assert found == {"judged": 48, "top1": 8 / 48, "strangers": 5, "strangers_above_0.9": 1.0}
    for hits, total in ((0, 0), (0, 7), (7, 7), (800, 966)):
        assert peers.interval(hits, total) == pytest.approx(wilson_interval(hits, total), abs=1e-12)


def test_the_processor_time_of_a_peer_includes_what_it_started():
    peers = imported("peers")
    before = peers.cpu_minutes()
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", busy], check=True, timeout=HANG_SECONDS)
    assert peers.cpu_minutes() - before > 0.2 / 60


def test_a_peer_that_is_not_installed_is_one_line(tmp_path):
    missing = next((n for n in ("ultralytics", "fastai", "autogluon") if importlib.util.find_spec(n) is None), None)
    if missing is None:
        skip_without("a missing peer", "fewer peers")
    command = [sys.executable, ROOT / "benchmarks" / "peers.py", "--peer", missing, "--data", tmp_path, "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=HANG_SECONDS)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and not done.stdout
    assert " is not installed in " in done.stderr and "pip install" in done.stderr
    assert not list(tmp_path.iterdir())


def clusters(seed, centres, count=40, width=0.3):
    """Features around centres, and logits that grow toward each: features (n, D), logits (n, K), labels (n)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(centres)), count)
    features = centres[labels] + width * rng.normal(size=(len(labels), centres.shape[1]))
    return features, features @ CENTRES.T / 4, labels


CENTRES = np.random.default_rng(11).normal(size=(4, 80)) * 2


def test_every_score_ranks_known_pictures_above_strangers():
    scores = imported("unknown_scores").fitted(*clusters(0, CENTRES), 1.0)
    known = clusters(1, CENTRES)[:2]
    strangers = clusters(2, np.random.default_rng(12).normal(size=(4, 80)))[:2]
    for name, score in scores.items():
        assert area_under_roc(score(*known), score(*strangers)) > 0.9, name
    assert len(scores) == 14


def test_distances_are_those_of_their_formulas():
    module = imported("unknown_scores")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 40)
    features = CENTRES[labels, :6] + rng.normal(size=(160, 6))
    logits = features @ CENTRES[:, :6].T
    scores = module.fitted(features, logits, labels, 1.0)
    means = np.stack([features[labels == k].mean(0) for k in range(4)])
    within = features - means[labels]
    covariance = within.T @ within / len(within)
    shrunk = covariance / 2 + np.eye(6) * np.trace(covariance) / 12
    one = np.arange(6.0)
    gaps = one - means
    wanted = {
        "euclidean": -(gaps**2).sum(1).min(),
        "diagonal": -(gaps**2 / np.diag(covariance)).sum(1).min(),
        "mahalanobis": -min(gap @ np.linalg.solve(shrunk, gap) for gap in gaps),
        "cosine": max(one @ mean / np.linalg.norm(one) / np.linalg.norm(mean) for mean in means),
    }
    for name, value in wanted.items():
        assert scores[name](one[None], logits[:1])[0] == pytest.approx(value, rel=1e-6), name


def test_strangers_are_told_by_every_score():
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    found = script("strangers.py", "digits", "--data", "digits", "--strangers", "digits", "--classes", "most-test:2")
    assert found["seen"] > 100 and found["known"] > 100
    scores = [name for name in found if name.endswith("_auroc")]
    assert len(scores) == 14 and "euclidean_auroc" in scores
    assert all(0 <= found[name] <= 1 for name in scores)


def test_pictures_put_aside_are_of_every_class_and_no_other_figure():
    aside, kept = imported("add_class").put_aside(labels := np.repeat([2, 0, 1], [5, 9, 3]), 3)
    assert sorted([*aside, *kept]) == list(range(17)) and list(np.bincount(labels[aside])) == [3, 3, 3]
    assert len(imported("add_class").put_aside(labels, 0)[0]) == 0
