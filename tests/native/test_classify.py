"""gsb-vit-classify: class, probability and logits of Python for JPEG, PNG and PPM, on every processor it is built for.

The builds for this machine and for AArch64 are made here. Those of the presets classify-*, which need zig, are tested
where they lie in build/: `cmake --preset classify-armv7 && cmake --build --preset classify-armv7`.
"""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from native_build import build_aarch64, build_here
from needs import skip_without
from paths import ROOT
from PIL import Image
from random_packed import SHAPES, write_random_packed

import gsb_vit
from gsb_vit.decision import Decision, Unknown
from gsb_vit.runtime.packed_file import write

PRESETS = {"x86_64": (), "aarch64": ("qemu-aarch64",), "armv7": ("qemu-arm",), "riscv64": ("qemu-riscv64",)}
BACKENDS = {"aarch64": "neon_dot, neon", "armv7": "portable", "riscv64": "portable"}
LIMIT = 2_000_000


def of_preset(name):
    program, emulator = ROOT / "build" / f"classify-{name}" / "gsb-vit-classify", PRESETS[name]
    lacks = [tool for tool in emulator if shutil.which(tool) is None]
    if not program.is_file():
        lacks.append(f"build/classify-{name}, made by zig and the preset of that name")
    if lacks:
        skip_without("static gsb-vit-classify", *lacks)
    return (*emulator, program)


@pytest.fixture(scope="module", params=["here", "aarch64 by g++", *PRESETS])
def command(request):
    if request.param == "here":
        return (build_here("gsb-vit-classify") / "gsb-vit-classify",)
    if request.param == "aarch64 by g++":
        return ("qemu-aarch64", build_aarch64("gsb-vit-classify") / "gsb-vit-classify")
    return of_preset(request.param)


