"""Resizing in C++, every backend: Pillow's bits where it goes horizontally first, else those of one call an axis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import needs_flowers
from paths import FLOWERS
from PIL import Image

from gsb_vit.data.pictures import open_picture
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.runtime.pictures import prepare

_native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")

FILTERS = ("nearest", "box", "bilinear", "bicubic", "lanczos")
BACKENDS = _native.backends()
SIDES = st.integers(1, 300)


def pillows(pixels, size, name, box):
    """Pillow's result, horizontally first in any version: each axis in a call of its own."""
    (height, width), (left, top, right, bottom) = size, box
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    filter_ = Image.Resampling[name.upper()]
    image = image.resize((width, image.height), filter_, box=(left, 0, right, image.height))
    image = image.resize((width, height), filter_, box=(0, top, width, bottom))
    return np.asarray(image).reshape(height, width, -1)


def horizontal_first(pixels, size):
    fewer_rows, fewer_columns = pixels.shape[0] - size[0], pixels.shape[1] - size[1]
    return fewer_rows <= max(0, 2 * fewer_columns)


@st.composite
def pictures(draw, channels=(1, 3)):
    """Noise, or black and white with steep edges that ring; in rows that may lie apart."""
    height, width, depth = draw(SIDES), draw(SIDES), draw(st.sampled_from(channels))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pixels = rng.integers(0, 256, (height, width + draw(st.integers(0, 9)), depth), dtype=np.uint8)
    if draw(st.booleans()):
        pixels = np.where(pixels < 128, 0, 255).astype(np.uint8)
    return pixels[:, :width]


@st.composite
def boxes(draw, pixels):
    """Left, top, right, bottom: the whole, whole pixels, or any part of them."""
    (height, width), kind = pixels.shape[:2], draw(st.sampled_from(("all", "whole", "any")))
    if kind == "all":
        return 0.0, 0.0, float(width), float(height)
    sides = []
    for length in (width, height):
        place = st.integers(0, length) if kind == "whole" else st.floats(0, length, width=32)
        sides.append(sorted((draw(place), draw(place))))
    return tuple(float(side[end]) for end in (0, 1) for side in sides)


@settings(max_examples=300, deadline=None)
@given(st.data(), SIDES, SIDES, st.sampled_from(FILTERS))
def test_every_size_box_and_filter_is_pillows_to_the_bit(data, height, width, name):
    pixels = data.draw(pictures())
    box = data.draw(boxes(pixels))
    expected = pillows(pixels, (height, width), name, box)
    if horizontal_first(pixels, (height, width)):
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        at_once = image.resize((width, height), Image.Resampling[name.upper()], box=box)
        assert np.array_equal(np.asarray(at_once).reshape(expected.shape), expected)
    for backend in BACKENDS:
        assert np.array_equal(_native.resize(pixels, (height, width), name, box, backend), expected), backend


@pytest.mark.parametrize("name", FILTERS)
def test_long_pictures_and_sides_of_one(name):
    """Many taps, more than a band of rows, few rows, one row; wider than weights are made at a time."""
    rng = np.random.default_rng(5)
    for shape, size in [((1, 1), (9, 7)), ((2, 9000), (3, 2)), ((9000, 2), (2, 3)), ((700, 5), (1, 1)),
                        ((3, 400_000), (1, 200)), ((5, 70), (300, 1)), ((130, 3), (7, 3))]:  # fmt: skip
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        box = (0, 0, shape[1], shape[0])
        expected = pillows(pixels, size, name, box)
        for backend in BACKENDS:
            assert np.array_equal(_native.resize(pixels, size, name, box, backend), expected), (shape, backend)


def test_pillow_13s_other_order_is_another_picture():
    """Why the order is part of the rule. Pillow up to 12 has no other order."""
    pixels = np.random.default_rng(0).integers(0, 2, (300, 100, 3), dtype=np.uint8) * np.uint8(255)
    assert not horizontal_first(pixels, (50, 50))
    down_first = np.asarray(
        Image.fromarray(pixels).resize((100, 50), Image.Resampling.BICUBIC).resize((50, 50), Image.Resampling.BICUBIC)
    )
    ours = _native.resize(pixels, (50, 50), "bicubic", (0, 0, 100, 300))
    assert np.abs(down_first.astype(int) - ours).max() > 1


