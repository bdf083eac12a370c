"""Picture files that mean harm: bombs, other formats, what is no file. Each is refused in one line, before it costs."""

import io
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from paths import HELPERS, ROOT
from picture_files import png, tiff, webp_bomb
from PIL import Image

from gsb_vit.data import pictures
from gsb_vit.data.pictures import open_picture
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError


@pytest.fixture
def refused(tmp_path):
    """Write bytes to a file that must be refused: → the line."""

    def call(data, **options):
        path = tmp_path / "picture.jpg"
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"picture\.jpg") as caught:
            open_picture(path, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


def saved(mode, size, kind, **options):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def test_too_many_pixels_are_refused_before_they_are_decoded(refused, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    bombs = [webp_bomb(), webp_bomb(8001, 8000), png(8001, 8000, 16, 0, b""), png(60000, 60000, 1, 0, b"")]
    bombs += [b"P5\n99999 99999\n255\n", tiff(8, b"", 64_000_001)]
    bombs += [tiff(8, b"", 4, extra=[(322, 4, 1, 40000), (323, 4, 1, 40000)])]
    for bomb in bombs:
        line = refused(bomb)
        assert "megapixels, more than 64" in line and "max_pixels" in line


def test_the_limit_can_be_lowered_and_raised(tmp_path, refused, monkeypatch):
    data = saved("RGB", (20, 10), "PNG")
    assert "20 × 10" in refused(data, max_pixels=199)
    monkeypatch.setenv("GSB_VIT_MAX_PIXELS", "199")
    refused(data)
    path = tmp_path / "picture.jpg"
    assert open_picture(path, max_pixels=200).size == (20, 10)
    assert Preprocessing((4, 4))(path, max_pixels=200).shape == (4, 4, 3)
    with pytest.raises(InputError, match="more than"):
        Preprocessing((4, 4))(path)
    with pytest.raises(InputError, match="more than"):
        open_picture(Image.new("L", (20, 10)))
    assert open_picture(np.zeros((10, 20), dtype=np.uint8)).size == (20, 10)  # an array is in memory already
    monkeypatch.setenv("GSB_VIT_MAX_PIXELS", "64 million")
    with pytest.raises(InputError, match="GSB_VIT_MAX_PIXELS"):
        open_picture(path)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "", "many", [], 1e9])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(InputError, match="max_pixels"):
        open_picture(np.zeros((1, 1), dtype=np.uint8), max_pixels=limit)


def test_a_caller_may_go_beyond_pillows_own_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = tmp_path / "a.png"
    path.write_bytes(saved("RGB", (20, 10), "PNG"))
    assert open_picture(path).size == (20, 10)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_file_of_many_bytes_is_refused_unread(refused, tmp_path):
    with (tmp_path / "picture.jpg").open("wb") as file:
        file.truncate(pictures.BYTES_PER_PIXEL * pictures.MAX_PIXELS + 1)
    with pytest.raises(InputError, match="MB"):
        open_picture(tmp_path / "picture.jpg")


PROBE = """
import resource, sys
from pathlib import Path
from gsb_vit.data.pictures import open_picture
from gsb_vit.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_picture(sys.argv[1])
except InputError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def megabytes(path):
    """What a fresh process needs to open a picture."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(HELPERS)])}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_refused_bomb_costs_nothing(tmp_path):
    path = tmp_path / "bomb.webp"
    path.write_bytes(webp_bomb())
    assert megabytes(path) < 60


def test_the_largest_picture_allowed_costs_its_pixels_a_few_times(tmp_path):
    side = 4000  # a quarter of the limit
    path = tmp_path / "sixteen.png"
    path.write_bytes(png(side, side, 16, 0, bytes(side * (2 * side + 1))))
    assert megabytes(path) < 20 * side**2 / 1e6 + 60
    path.write_bytes(saved("RGBA", (side, side), "PNG"))
    assert megabytes(path) < 12 * side**2 / 1e6 + 60


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "dangling.png").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "pipe.png", "/dev/zero", "/dev/null", tmp_path / "dangling.png", "x" * 5000):
        with pytest.raises(InputError, match="cannot be read"):
            open_picture(path)


@pytest.mark.parametrize("value", [None, 5, 2.5, [], {}, object(), "", b"", "a\0b", b"a\0b", Image])
def test_what_is_no_picture_is_refused(value):
    with pytest.raises(InputError, match="path"):
        open_picture(value)


def test_names_that_are_no_text_are_paths_and_bytes_are_a_file(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\n.png"
    data = saved("RGB", (2, 3), "PNG")
    with open(path, "wb") as file:
        file.write(data)
    assert open_picture(data).size == open_picture(os.fsdecode(path)).size == (2, 3)
    with pytest.raises(InputError, match="a path is given as str"):
        open_picture(path)


def test_the_signature_decides_and_no_interpreter_starts(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a program"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("started a program"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for data in (
        eps,
        saved("RGB", (8, 8), "ICO"),
        saved("RGB", (8, 8), "DDS"),
        saved("RGB", (8, 8), "TGA"),
        b"",
        b"\0",
    ):
        assert "not a picture" in refused(data)
    (tmp_path / "picture.jpg").write_bytes(saved("RGB", (8, 8), "PNG"))
    assert open_picture(tmp_path / "picture.jpg").size == (8, 8)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    """Cut anywhere, or with some bytes changed: a picture of a bounded size, or one line."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    try:
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, kind)
    except (KeyError, OSError, ValueError):
        pytest.skip(f"this Pillow does not write {kind}")
    whole, path, refusals = buffer.getvalue(), tmp_path / "damaged", 0
    for attempt in range(150):
        data = bytearray(whole[: rng.integers(1, len(whole))] if attempt % 3 == 0 else whole)
        for position in rng.integers(0, min(len(data), 400 if attempt % 2 else len(data)), 4):
            data[position] = rng.integers(0, 256)
        path.write_bytes(data)
        try:
            image = open_picture(path, max_pixels=1_000_000)
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error)
        else:
            assert image.mode == "RGB"
    assert refusals


def test_the_limits_of_the_process_are_untouched(refused):
    before = resource.getrlimit(resource.RLIMIT_AS), Image.MAX_IMAGE_PIXELS
    refused(webp_bomb())
    assert before == (resource.getrlimit(resource.RLIMIT_AS), Image.MAX_IMAGE_PIXELS)
