"""Nothing is written over a file of another kind: pictures, trained models, lists and notes stay."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from class_folders import fill
from random_packed import write_random_packed

import gsb_vit
from gsb_vit.app.page import write_app
from gsb_vit.app.pwa import write_pwa
from gsb_vit.data.splits import read_raw
from gsb_vit.errors import InputError
from gsb_vit.export.c_source import write_c
from gsb_vit.files import staged
from gsb_vit.report.page import write_report
from gsb_vit.runtime.packed_file import is_packed

SHAPE = {"image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1, "mlp_hidden": 16}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.safetensors"
    path.parent.mkdir()
    write_random_packed(path, seed=0, num_classes=2, **SHAPE)
    return path


def add_class(model: Path, out: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    gsb_vit.load(model, threads=1).add_class("new", list(pictures), out)


def report(model: Path, out: Path) -> None:
    pytest.importorskip("jinja2")
    for name in ("a", "b"):
        fill(model.parent / "data" / name, 2)
    test = read_raw(str(model.parent / "data")).undivided
    assert test is not None
    write_report(None, packed=model, test=test, out=out)


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "add-class": add_class,
    "app": lambda model, out: write_app([model], out),
    "pwa": lambda model, out: write_pwa([model], out.parent),
    "c": lambda model, out: write_c(model, out.parent, name="own"),
    "header": lambda model, out: write_c(model, out.parent, name="own"),
    "report": report,
}
NAMES = {"add-class": "out", "app": "out", "pwa": "index.html", "c": "own.c", "header": "own.h", "report": "out"}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path, model: Path, way: str) -> None:
    out = tmp_path / "out" / NAMES[way]
    for content in (b"path,label\r\na.png,cat\r\n", b"\x89PNG\r\n\x1a\n", b"\xff" * 20, (0).to_bytes(8, "little")):
        out.parent.mkdir(exist_ok=True)
        out.write_bytes(content)
        with pytest.raises(InputError, match=r"is there already and is not .*; name another file, or remove it first"):
            WAYS[way](model, out)
        assert out.read_bytes() == content
        assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_file_and_one_of_its_own_kind_are_replaced(tmp_path: Path, model: Path, way: str) -> None:
    out = tmp_path / "out" / NAMES[way]
    out.parent.mkdir()
    out.touch()
    WAYS[way](model, out)
    first = out.read_bytes()
    assert first
    WAYS[way](model, out)
    assert len(out.read_bytes()) == len(first)


def test_a_packed_model_is_known_by_its_header(tmp_path: Path, model: Path) -> None:
    assert is_packed(model)
    data = model.read_bytes()
    other = tmp_path / "other"
    no_object = (2).to_bytes(8, "little") + b"[]"
    for damaged, known in ((data[:-5], True), (data[:100], False), (data[:4], False), (no_object, False)):
        other.write_bytes(damaged)
        assert is_packed(other) is known
    assert not is_packed(tmp_path) and not is_packed(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["x" * 250, "é" * 125, "🌷" * 62])
def test_a_name_as_long_as_names_get_can_be_written(tmp_path: Path, name: str) -> None:
    with staged(tmp_path / name) as temporary:
        temporary.write_bytes(b"1")
    assert (tmp_path / name).read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1