@pytest.fixture(scope="module")
def here():
    return (build_here("gsb-vit-classify") / "gsb-vit-classify",)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Photos and drawings in every kind of file, turned and translucent, and a model."""
    folder = tmp_path_factory.mktemp("classify")
    rng = np.random.default_rng(11)
    few = rng.integers(0, 256, (9, 12, 4), dtype=np.uint8)
    image = Image.fromarray(few).resize((130, 97), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("RGB").save(folder / "photo.jpg", quality=88)
    image.convert("RGB").save(folder / "turned.jpeg", quality=70, progressive=True, exif=exif)
    image.convert("L").save(folder / "grey.jpg")
    image.save(folder / "translucent.png")
    image.convert("RGB").convert("P").save(folder / "palette.png")
    Image.fromarray(rng.integers(0, 65536, (60, 50), dtype=np.uint16)).save(folder / "wide.png")
    image.convert("RGB").save(folder / "plain.ppm")
    write_random_packed(folder / "model.safetensors", seed=7, **SHAPES["head_48"])
    names = ["photo.jpg", "turned.jpeg", "grey.jpg", "translucent.png", "palette.png", "wide.png", "plain.ppm"]
    return folder / "model.safetensors", [folder / name for name in names]


def test_logits_are_those_of_python(command, pictures):
    model, paths = pictures
    classifier = gsb_vit.load(model, engine="reference")
    expected = classifier.logits(np.stack([classifier.preprocessing(path) for path in paths]))
    done = run(*command, "--logits", model, *paths)
    assert done.returncode == 0, done.stderr
    for path, logits, line in zip(paths, expected, done.stdout.splitlines(), strict=True):
        said, *numbers = line.split("\t")
        assert said == str(path)
        np.testing.assert_array_equal(np.array(numbers, dtype=np.float32), logits)
    assert len({row.tobytes() for row in expected}) == len(paths)


def test_answers_are_those_of_python(command, pictures):
    model, paths = pictures
    classifier = gsb_vit.load(model, engine="reference")
    done = run(*command, "--top", 3, "--threads", 2, model, *paths[:2])
    assert done.returncode == 0, done.stderr
    expected = [(path, answer) for path in paths[:2] for answer in classifier.predict(path, top=3)]
    for (path, answer), line in zip(expected, done.stdout.splitlines(), strict=True):
        assert line == f"{path}\t{answer.name}\t{answer.probability:.6f}"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_one_static_program_of_at_most_2_mb(name):
    program = of_preset(name)[-1]
    data = program.read_bytes()
    assert len(data) <= LIMIT
    wide = data[4] == 2
    machine = int.from_bytes(data[18:20], "little")
    assert (wide, machine) == {"x86_64": (1, 62), "aarch64": (1, 183), "armv7": (0, 40), "riscv64": (1, 243)}[name]
    table, size, count = (32, 8, 56) if wide else (28, 4, 44)
    start = int.from_bytes(data[table : table + size], "little")
    entry = int.from_bytes(data[count - 2 : count], "little")
    kinds = {
        int.from_bytes(data[start + entry * i :][:4], "little")
        for i in range(int.from_bytes(data[count : count + 2], "little"))
    }
    assert 1 in kinds and 3 not in kinds, "an interpreter is asked for: it is not static"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_preset_runs_the_kernels_of_its_processor(name, pictures):
    model, paths = pictures
    done = run(*of_preset(name), "--backend", "none", model, paths[0])
    assert done.returncode == 2
    assert f"there is {BACKENDS[name]}" in done.stderr


def test_a_large_model_fits_its_threads(command, tmp_path):
    """DeiT's width on two threads: the stacks of a C library may be small."""
    model = tmp_path / "model.safetensors"
    write_random_packed(
        model, seed=3, image_size=224, patch_size=32, embed_dim=384, depth=1, num_heads=6, mlp_hidden=1536,
        num_classes=1000,
    )  # fmt: skip
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    classifier = gsb_vit.load(model, engine="native")
    done = run(*command, "--logits", "--threads", 2, model, tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    expected = classifier.logits(classifier.preprocessing(tmp_path / "a.png")[None])[0]
    np.testing.assert_array_equal(np.array(done.stdout.split("\t")[1:], dtype=np.float32), expected)


def test_the_standard_input_is_a_picture(here, pictures):
    model, paths = pictures
    from_file = run(*here, model, paths[0]).stdout.split("\t")[1:]
    with paths[0].open("rb") as picture:
        done = run(*here, model, "-", stdin=picture)
    assert done.stdout.split("\t") == ["-", *from_file]


def test_unknown_pictures_get_no_class(here, pictures, tmp_path):
    packed = gsb_vit.runtime.packed_file.read(pictures[0])
    for threshold, said in ((1e9, "(none of the classes)"), (-1e9, None)):
        model = tmp_path / f"{threshold}.safetensors"
        write(model, replace(packed, decision=Decision(1.5, Unknown("energy", threshold, 0.05))))
        done = run(*here, "--unknown", model, pictures[1][0])
        assert done.returncode == 0, done.stderr
        answer = gsb_vit.load(model).predict(pictures[1][0], top=1)[0]
        expected = (
            f"{pictures[1][0]}\t{said}\t" if said else f"{pictures[1][0]}\t{answer.name}\t{answer.probability:.6f}"
        )
        assert done.stdout == expected + "\n"
    done = run(*here, "--unknown", pictures[0], pictures[1][0])
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no threshold for unknown pictures" in done.stderr


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(here, pictures, tmp_path):
    model, paths = pictures
    (tmp_path / "cut.jpg").write_bytes(paths[0].read_bytes()[:-100])
    done = run(*here, model, tmp_path / "cut.jpg", tmp_path / "absent.png", paths[0], tmp_path)
    assert done.returncode == 1
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(paths[0])]
    assert [line.rsplit(": ", 1)[1] for line in done.stderr.splitlines()] == [
        "damaged or truncated",
        "cannot be opened",
        "cannot be read",
    ]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "usage: gsb-vit-classify"),
        (("model",), "usage: gsb-vit-classify"),
        (("--top", "0", "m", "p"), "--top: give a whole number of at least 1"),
        (("--top",), "--top: give a whole number of at least 1"),
        (("--threads", "x", "m", "p"), "--threads: give a whole number"),
        (("--what", "m", "p"), "--what: unknown option"),
        (("absent.safetensors", "p"), "absent.safetensors"),
    ],
)
def test_what_cannot_begin_is_refused_in_one_line(here, arguments, why):
    done = run(*here, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1 or why.startswith("usage")
