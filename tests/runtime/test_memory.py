"""What a model may take of the memory: counted before it is taken, in both engines, up to a limit that callers set."""

import os
import pickle
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from random_packed import SHAPES, TINY, random_packed, random_pictures, write_random_packed

from gsb_vit.errors import InputError
from gsb_vit.limits import MAX_MEMORY_VARIABLE
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.reference import ReferenceModel, reference_bytes

# 65,537 tokens and one channel: 265 kB that ask for gigabytes, tokens² at a time.
BOMB = dict(
    image_size=256, patch_size=1, embed_dim=1, depth=1, num_heads=1, mlp_hidden=1, num_classes=2, prefix_tokens=1,
    attention_bias="none",
)  # fmt: skip
LARGE = {
    "many_tokens": dict(TINY, image_size=96, patch_size=4),
    "many_groups": dict(TINY, image_size=80, patch_size=4, attention_thresholds=(0.2, 0.4, 0.6, 0.8), num_heads=4),
    "many_value_groups": dict(TINY, image_size=64, patch_size=4, value_thresholds=(0.2, 0.4, 0.6, 0.8)),
    "full_bias": dict(TINY, image_size=64, patch_size=4, attention_bias="full", num_heads=4),
    "no_bias": dict(TINY, image_size=80, patch_size=4, attention_bias="none", attention_thresholds=()),
    "wide": dict(TINY, embed_dim=512, mlp_hidden=2048, num_heads=8, depth=3),
    "large_patches": dict(TINY, image_size=256, patch_size=128, embed_dim=64),
    "tokenizer": dict(
        TINY, image_size=256, patch_size=8, tokenizer_channels=(32, 64), global_pool="avg", prefix_tokens=0
    ),
    "many_classes": dict(TINY, num_classes=5000, embed_dim=64),
}
ENGINES = ("native", "reference")
# The most memory that a process has had, in bytes; what getrusage says includes that of the process which started it.
PEAK = (
    "def peak():\n"
    "    line = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:'))\n"
    "    return 1024 * int(line.split()[1])\n"
)


@pytest.fixture(scope="module")
def native():
    return pytest.importorskip("gsb_vit._native", reason="the native extension is not built")


@pytest.fixture(scope="module")
def bomb(tmp_path_factory):
    path = tmp_path_factory.mktemp("bomb") / "bomb.safetensors"
    write_random_packed(path, seed=1, **BOMB)
    assert path.stat().st_size < 300_000
    return path


def refusal(path, engine, **options):
    with pytest.raises(InputError) as caught:
        load(path, engine=engine, **options)
    (line,) = str(caught.value).splitlines()
    return line


def least(path, threads):
    """The smallest limit that the native engine accepts, to a thousandth."""
    low, high = 0, 1 << 30
    while high - low > high // 1000:
        middle = (low + high) // 2
        try:
            load(path, threads=threads, max_memory=middle)
            high = middle
        except InputError:
            low = middle
    return high


@pytest.mark.parametrize("shape", [*LARGE, *SHAPES])
def test_the_estimate_of_the_reference_is_from_above(shape, tmp_path):
    write_random_packed(tmp_path / "model", seed=2, **{**SHAPES, **LARGE}[shape])
    pictures = random_pictures(read(tmp_path / "model").architecture, 2)
    tracemalloc.start()
    try:
        model = ReferenceModel(read(tmp_path / "model"))
        model.logits(pictures)
        model.embed(pictures)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    needed = reference_bytes(model.packed.architecture)
    assert peak - 100_000 <= needed, (needed, peak)  # what Python itself takes
    if shape in LARGE:
        assert needed <= 3 * peak, (needed, peak)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", ["many_tokens", "many_groups", "wide"])
def test_the_native_engine_keeps_to_its_limit(native, shape, threads, tmp_path):
    """The peak of a process that loads with the smallest limit, above that of one that loads a tiny model."""
    sizes = {**LARGE, "many_tokens": dict(TINY, image_size=144, patch_size=2), "wide": dict(LARGE["wide"], depth=30)}
    peaks = []
    for arguments in (TINY, sizes[shape]):
        path = tmp_path / "model.safetensors"
        write_random_packed(path, seed=3, **arguments)
        limit = least(path, threads)
        code = (
            PEAK + "import sys, numpy as np, gsb_vit\n"
            "model = gsb_vit.load(sys.argv[1], threads=int(sys.argv[2]), max_memory=int(sys.argv[3]))\n"
            "model.logits(np.zeros((4, *model.architecture.image_size, 3), np.uint8))\n"
            "print(peak())"
        )
        command = [sys.executable, "-c", code, str(path), str(threads), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] <= limit + 4_000_000
    assert limit <= 2 * (peaks[1] - peaks[0]) + 8_000_000


