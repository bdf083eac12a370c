"""Every mode of pixels is right to the value, or refused: nothing becomes black without a word."""

import struct
import warnings

import numpy as np
import PIL
import pytest
from picture_files import chunk, png, tiff
from PIL import Image

from gsb_vit.data import pixels
from gsb_vit.data.pictures import open_picture
from gsb_vit.errors import InputError, PictureWarning

SMIN, SMAX, MAX = 340, 341, 281
FLOAT, LONG = 11, 4
PILLOW = tuple(map(int, PIL.__version__.split(".")[:2]))
needs_pfm = pytest.mark.skipif(PILLOW < (10, 3), reason="this Pillow reads no PFM")


@pytest.fixture(autouse=True)
def every_warning(monkeypatch):
    monkeypatch.setattr(pixels, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error", PictureWarning)
        yield


@pytest.fixture
def read(tmp_path):
    """Write bytes to a file and open it: → RGB values in order."""

    def call(data, name="picture"):
        path = tmp_path / name
        path.write_bytes(data)
        return np.asarray(open_picture(path)).reshape(-1, 3).tolist()

    return call


def grey(*values):
    return [[value] * 3 for value in values]


def u16(*values, order="<"):
    return np.array(values, dtype=f"{order}u2").tobytes()


def f32(*values):
    return np.array(values, dtype="<f4").tobytes()


def test_all_16_bit_values_are_divided_by_257():
    values = np.arange(65536, dtype=np.uint16)[None]
    expected = np.rint(np.arange(65536) / 257)
    for picture in (values, Image.fromarray(values)):
        assert np.array_equal(np.asarray(open_picture(picture))[0, :, 0], expected)


def test_a_declared_range_decides(read):
    assert read(tiff(16, u16(0, 257, 65535), 3)) == grey(0, 1, 255)
    assert read(tiff(16, u16(0, 2048, 4095), 3, extra=[(MAX, 3, 1, 4095)])) == grey(0, 128, 255)
    assert read(tiff(16, u16(0, 512, 1023), 3, extra=[(MAX, 3, 1, 1023)])) == grey(0, 128, 255)
    assert read(tiff(12, bytes([0xFF, 0xF8, 0x00]), 2)) == grey(255, 128)
    assert read(tiff(32, f32(0, 0.5, 1), 3, sample_format=3)) == grey(0, 128, 255)
    tags = [(SMIN, FLOAT, 1, 0.0), (SMAX, FLOAT, 1, 255.0)]
    assert read(tiff(32, f32(0, 100, 255), 3, sample_format=3, extra=tags)) == grey(0, 100, 255)
    integers = np.array([0, 100, 255], dtype="<i4").tobytes()
    assert read(tiff(32, integers, 3, sample_format=2, extra=[(MAX, LONG, 1, 255)])) == grey(0, 100, 255)
    for most, middle in ((4095, 2048), (65535, 32896)):
        header = b"P5\n3 1\n%d\n" % most
        assert read(header + u16(0, middle, most, order=">")) == grey(0, 128, 255)
    assert read(b"P6\n1 1\n4095\n" + u16(0, 2048, 4095, order=">")) == [[0, 128, 255]]


@needs_pfm
def test_a_pfm_is_from_zero_to_one(read):
    assert read(b"Pf\n2 1\n-1.0\n" + f32(0, 0.5)) == grey(0, 128)


@pytest.mark.parametrize(
    "data",
    [
        tiff(32, f32(0, 100, 255), 3, sample_format=3),
        tiff(32, f32(0, 0.5, 1.01), 3, sample_format=3),
        tiff(32, f32(-0.01, 0.5, 1), 3, sample_format=3),
        tiff(32, f32(0, 0.5, 1), 3, sample_format=3, extra=[(SMIN, FLOAT, 1, 0.25), (SMAX, FLOAT, 1, 0.75)]),
        tiff(32, np.array([0, 100, 255], "<i4").tobytes(), 3, sample_format=2),
        tiff(32, np.array([0, 2**32 - 1], "<u4").tobytes(), 2),
        tiff(32, np.array([0, 300], "<i4").tobytes(), 2, sample_format=2, extra=[(MAX, LONG, 1, 255)]),
        tiff(16, np.array([-5, 300], "<i2").tobytes(), 2, sample_format=2),
        tiff(8, np.array([-5, 100], "i1").tobytes(), 2, sample_format=2),
        tiff(16, u16(0, 5000), 2, extra=[(MAX, 3, 1, 4095)]),
        tiff(32, f32(0, np.nan), 2, sample_format=3),
        tiff(32, f32(0, np.inf), 2, sample_format=3),
        pytest.param(b"Pf\n2 1\n-1.0\n" + f32(0, 255), marks=needs_pfm),
    ],
)
def test_an_unknown_range_is_refused_in_one_line(read, data):
    with pytest.raises(InputError, match=r"picture.*(save it|unsigned|unknown pixel mode)") as caught:
        read(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(np.array([[0, 255]], dtype=np.int32)),
        Image.fromarray(np.array([[0, 70000]], dtype=np.int32)),
        Image.fromarray(np.array([[0, 255]], dtype=np.float32)),
        Image.fromarray(np.array([[np.nan]], dtype=np.float32)),
        Image.new("LAB", (1, 1)),
    ],
)
def test_pillow_images_of_an_unknown_range_are_refused(picture):
    with pytest.raises(InputError):
        open_picture(picture)


