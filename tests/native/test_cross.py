"""The native test programs, here and under an emulated AArch64 processor: kernels, whole models, instructions."""

import functools
import re

import pytest
from native_build import build_aarch64, build_here, needed, run
from needs import skip_without
from paths import HELPERS
from random_packed import SHAPES, random_pictures, write_random_packed
from selftest_models import write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def aarch64():
    return build_aarch64()


def files_of(models):
    return [path for files in models.values() for path in files]


def check_selftest(done):
    text = done.stdout.decode()
    *backends, total = text.splitlines()
    passed = re.fullmatch(r"(\d+) passed, 0 failed", total)
    assert passed, text
    assert int(passed[1]) > 1000 * len(backends)
    return {line.split(":")[0] for line in backends}


def test_kernels_and_models_on_this_machine(models):
    ran = check_selftest(run(build_here() / "native/tests/selftest", *files_of(models)))
    assert "portable" in ran


# What runs on each processor, the best first: NEON alone, NEON with dot products, and all that QEMU knows.
PROCESSORS = {
    "cortex-a53": ("neon", "portable"),
    "cortex-a76": ("neon_dot", "neon", "portable"),
    "max": ("neon_dot", "neon", "portable"),
}


# Every check of the native tests, instruction by instruction in an emulator.
@pytest.mark.slow
@pytest.mark.parametrize("processor", PROCESSORS)
def test_kernels_and_models_on_aarch64(aarch64, models, processor):
    ran = check_selftest(run("qemu-aarch64", "-cpu", processor, aarch64 / "native/tests/selftest", *files_of(models)))
    assert ran == set(PROCESSORS[processor])


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", SHAPES)
def test_aarch64_gives_the_logits_of_the_reference(aarch64, models, name, processor):
    model, pixels, logits = models[name]
    best = PROCESSORS[processor][0]
    for threads, backend in ((1, best), (2, best), (1, "neon")):
        program = ("qemu-aarch64", "-cpu", processor, aarch64 / "native/tests/logits")
        assert run(*program, model, pixels, threads, backend).stdout == logits.read_bytes()


def test_dot_products_are_refused_where_there_are_none(aarch64, models):
    model, pixels, _ = next(iter(models.values()))
    program = ("qemu-aarch64", "-cpu", "cortex-a53", aarch64 / "native/tests/logits")
    done = run(*program, model, pixels, 1, "neon_dot", ok=False)
    assert done.returncode != 0 and b"'neon_dot' cannot run on this machine; there is neon, portable" in done.stderr


def train_hashes(folder, *emulator):
    """What the training kernels of each instruction set say that runs there: native/tests/train_hashes.cpp."""
    found = {}
    for program in sorted(folder.glob("native/tests/train_hashes_*")):
        text = run(*emulator, program).stdout.decode()
        if text != "not supported\n":
            found[program.name] = text.splitlines()
    return found


def test_training_kernels_give_the_same_numbers_on_every_processor(aarch64):
    found = {**train_hashes(build_here()), **train_hashes(aarch64, "qemu-aarch64")}
    if len(found) < 2:
        skip_without("training kernels of x86-64 beside those of AArch64", "AVX2")
    expected = found["train_hashes_neon"]
    assert len(set(expected)) == len(expected) > 100
    for lines in found.values():
        assert lines == expected


def test_the_selftest_notices_wrong_logits(models, tmp_path):
    model, pixels, logits = models["two_heads"]
    wrong = bytearray(logits.read_bytes())
    wrong[0] ^= 1
    (tmp_path / "wrong").write_bytes(wrong)
    done = run(build_here() / "native/tests/selftest", model, pixels, tmp_path / "wrong", ok=False)
    assert done.returncode == 1
    assert re.search(rb"[1-9]\d* failed", done.stdout)


@pytest.fixture(scope="module")
def instructions(aarch64, tmp_path_factory):
    """Instructions of a process that loads a model of DeiT-Small's shape, four blocks deep, and runs so many pictures.

    Counted by a QEMU plugin, so they are the same on every machine, busy or not.
    """
    folder = tmp_path_factory.mktemp("instructions")
    plugin, path, program = folder / "count.so", folder / "model.safetensors", aarch64 / "native/tests/logits"
    run(needed("cc"), "-shared", "-fPIC", "-O2", HELPERS / "count_instructions.c", "-o", plugin)
    model = write_random_packed(
        path, seed=1, image_size=224, patch_size=16, embed_dim=384, depth=4, num_heads=6, mlp_hidden=1536,
        num_classes=102,
    )  # fmt: skip
    pictures = random_pictures(model.architecture, 2, seed=1)

    @functools.cache
    def count(number, backend):
        (folder / "pixels").write_bytes(pictures[:number].tobytes())
        done = run("qemu-aarch64", "-plugin", plugin, program, path, folder / "pixels", 1, backend, ok=False)
        if b"instructions" not in done.stderr:
            skip_without("counts of instructions", "a QEMU that takes plugins")
        assert done.returncode == 0, done.stderr
        return int(re.search(rb"(\d+) instructions", done.stderr)[1])

    return count


def test_neon_needs_at_most_a_third_of_the_instructions(instructions):
    """Of one forward pass: two pictures minus one."""
    neon, portable = (instructions(2, backend) - instructions(1, backend) for backend in ("neon", "portable"))
    assert 0 < neon <= portable / 3, f"{neon} of {portable}: {neon / portable:.3f}"


def test_dot_products_save_a_twentieth_of_the_instructions(instructions):
    dot, neon = (instructions(2, backend) - instructions(1, backend) for backend in ("neon_dot", "neon"))
    assert 0 < dot <= 0.95 * neon, f"{dot} of {neon}: {dot / neon:.3f}"


def test_a_start_needs_fewer_instructions_than_half_a_picture(instructions):
    """Nothing is built when a model is loaded or first called that would belong into the file."""
    start, first = (instructions(number, "neon") for number in (0, 1))
    one_more = instructions(2, "neon") - first
    assert start < one_more / 2, f"{start} to load, {one_more} a picture"
    assert first - start < 1.05 * one_more, f"{first - start} for the first picture, {one_more} for the second"
