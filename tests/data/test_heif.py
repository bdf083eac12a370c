"""HEIC and HEIF pictures, as phones make them: read where pillow-heif is installed, named where it is not."""

import io
from pathlib import Path

import numpy as np
import pytest
from class_folders import fill
from PIL import Image

from gsb_vit.data import pictures
from gsb_vit.data.folder import can_open, read_folder
from gsb_vit.data.pictures import open_picture
from gsb_vit.errors import InputError

# The beginning of a file that an iPhone makes.
SIGNATURE = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def test_where_the_package_is_missing_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pictures.import_module
    monkeypatch.setattr(pictures, "can_open_heif", lambda: False)

    def missing(name: str):
        if name == "pillow_heif":
            raise ModuleNotFoundError(name)
        return real(name)

    monkeypatch.setattr(pictures, "import_module", missing)
    with pytest.raises(
        InputError, match=r"a HEIC picture; pip install 'gsb-vit\[heif\]', or convert it to PNG or JPEG"
    ):
        open_picture(SIGNATURE)
    with pytest.raises(InputError, match="not a picture"):
        open_picture(SIGNATURE.replace(b"heic", b"qt  "))


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC pictures: without pillow-heif")
    picture = Image.fromarray(np.kron(np.array([[[250, 0, 0], [0, 0, 250]]], np.uint8), np.ones((40, 40, 1), np.uint8)))
    path = tmp_path / "phone.heic"
    pillow_heif.from_pillow(picture).save(path, quality=90)
    return path


def test_a_picture_of_a_phone_is_read_by_its_bytes_and_no_name(heic: Path, tmp_path: Path) -> None:
    found = open_picture(heic)
    assert (found.size, found.mode) == ((80, 40), "RGB")
    left, right = np.asarray(found)[20, 10], np.asarray(found)[20, 70]
    assert left[0] > 200 > 60 > left[2] and right[2] > 200 > 60 > right[0]
    assert np.array_equal(open_picture(heic.read_bytes()), found)
    named = tmp_path / "named.jpg"
    named.write_bytes(heic.read_bytes())
    assert np.array_equal(open_picture(named), found)


def test_limits_and_damage_are_one_line(heic: Path) -> None:
    with pytest.raises(InputError, match="megapixels, more than"):
        open_picture(heic, max_pixels=100)
    data = heic.read_bytes()
    for damaged in (data[: len(data) // 2], data[:30], data[:100] + bytes(len(data) - 100), SIGNATURE):
        with pytest.raises(InputError) as caught:
            open_picture(damaged)
        assert "\n" not in str(caught.value)


def test_a_folder_of_them_is_used(heic: Path, tmp_path: Path) -> None:
    for name in "ab":
        fill(tmp_path / "mine" / name, 2)
    (tmp_path / "mine" / "a" / "IMG_1.HEIC").write_bytes(heic.read_bytes())
    assert can_open(".heic") and len(read_folder(tmp_path / "mine").undivided) == 5


def test_other_formats_are_read_as_before_beside_it(heic: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), (1, 2, 3)).save(stream, "PNG")
    open_picture(heic)
    assert open_picture(stream.getvalue()).getpixel((3, 3)) == (1, 2, 3)
