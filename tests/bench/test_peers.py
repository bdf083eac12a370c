"""The benchmark's peers: each says what the float twin says, on its own cores, and noise is no figure."""

import json
import os
import platform
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from needs import needs, skip_without
from processes import threads_of, wait_for_sleep
from random_packed import random_packed

from gsb_vit.bench.peers import engines, timing
from gsb_vit.bench.peers.against import measure_against
from gsb_vit.bench.peers.engines import PEERS, Engine, choose, precisions_of
from gsb_vit.bench.peers.isa import ISAS, environment, hold_onnxruntime
from gsb_vit.bench.peers.prepare import ERROR_LIMITS, prepare
from gsb_vit.bench.peers.session import batches
from gsb_vit.bench.peers.timing import measure, noise, scatter, similarity
from gsb_vit.bench.peers.twin import Twin
from gsb_vit.bench.peers.worker import Setting, Worker, WorkerError
from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.errors import InputError
from gsb_vit.runtime.packed_file import write

TWIN = Twin((32, 24), (8, 8), 64, 2, 2, 256, 2, 2, 7)
PAIRS = [(engine, precision) for engine in PEERS for precision in precisions_of(engine)]
HAS_AVX2 = "avx2" in (Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else [])
linux_x86 = needs(
    "engines held to an instruction set",
    "an x86-64 processor with AVX2",
    sys.platform == "linux" and platform.machine() == "x86_64" and HAS_AVX2,
)


def installed(engine):
    return all(find_spec(package) for package in PEERS[engine][1])


def need(engine):
    if not installed(engine):
        skip_without("peers", *[package for package in PEERS[engine][1] if not find_spec(package)])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    if not installed("torch"):
        skip_without("peers", "torch", "timm")
    pairs = [pair for pair in PAIRS if installed(pair[0])]
    return prepare(TWIN, pairs, tmp_path_factory.mktemp("peers"))


def engine_of(prepared, pair):
    return next(engine for engine in prepared.engines if (engine.name, engine.precision) == pair)


def test_twin_is_timms_model_on_normalised_pictures():
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    from gsb_vit.bench.peers.twin import build

    torch.manual_seed(0)
    reference = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=(32, 24), patch_size=8, embed_dim=64, depth=2, num_heads=2,
        num_classes=7,
    ).eval()  # fmt: skip
    pictures = torch.from_numpy(smooth_pictures(3, (32, 24)))
    mean, std = torch.tensor(TWIN.mean), torch.tensor(TWIN.std)
    with torch.inference_mode():
        expected = reference(((pictures / 255 - mean) / std).permute(0, 3, 1, 2))
        torch.testing.assert_close(build(TWIN)(pictures), expected, rtol=1e-4, atol=1e-5)