@pytest.mark.parametrize("extra", [(), [(MAX, 3, 1, 3127)]])
def test_12_bits_in_a_16_bit_file_are_told_once_a_folder(tmp_path, extra):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("one.tif", "two.tif"):
            (tmp_path / folder / name).write_bytes(tiff(16, u16(0, 3127), 2, extra=extra))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for path in sorted(tmp_path.rglob("*.tif")):
            assert np.asarray(open_picture(path))[0, :, 0].tolist() == [0, 12]
    texts = [str(one.message) for one in said]
    assert len(texts) == 2 and all(f"{folder}/one.tif" in text for folder, text in zip("ab", texts, strict=True))
    assert "12 bits" in texts[0]


def test_12_bits_in_16_bit_colours_and_arrays_are_told(read):
    scanline = b"\0" + u16(4095, 300, 20, order=">")
    with pytest.raises(PictureWarning, match="12 bits"):
        read(png(1, 1, 16, 2, scanline))
    with pytest.raises(PictureWarning, match="12 bits"):
        open_picture(np.full((2, 2, 3), 4000, dtype=np.uint16))
    assert np.asarray(open_picture(np.zeros((2, 2), dtype=np.uint16))).max() == 0  # black is black


def test_16_bit_colours_keep_their_upper_eight_bits(read):
    values = (0, 300, 65535, 40000, 1, 2)
    upper = [value >> 8 for value in values]
    assert read(png(2, 1, 16, 2, b"\0" + u16(*values, order=">"))) == [upper[:3], upper[3:]]
    assert read(png(1, 1, 16, 6, b"\0" + u16(40000, 65535, 0, 65535, order=">"))) == [[156, 255, 0]]
    assert read(png(2, 1, 16, 4, b"\0" + u16(40000, 65535, 0, 0, order=">"))) == grey(156, 255)


def test_white_may_be_zero(read):
    assert read(tiff(8, bytes([0, 255, 9]), 3, photometric=0)) == grey(255, 0, 246)
    assert read(tiff(16, u16(0, 65535, 257), 3, photometric=0)) == grey(255, 0, 254)
    assert read(tiff(32, f32(0, 1, 0.2), 3, photometric=0, sample_format=3)) == grey(255, 0, 204)


def test_one_transparent_colour_is_white(read):
    transparent = chunk(b"tRNS", struct.pack(">H", 257))
    assert read(png(3, 1, 16, 0, b"\0" + u16(257, 256, 65535, order=">"), transparent)) == grey(255, 1, 255)
    transparent = chunk(b"tRNS", struct.pack(">H", 7))
    assert read(png(2, 1, 8, 0, b"\0" + bytes([7, 8]), transparent)) == grey(255, 8)
    assert read(png(8, 1, 1, 0, b"\0\x0f", chunk(b"tRNS", struct.pack(">H", 0))))[:5:4] == grey(255, 255)
    transparent = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert read(png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), transparent)) == [[255] * 3, [4, 5, 6]]
    with pytest.raises(InputError, match="transparent"):
        read(png(2, 1, 16, 2, b"\0" + u16(1, 2, 3, 40000, 5, 6, order=">"), transparent))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255] * 3),
        ("L", 9, [9] * 3),
        ("LA", (9, 255), [9] * 3),
        ("La", (0, 0), [255] * 3),
        ("PA", (0, 0), [255] * 3),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBX", (1, 2, 3, 4), [1, 2, 3]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
        ("RGBa", (0, 0, 0, 0), [255] * 3),
        ("CMYK", (0, 255, 0, 0), [255, 0, 255]),
        ("YCbCr", (200, 128, 128), [200] * 3),
        ("HSV", (0, 0, 77), [77] * 3),
        ("I;16", 257, [1] * 3),
        ("F", 0.2, [51] * 3),
    ],
)
@pytest.mark.filterwarnings("ignore::gsb_vit.errors.PictureWarning")
def test_every_mode(mode, colour, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.asarray(open_picture(Image.new(mode, (1, 1), colour))).tolist() == [[expected]]


@pytest.mark.parametrize("mode", ["I;16", "LA", "RGB", "P"])
@pytest.mark.parametrize(("orientation", "turned"), [(1, (3, 2)), (6, (2, 3)), (9, (3, 2))])
def test_orientation_holds_in_every_mode(tmp_path, mode, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new(mode, (3, 2)).save(tmp_path / "a.png", exif=exif)
    assert open_picture(tmp_path / "a.png").size == turned


def test_bands_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (37, 23, 4), dtype=np.uint8), rng.integers(0, 65536, (37, 23), dtype=np.uint16)
    whole = [np.asarray(open_picture(picture)) for picture in pictures]
    monkeypatch.setattr(pixels, "_BAND", 50)
    for before, picture in zip(whole, pictures, strict=True):
        assert np.array_equal(np.asarray(open_picture(picture)), before)
    white = Image.new("RGBA", (23, 37), "white")
    oracle = Image.alpha_composite(white, Image.fromarray(pictures[0])).convert("RGB")
    assert np.array_equal(whole[0], np.asarray(oracle))
