import io
import json

import numpy as np
import pytest
from needs import needs_flowers
from paths import FLOWERS
from PIL import Image

from gsb_vit.data.pictures import open_picture
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError


def pixels(picture):
    image = open_picture(picture)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)


def test_a_path_an_image_and_an_array_are_the_same_picture(tmp_path, colours):
    path = tmp_path / "a.png"
    Image.fromarray(colours).save(path)
    for picture in (path, str(path), Image.fromarray(colours), colours):
        assert np.array_equal(pixels(picture), colours)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, colours, orientation, undo):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours).save(path, exif=exif)
    assert np.array_equal(pixels(path), undo(colours))


def test_greyscale_becomes_three_equal_channels(colours):
    grey = colours[:, :, 0]
    for picture in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert np.array_equal(pixels(picture), np.repeat(grey[:, :, None], 3, axis=2))


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = (0, 255, 128)
    path = tmp_path / "clear.png"
    Image.fromarray(rgba).save(path)
    for picture in (path, rgba):
        assert pixels(picture)[0].tolist() == [[255] * 3, [0] * 3, [127] * 3]


def test_transparent_palette_and_greyscale_alpha_are_laid_on_white(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 0])
    palette.putpixel((1, 0), 1)
    path = tmp_path / "palette.png"
    palette.save(path, transparency=0)
    assert pixels(path)[0].tolist() == [[255, 255, 255], [200, 100, 0]]
    palette.save(path)
    assert pixels(path)[0].tolist() == [[10, 20, 30], [200, 100, 0]]
    assert pixels(Image.new("LA", (1, 1), (0, 0)))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("big_endian", [False, True])
def test_16_bits_are_scaled_rather_than_clipped(tmp_path, big_endian):
    values = np.array([[0, 257, 128 * 257 + 128, 40000, 65535]], dtype=np.uint16)
    expected = [0, 1, 128, 156, 255]
    path = tmp_path / ("wide.tif" if big_endian else "wide.png")
    if big_endian:
        Image.frombytes("I;16B", (5, 1), values.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(values).save(path)
    assert pixels(path)[0, :, 0].tolist() == expected
    assert pixels(values)[0, :, 1].tolist() == expected
    assert pixels(np.repeat(values[:, :, None], 3, axis=2))[0, :, 2].tolist() == expected


def test_cmyk_and_bilevel_are_converted():
    assert pixels(Image.new("CMYK", (1, 1), (0, 0, 0, 255)))[0, 0].tolist() == [0, 0, 0]
    assert pixels(Image.new("1", (1, 1), 1))[0, 0].tolist() == [255, 255, 255]


def test_files_that_are_no_pictures_are_refused(tmp_path, colours):
    with pytest.raises(InputError, match="absent"):
        open_picture(tmp_path / "absent.png")
    with pytest.raises(InputError, match="cannot be read"):
        open_picture(tmp_path)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(InputError, match="not a picture"):
        open_picture(text)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
def test_a_truncated_picture_is_refused_in_one_line(tmp_path, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(buffer, kind)
    data = buffer.getvalue()
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=f"cut.{kind}") as caught:
        open_picture(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((4, 4, 2), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array):
    with pytest.raises(InputError, match="not a picture"):
        open_picture(array)


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (32, 16)])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (5, 100), (8, 8), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_the_size_is_always_the_one_asked_for(size, shape, resize):
    picture = np.full((*shape, 3), 77, dtype=np.uint8)
    result = Preprocessing(size=size, resize=resize, crop_ratio=0.9)(picture)
    assert result.shape == (*size, 3) and result.dtype == np.uint8
    assert (result == 77).all()


def test_crop_takes_the_centre_and_keeps_proportions():
    picture = np.zeros((10, 30, 3), dtype=np.uint8)
    picture[:, 10:20] = 200
    assert (Preprocessing(size=(10, 10), interpolation="nearest")(picture) == 200).all()
    squashed = Preprocessing(size=(10, 10), resize="squash", interpolation="nearest")(picture)
    assert (squashed == 0).any() and (squashed == 200).any()


def test_a_very_long_picture_is_no_large_one():
    """Resizing the whole of it to the short side first would need gigabytes."""
    strip = np.full((1, 60000, 3), 9, dtype=np.uint8)
    assert (Preprocessing(size=(224, 224))(strip) == 9).all()


def test_crop_ratio_cuts_the_edge_away():
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[4:12, 4:12] = 255
    assert (Preprocessing(size=(8, 8), crop_ratio=0.5, interpolation="nearest")(picture) == 255).all()


def test_a_picture_of_the_right_size_is_untouched(colours):
    for resize in ("crop", "squash"):
        assert np.array_equal(Preprocessing(size=(6, 9), resize=resize)(colours), colours)


def test_json_round_trip():
    preprocessing = Preprocessing((30, 40), "squash", 0.875, "bilinear", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [0, 8]}, "size"),
        ({"size": [8.5, 8]}, "size"),
        ({"size": 8}, "size"),
        ({"resize": "pad"}, "crop, squash"),
        ({"interpolation": "lanczos"}, "nearest, bilinear, bicubic"),
        ({"crop_ratio": 0}, "crop_ratio"),
        ({"crop_ratio": "1"}, "crop_ratio"),
        ({"mean": [0, float("nan"), 0]}, "mean"),
        ({"std": [1, 1, 0]}, "std"),
        ({"extra": 1}, "unknown key extra"),
    ],
)
def test_json_out_of_range_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Preprocessing.from_json({**Preprocessing((8, 8)).to_json(), **change})


def test_json_with_a_missing_key_is_refused():
    values = Preprocessing((8, 8)).to_json()
    del values["mean"]
    with pytest.raises(InputError, match="lacks mean"):
        Preprocessing.from_json(values)


@needs_flowers
def test_a_flower_equals_torchvisions_resize_and_crop():
    transforms = pytest.importorskip("torchvision.transforms")
    # 500 × 500 → 72 × 72 → its middle 64 × 64: a case without a half pixel, which torchvision would round away.
    square = Image.open(FLOWERS / "jpg" / "image_00001.jpg").crop((40, 0, 540, 500))
    expected = transforms.CenterCrop(64)(transforms.Resize(72)(square))
    found = Preprocessing(size=(64, 64), crop_ratio=64 / 72, interpolation="bilinear")(square)
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 3