def child_environment():
    path = os.pathsep.join(part for part in sys.path if part)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_bomb_is_refused_before_it_takes_memory(native, bomb, engine):
    code = (
        PEAK + "import sys, gsb_vit\nbefore = peak()\n"
        "try:\n    gsb_vit.load(sys.argv[1], engine=sys.argv[2], threads=2)\n"
        "except gsb_vit.InputError as error:\n    print(error)\n"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(bomb), engine]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), check=True)
    line, grown = done.stdout.splitlines()
    assert line.startswith(f"{bomb}: ") and "and a model may take 1.07 GB" in line
    assert "raise max_memory (--max-gigabytes, GSB_VIT_MAX_MEMORY)" in line
    assert float(re.search(r"takes ([\d.]+) GB", line)[1]) > 2.5
    assert int(grown) < 64_000_000


@pytest.mark.parametrize("engine", ENGINES)
def test_a_caller_sets_the_limit(native, engine, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    packed = write_random_packed(path, seed=4, **LARGE["many_tokens"])
    pictures = random_pictures(packed.architecture, 3)
    expected = load(path, engine=engine, threads=2).logits(pictures)
    size = path.stat().st_size
    line = refusal(path, engine, max_memory=size - 1)
    assert f"cannot be read (has {size} bytes, more than {size - 1}; raise max_memory" in line
    assert "a model may take 0.09 MB" in refusal(path, engine, max_memory=size)
    monkeypatch.setenv(MAX_MEMORY_VARIABLE, str(size))
    assert "a model may take 0.09 MB" in refusal(path, engine)
    assert np.array_equal(load(path, engine=engine, threads=2, max_memory=1 << 30).logits(pictures), expected)
    monkeypatch.setenv(MAX_MEMORY_VARIABLE, str(1 << 29))
    assert np.array_equal(load(path, engine=engine, threads=2).logits(pictures), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_limits_that_are_none(native, engine, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    write_random_packed(path, seed=4, **TINY)
    for limit in (0, -1, True, 1.5, "x", float("nan"), [1]):
        assert refusal(path, engine, max_memory=limit).startswith("max_memory = ")
    assert load(path, engine=engine, max_memory=10**400).architecture.embed_dim == 32
    for text in ("", "2 GB", "-1", "0", "1e9"):
        monkeypatch.setenv(MAX_MEMORY_VARIABLE, text)
        assert refusal(path, engine).startswith(f"{MAX_MEMORY_VARIABLE} = ")
        with pytest.raises(native.NativeError, match=f"{MAX_MEMORY_VARIABLE} must be a whole number"):
            native.Model(str(path))


def test_weights_count_too(native, tmp_path):
    """Heads of one channel are padded to 32: what is packed is larger than the file."""
    path = tmp_path / "model.safetensors"
    write_random_packed(path, seed=5, **dict(TINY, embed_dim=512, num_heads=512, depth=8, attention_bias="none"))
    line = refusal(path, "native", threads=1, max_memory=path.stat().st_size + 4_000_000)
    assert re.search(r"safetensors: its weights are too large: they take more than the [\d.]+ MB that are left", line)


def test_pictures_share_a_workspace_where_memory_is_short(native, tmp_path):
    path = tmp_path / "model.safetensors"
    packed = write_random_packed(path, seed=6, **LARGE["many_tokens"])
    pictures = random_pictures(packed.architecture, 6)
    expected = load(path, threads=3).logits(pictures)
    assert np.array_equal(load(path, threads=3, max_memory=least(path, 3)).logits(pictures), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pickle_keeps_its_limit(native, engine, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    packed = write_random_packed(path, seed=4, **LARGE["many_tokens"])
    pictures = random_pictures(packed.architecture, 1)
    model = load(path, engine=engine, threads=1, max_memory=1 << 30)
    monkeypatch.setenv(MAX_MEMORY_VARIABLE, "1")
    assert np.array_equal(pickle.loads(pickle.dumps(model)).logits(pictures), model.logits(pictures))


def test_a_model_in_memory_has_the_limit_of_the_reference():
    with pytest.raises(InputError, match=r"takes [\d.]+ GB in the reference engine"):
        ReferenceModel(random_packed(seed=1, **BOMB))
