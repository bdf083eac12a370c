"""What a folder of pictures holds: formats, depth, names of the parts, and what is left aside, said by reason."""

import os
from pathlib import Path

import numpy as np
import pytest
from class_folders import fill

from gsb_vit.data import folder as data_folder
from gsb_vit.data import pictures
from gsb_vit.data.folder import read_folder, survey
from gsb_vit.data.held_out import find_pictures
from gsb_vit.data.splits import DataRecipe, load_data, read_raw
from gsb_vit.errors import InputError


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".webp", ".gif", ".bmp", ".tif", ".JPG", ".ppm"])
def test_formats_that_pillow_opens_are_used(tmp_path: Path, suffix: str) -> None:
    if suffix in data_folder.OPTIONAL_SUFFIXES and not data_folder.can_open(suffix):
        pytest.skip(f"this Pillow cannot open {suffix}")
    for name in "ab":
        fill(tmp_path / name, 12, suffix)
    raw = read_folder(tmp_path)
    assert np.bincount(raw.undivided.labels).tolist() == [12, 12]
    assert len(find_pictures([tmp_path])) == 24
    assert "\n".join(raw.contents.lines()) == f"{tmp_path}: 24 pictures found"


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where pillow-heif is not installed."""
    monkeypatch.setattr(pictures, "can_open_heif", lambda: False)
    monkeypatch.setattr(data_folder, "can_open", lambda suffix: data_folder.OPTIONAL_SUFFIXES[suffix] != "heif")


def test_what_is_ignored_is_said_with_reason_count_and_example(tmp_path: Path, without_heif) -> None:
    for name in "ab":
        fill(tmp_path / name, 3)
    for i in range(4):
        (tmp_path / "a" / f"{i}.heic").write_bytes(b"phone")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "Thumbs.db").write_text("x")
    (tmp_path / "a" / ".DS_Store").write_text("x")
    (tmp_path / "a" / "._000.png").write_text("x")
    (tmp_path / "b" / "img001").write_text("x")
    (tmp_path / "b" / "lost.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "loose.png").write_bytes((tmp_path / "a" / "000.png").read_bytes())
    fill(tmp_path / "__MACOSX" / "a", 2)
    os.mkfifo(tmp_path / "b" / "pipe.png")  # opening it would wait for ever
    said: list[str] = []
    assert len(find_pictures([tmp_path], said.append)) == 7  # the loose one is a picture to name, if not to train on
    for lines in (read_folder(tmp_path).contents.lines(), said):
        line = " ".join(" ".join(lines).split())
        assert "4 .heic pictures (not read here; pip install 'gsb-vit[heif]', or convert them to PNG" in line
        assert "1 .txt files (no format that is read), as a/notes.txt" in line
        assert "2 hidden files or folders, as a/.DS_Store" in line
        assert "2 files or folders of the system" in line
        assert "1 files without a suffix, as b/img001" in line
        assert "1 broken links, as b/lost.png" in line and "1 things that are no files, as b/pipe.png" in line
        assert "\n" not in line
    contents = read_folder(tmp_path).contents
    assert len(contents.pictures) == 6 and "1 in no class folder, as loose.png" in "\n".join(contents.lines())


def test_a_class_of_unread_formats_names_what_it_holds(tmp_path: Path, without_heif) -> None:
    fill(tmp_path / "a", 2)
    (tmp_path / "b").mkdir()
    for i in range(12):
        (tmp_path / "b" / f"{i}.HEIC").write_bytes(b"phone")
    with pytest.raises(InputError, match=r"zero pictures, but 12 \.heic pictures \(not read here; pip install"):
        read_folder(tmp_path)
    with pytest.raises(InputError, match="without pictures, but 12"):
        find_pictures([tmp_path / "b"])


def test_pictures_at_any_depth_belong_to_their_class_folder(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "camera 1" / "monday", 2)
    fill(tmp_path / "a", 1)
    fill(tmp_path / "b" / "train", 3)  # below a class folder no name has a meaning
    raw = read_folder(tmp_path)
    assert raw.class_names == ("a", "b") and np.bincount(raw.undivided.labels).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("training", "validation", "test"),
    [
        ("train", "valid", "test"),
        ("Train", "validation", "Test"),
        ("training", "val", "testing"),
        ("TRAINING", "VALID", "TESTING"),
    ],
)
def test_the_parts_may_have_any_usual_name(tmp_path: Path, training: str, validation: str, test: str) -> None:
    for part, count in ((training, 4), (validation, 2), (test, 3)):
        for name in "ab":
            fill(tmp_path / part / name, count)
    fill(tmp_path / "extra" / "a", 5)
    (tmp_path / "labels.csv").write_text("x")
    raw = read_folder(tmp_path)
    assert raw.class_names == ("a", "b")
    assert [len(part) for part in (raw.train, raw.validation, raw.test)] == [8, 4, 6]
    assert "/, which is read, as extra" in "\n".join(raw.contents.lines())
    data = load_data(str(tmp_path), DataRecipe())
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 4, 6]


def test_parts_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    for part in ("train", "val", "valid"):
        for name in "ab":
            fill(tmp_path / part / name, 1)
    with pytest.raises(InputError, match="both val/ and valid/"):
        read_folder(tmp_path)
    other = tmp_path / "other"
    for name in ("test/a", "test/b", "a", "b"):
        fill(other / name, 1)
    with pytest.raises(InputError, match="test/ but no train/, and a/ beside it"):
        read_folder(other)


def test_a_class_may_be_called_train_and_one_part_alone_is_undivided(tmp_path: Path) -> None:
    for name in ("bus", "train", "tram"):
        fill(tmp_path / "vehicles" / name, 2)
    assert read_folder(tmp_path / "vehicles").class_names == ("bus", "train", "tram")
    for name in "ab":
        fill(tmp_path / "alone" / "Train" / name, 4)
    raw = read_folder(tmp_path / "alone")
    assert raw.class_names == ("a", "b") and len(raw.undivided) == 8


def test_circles_of_links_end_and_nothing_counts_twice(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3)
    fill(tmp_path / "elsewhere", 2)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    found = survey(tmp_path)
    assert len(found.pictures) == 5
    assert "links to folders that are read already" in "\n".join(found.lines())
    assert len(survey(tmp_path / "a").pictures) == 5  # over the link, once


def test_a_folder_named_like_a_built_in_set_is_not_shadowed(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    assert len(read_raw("digits").undivided) == 1797
    for name in "ab":
        fill(Path("digits") / name, 2)
    with pytest.raises(InputError, match=r"built-in set and a folder here; give \./digits .*digits: for the set"):
        read_raw("digits")
    assert read_raw("./digits").class_names == ("a", "b")
    assert len(read_raw("digits:").undivided) == 1797