@settings(max_examples=200, deadline=None)
@given(
    pictures((1, 3, 4)), SIDES, SIDES, st.sampled_from(("crop", "squash")),
    st.sampled_from((1.0, 0.875, 0.9, 1 / 3, 1e-4)), st.sampled_from(("nearest", "bilinear", "bicubic")),
)  # fmt: skip
def test_a_picture_is_prepared_as_pillow_prepares_it(pixels, height, width, resize, ratio, interpolation):
    how = Preprocessing((height, width), resize, ratio, interpolation)
    expected = how(pixels)
    for backend in BACKENDS:
        assert np.array_equal(prepare(pixels, how, backend), expected), backend


def test_every_value_and_opacity_lies_on_white_as_in_pillow():
    value, opacity = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pixels = np.stack([value, value[::-1], value.T, opacity], axis=2)
    found = _native.prepare(pixels, (256, 256), "squash", 1.0, "nearest")
    assert np.array_equal(found, np.asarray(open_picture(pixels)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_stored_picture_is_turned_as_pillow_turns_it(tmp_path, orientation, channels):
    pixels = np.random.default_rng(2).integers(0, 256, (13, 22, channels), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "a.png", exif=exif)
    expected = Preprocessing((16, 10))(tmp_path / "a.png")
    for backend in BACKENDS:
        found = _native.prepare(pixels, (16, 10), "crop", 1.0, "bicubic", backend, orientation=orientation)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(13, 22), (9, 1), (1, 9), (1, 1)])
def test_opaque_rows_are_those_without_opacity(shape, orientation):
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    how = ((16, 10), "squash", 1.0, "bilinear")
    found = _native.prepare(pixels, *how, orientation=orientation)
    expected = _native.prepare(np.ascontiguousarray(pixels[..., :3]), *how, orientation=orientation)
    assert np.array_equal(found, expected)
    pixels[::2, ..., 3] = 7  # every other row
    white = np.asarray(open_picture(pixels))
    found = _native.prepare(pixels, *how, orientation=orientation)
    assert np.array_equal(found, _native.prepare(white, *how, orientation=orientation))


@needs_flowers
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photos_are_prepared_as_pillow_prepares_them(interpolation):
    for path in sorted((FLOWERS / "jpg").iterdir())[::400]:
        for how in (Preprocessing((224, 224), "crop", 0.875, interpolation), Preprocessing((48, 64), "squash")):
            expected = how(path)
            assert all(np.array_equal(prepare(path, how, backend), expected) for backend in BACKENDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": np.zeros((2, 2, 2), np.uint8)}, "1, 3 or 4 channels"),
        ({"pixels": np.zeros((2, 0, 3), np.uint8)}, "without pixels"),
        ({"pixels": np.zeros((4, 4, 3), np.uint8)[:, ::2]}, "contiguous"),
        ({"pixels": np.zeros((4, 4, 3), np.uint8)[::-1]}, "come in order"),
        ({"size": (0, 3)}, "size"),
        ({"size": (65535, 65535)}, "size"),
        ({"filter": "hamming"}, "use nearest, bilinear, bicubic, box or lanczos"),
        ({"box": (-1, 0, 4, 4)}, "box"),
        ({"box": (0, 0, 5, 4)}, "box"),
        ({"box": (3, 0, 2, 4)}, "box"),
        ({"box": (0, 0, float("nan"), 4)}, "box"),
    ],
)
def test_what_cannot_be_resized_is_refused(change, message):
    given_ = {"pixels": np.zeros((4, 4, 3), np.uint8), "size": (2, 2), "filter": "bicubic", "box": (0, 0, 4, 4)}
    with pytest.raises(_native.NativeError, match=message):
        _native.resize(**{**given_, **change})


def test_more_pixels_than_allowed_are_refused_before_anything_is_made():
    sliver = np.zeros((100_000, 1, 3), np.uint8)
    long = Preprocessing((8, 4000), "squash")
    for backend in ("reference", *BACKENDS):
        with pytest.raises(
            InputError, match=r"a picture of 1 . 100000 pixels is too long: 100000 rows of 4000 are more"
        ):
            prepare(sliver, long, backend)
        assert prepare(sliver, Preprocessing((8, 4000), "crop"), backend).shape == (8, 4000, 3)
    with pytest.raises(_native.NativeError, match="1 x 100000 pixels are more than 99999; give a smaller picture"):
        _native.prepare(sliver, (8, 8), "crop", 1.0, "bicubic", max_pixels=99_999)