def test_twin_with_a_tokenizer_and_mean_pooling_is_the_trained_one(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from gsb_vit.bench.peers.twin import build
    from gsb_vit.models.build import build_model
    from gsb_vit.quantization import Quantization

    torch.manual_seed(0)
    args = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    args |= {"tokenizer_channels": [9, 12], "global_pool": "avg"}
    model = build_model("gsb_vit_tiny_patch16_224", args, 7, Quantization.full_precision()).eval()
    for norm in model.patch_embed.proj.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    save_file(model.state_dict(), tmp_path / "twin.safetensors")
    packed = random_packed(
        seed=1, image_size=(32, 24), patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=256, num_classes=7,
        prefix_tokens=0, global_pool="avg", tokenizer_channels=(9, 12),
    )  # fmt: skip
    twin = Twin.of(packed.architecture, packed.preprocessing, str(tmp_path / "twin.safetensors"))
    assert Twin.from_json(json.loads(json.dumps(twin.to_json()))) == twin
    pictures = torch.from_numpy(smooth_pictures(3, (32, 24)))
    mean, std = torch.tensor(twin.mean), torch.tensor(twin.std)
    with torch.inference_mode():
        expected = model(((pictures / 255 - mean) / std).permute(0, 3, 1, 2))
        torch.testing.assert_close(build(twin)(pictures), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prefix_tokens", [1, 2])
def test_twin_has_the_packed_models_shape(prefix_tokens):
    pytest.importorskip("timm")
    from gsb_vit.bench.peers.twin import build

    packed = random_packed(
        seed=1, image_size=(32, 24), patch_size=8, embed_dim=64, depth=1, num_heads=2, mlp_hidden=128, num_classes=5,
        prefix_tokens=prefix_tokens,
    )  # fmt: skip
    twin = Twin.of(packed.architecture, packed.preprocessing)
    assert Twin.from_json(json.loads(json.dumps(twin.to_json()))) == twin
    vit = build(twin).vit
    assert vit.pos_embed.shape == (1, 12 + prefix_tokens, 64)
    assert vit.blocks[0].mlp.fc1.weight.shape == (128, 64)
    assert len([name for name, _ in vit.named_modules() if name in ("head", "head_dist")]) == prefix_tokens
    assert vit.norm.eps == packed.architecture.layer_norm_eps


def test_twin_takes_a_teachers_weights_and_refuses_others(tmp_path):
    torch = pytest.importorskip("torch")
    from dataclasses import replace

    from safetensors.torch import save_file

    from gsb_vit.bench.peers.twin import build

    weights = {name: torch.randn_like(value) for name, value in build(TWIN).vit.state_dict().items()}
    save_file(weights, tmp_path / "teacher.safetensors")
    twin = replace(TWIN, weights=str(tmp_path / "teacher.safetensors"))
    torch.testing.assert_close(build(twin).vit.head.weight, weights["head.weight"])
    with pytest.raises(InputError, match="do not fit"):
        build(replace(twin, num_classes=8))
    with pytest.raises(InputError, match="do not fit"):
        build(replace(twin, weights=str(tmp_path / "missing.safetensors")))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_peer_says_what_the_twin_says(prepared, pair, tmp_path):
    need(pair[0])
    engine = engine_of(prepared, pair)
    if pair == ("openvino", "bf16") and not _has_bf16():
        skip_without("OpenVINO in bfloat16", "a processor with bfloat16 instructions")
    # Sixteen pictures in batches of three: the last batch is filled up and cut off again.
    with Worker(engine, Setting(batch=3), prepared.pictures, tmp_path) as worker:
        worker.logits(tmp_path / "logits.npy")
        answer = worker.run(0.01)
        assert worker.peak_mb() > worker.bare_mb > 5
    logits, expected = np.load(tmp_path / "logits.npy"), np.load(prepared.expected)
    assert logits.shape == expected.shape == (16, 7) and logits.dtype == np.float32
    error, top1 = similarity(logits, expected)
    assert error <= ERROR_LIMITS[pair[1]] and top1 >= 0.75
    if pair[1] == "int8+fp32":
        assert worker.precision == "int8+fp32"
    assert (error > 1e-5) == (pair[1] != "fp32")  # a narrow type that changes nothing was not used
    assert answer["ms"] and min(answer["ms"]) > 0


def _has_bf16():
    return "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()


def test_files_of_narrow_types_are_smaller(prepared):
    parameters = 2 * (12 * 64 * 64) * 4 / 1e6
    for engine in prepared.engines:
        whole = engine_of(prepared, (engine.name, "fp32"))
        assert whole.file_mb > parameters
        if engine.path != whole.path:  # OpenVINO converts float32 to bfloat16 when it loads the file
            assert engine.file_mb < 0.7 * whole.file_mb


def test_prepare_refuses_pictures_of_another_kind(tmp_path):
    for pictures in (
        np.zeros((2, 32, 32, 3), np.uint8),
        np.zeros((2, 32, 24, 3), np.float32),
        np.zeros((0, 32, 24, 3), np.uint8),
    ):
        with pytest.raises(InputError, match="must be uint8"):
            prepare(TWIN, [("torch", "fp32")], tmp_path, pictures)
    with pytest.raises(InputError, match="no peer torch int8"):
        prepare(TWIN, [("torch", "int8")], tmp_path)


def test_prepare_tells_what_is_wrong_with_weights(tmp_path):
    need("torch")
    from dataclasses import replace

    with pytest.raises(InputError, match=r"absent\.safetensors do not fit"):
        prepare(replace(TWIN, weights=str(tmp_path / "absent.safetensors")), [("torch", "fp32")], tmp_path / "files")


def test_measure_lets_engines_take_turns_and_reports_what_failed(prepared, tmp_path, no_noise):
    need("torch")
    sound = engine_of(prepared, ("torch", "fp32"))
    broken = Engine("torch", "bf16", engine_of(prepared, ("torch", "bf16")).path, error_limit=1e-6)
    (tmp_path / "foreign.onnx").write_bytes(b"not a model")
    foreign = Engine("onnxruntime", "fp32", tmp_path / "foreign.onnx", error_limit=1e-3)
    rows = measure(
        [sound, broken, foreign], Setting(), prepared.pictures, expected=prepared.expected, rounds=2, turn_seconds=0.02
    )
    first, second, third = (row.row() for row in rows)
    assert list(first) == [
        "engine", "precision", "threads", "batch", "median_ms", "images_per_s", "file_mb", "peak_mb",
    ]  # fmt: skip
    assert first["images_per_s"] == pytest.approx(1000 / first["median_ms"])
    assert rows[0].error == 0 and rows[0].top1 == 1
    assert second["median_ms"] is None and "logits are off" in second["problem"]
    assert third["median_ms"] is None and "cannot run" in third["problem"]


def test_measure_calls_noise_invalid_after_the_last_try(prepared, monkeypatch):
    need("onnxruntime")
    monkeypatch.setattr(timing, "MAX_SPREAD", -1.0)
    monkeypatch.setattr(timing, "MAX_IDLE_CPU", float("inf"))
    taken = []
    monkeypatch.setattr(timing, "scatter", lambda turns: taken.append(len(turns)) or scatter(turns))
    (row,) = measure(
        [engine_of(prepared, ("onnxruntime", "fp32"))],
        Setting(),
        prepared.pictures,
        rounds=2,
        turn_seconds=0.01,
        tries=3,
    )
    assert row.median_ms is None and row.images_per_s is None and row.problem.startswith("invalid: the middle half")
    assert row.row()["problem"] == row.problem
    assert taken == [2] * (3 + 2)  # two turns each time: once a try, twice for the result
    with pytest.raises(InputError, match="rounds 1"):
        measure([], Setting(), prepared.pictures, rounds=1)


def test_measure_against_a_packed_model(tmp_path, no_noise):
    need("onnxruntime")
    if find_spec("gsb_vit._native") is None or find_spec("gsb_vit.runtime.classifier") is None:
        skip_without("native extension", "make native")
    packed = random_packed(
        seed=2, image_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=2, mlp_hidden=128, num_classes=5
    )
    write(tmp_path / "model.safetensors", packed)
    settings = [Setting(batch=1), Setting(batch=3)]
    rows = measure_against(
        tmp_path / "model.safetensors", "onnxruntime:fp32", settings, rounds=2, turn_seconds=0.01, tries=1
    )
    assert [(row.engine, row.batch) for row in rows] == [
        ("gsb-vit", 1), ("onnxruntime", 1), ("gsb-vit", 3), ("onnxruntime", 3),
    ]  # fmt: skip
    assert all(row.peak_mb > row.bare_mb for row in rows)
    assert all(row.problem is None for row in rows)
    assert rows[1].error < ERROR_LIMITS["fp32"] and rows[0].error is None
    with pytest.raises(InputError, match="share an instruction set"):
        measure_against(tmp_path / "model.safetensors", "onnxruntime", [])


def test_pictures_are_run_in_turn():
    pictures = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    assert [one.ravel().tolist() for one in batches(pictures, 2)] == [[0, 1], [2, 3], [4, 0]]
    assert [one.ravel().tolist() for one in batches(pictures[:2], 5)] == [[0, 1, 0, 1, 0]]


@needs("sleeping threads", "/proc", Path("/proc/self/task").exists())
@pytest.mark.parametrize("engine", list(PEERS))
def test_idle_threads_sleep(prepared, engine, tmp_path):
    need(engine)
    threads = min(2, len(os.sched_getaffinity(0)))
    with Worker(engine_of(prepared, (engine, "fp32")), Setting(threads), prepared.pictures, tmp_path) as worker:
        for _ in range(2):
            worker.run(0.01)
            pid = worker._process.pid
            wait_for_sleep(pid, threads_of(pid))


def test_processor_time_out_of_turn_is_counted_and_refused(monkeypatch):
    """Only from the second turn on: before the first the others were being loaded."""
    answers = [{"ms": [1.0], "idle_cpu_s": 9.0, "idle_s": 9.0}] + [{"ms": [1.0], "idle_cpu_s": 0.5, "idle_s": 1.0}] * 2
    monkeypatch.setattr(timing, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "answers", iter(answers), raising=False)
    (row,) = measure([Engine("gsb-vit", "1-bit", Path(__file__))], Setting(), Path("pictures.npy"), rounds=3)
    assert row.median_ms is None and row.problem.startswith("invalid: its threads used 50% of a core")


class FakeWorker:
    """Answers as a worker would, on a clock of its own."""

    precision, bare_mb = "1-bit", 10.0

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, seconds):
        return next(self.answers)

    def peak_mb(self):
        return 20.0


def test_scatter_and_noise():
    turns = [[10.0, 10.2], [10.1, 10.1], [10.0, 10.2]]
    spread, drift = scatter(turns)
    quarters = statistics.quantiles([ms for turn in turns for ms in turn], n=4, method="inclusive")
    assert spread == pytest.approx((quarters[2] - quarters[0]) / 10.1) and drift == 0
    assert noise(spread, drift, 0.0) is None
    assert scatter([[10.0] * 9, [99.0], [11.0] * 3])[1] == pytest.approx(0.1)  # the middle turn counts to no half
    assert noise(*scatter([[10.0] * 9, [11.0] * 9]), 0.0).startswith("invalid: its second half")
    assert noise(*scatter([[10.0, 12.0] * 9, [12.0, 10.0] * 9]), 0.0).startswith("invalid: the middle half")
    assert noise(0.0, 0.0, 0.2).startswith("invalid: its threads used 20%")


def test_similarity():
    expected = np.array([[0.0, 2.0], [2.0, 0.0]], np.float32)
    assert similarity(expected, expected) == (0.0, 1.0)
    assert similarity(expected[::-1], expected) == (2.0, 0.0)
    error, _ = similarity(np.full_like(expected, np.nan), expected)
    assert not error <= 1e9


def test_choose(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    assert choose("torch") == [("torch", "fp32"), ("torch", "bf16")]
    assert choose("openvino:int8+bf16, torch:bf16") == [("openvino", "int8+bf16"), ("torch", "bf16")]
    assert choose(["torch", "torch:fp32"]) == choose("torch")
    assert set(choose(",".join(PEERS))) == set(PAIRS) - {("openvino", "int8+fp32")}
    assert choose("openvino:int8+fp32") == [("openvino", "int8+fp32")]
    with pytest.raises(InputError, match="'tensorflow' is unknown: use torch, onnxruntime, openvino"):
        choose("tensorflow")
    with pytest.raises(InputError, match="torch has no precision 'int4': use fp32, bf16"):
        choose("torch:int4")
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "nncf" else object())
    with pytest.raises(InputError, match=r"openvino cannot run without nncf: pip install 'gsb-vit\[bench\]'"):
        choose("torch,openvino")


def test_setting_refuses_what_cannot_be():
    for bad in ({"threads": 0}, {"batch": 0}, {"threads": 10**6}, {"isa": "avx9"}):
        with pytest.raises(InputError, match=next(iter(bad)).replace("isa", "instruction set")):
            Setting(**bad)
    assert environment(None) == {}
    assert {*map(frozenset, ISAS.values())} == {frozenset(ISAS["avx2"])}  # each set limits every library


@linux_x86
@pytest.mark.parametrize("engine", list(PEERS))
def test_instruction_sets_bite(prepared, engine, tmp_path):
    """Without fused multiply-adds float32 rounds elsewhere: the same logits, but not in every bit."""
    need(engine)
    found = {}
    for isa in (None, "sse4"):
        output = tmp_path / f"{isa}.npy"
        with Worker(engine_of(prepared, (engine, "fp32")), Setting(isa=isa), prepared.pictures, tmp_path) as worker:
            worker.logits(output)
        found[isa] = np.load(output)
    assert similarity(found["sse4"], found[None])[0] < 1e-4
    assert not np.array_equal(found["sse4"], found[None])


@linux_x86
def test_held_onnxruntime_is_a_copy_beside_the_installed_one(tmp_path):
    need("onnxruntime")
    (installed,) = Path(find_spec("onnxruntime").origin).parent.glob("capi/onnxruntime_pybind11_state*.so")
    for isa in ISAS:
        held = hold_onnxruntime(isa, tmp_path) / "onnxruntime" / "capi" / installed.name
        before, after = (np.fromfile(path, np.uint8) for path in (installed, held))
        assert before.shape == after.shape and 0 < np.count_nonzero(before != after) <= 3 * 16
        assert not held.is_symlink() and (held.parent / "__init__.py").is_symlink()


def test_worker_tells_the_last_words_of_a_lost_process(tmp_path):
    np.save(tmp_path / "pictures.npy", smooth_pictures(1, (32, 24)))
    with pytest.raises(WorkerError, match="onnxruntime fp32 cannot run: "):
        Worker(Engine("onnxruntime", "fp32", tmp_path / "none"), Setting(), tmp_path / "pictures.npy", tmp_path)
