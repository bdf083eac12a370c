"""A class has one name, however a file system, an archive or a list spells it."""

import csv
import zipfile
from pathlib import Path

import pytest
from class_folders import fill

from gsb_vit.data.class_names import alike, class_name
from gsb_vit.data.held_out import judged_pictures, require_same_classes
from gsb_vit.data.splits import DataRecipe, read_raw
from gsb_vit.data.stored_split import draw_split, find_split
from gsb_vit.errors import InputError
from gsb_vit.runtime.add_class import require_name

ONE, LETTERS = "Caf\u00e9", "Cafe\u0301"  # the forms C and D


def test_forms_of_unicode_and_spaces_around_a_name_are_no_difference() -> None:
    assert class_name(LETTERS) == class_name(f" {ONE} ") == ONE
    assert class_name(" ") == " " and class_name("") == ""
    assert class_name("\u212b") == "\u00c5"  # the sign of the ångström is the letter
    assert class_name("A") != class_name("a")


def make(kind: str, root: Path, names: tuple[str, ...]) -> Path:
    """Data of four pictures a class, as a folder, an archive or a list."""
    for name in names:
        fill(root / "folder" / name, 4)
    files = sorted((root / "folder").rglob("*.png"))
    if kind == "zip":
        with zipfile.ZipFile(root / "all.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(root))
        return root / "all.zip"
    if kind == "csv":
        with (root / "all.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerows([("path", "label"), *((str(one), one.parent.name) for one in files)])
        return root / "all.csv"
    return root / "folder"


@pytest.mark.parametrize("kind", ["folder", "zip", "csv"])
def test_two_spellings_of_a_name_are_one_class(tmp_path: Path, kind: str) -> None:
    raw = read_raw(str(make(kind, tmp_path, ("rose", LETTERS, ONE, "rose "))))
    assert raw.class_names == (ONE, "rose")
    assert raw.undivided is not None and raw.undivided.labels.tolist().count(0) == 8
    for source, label in zip(raw.undivided.sources, raw.undivided.labels, strict=True):
        assert class_name(str(source).split("/")[-2]) == raw.class_names[label]


def test_a_list_that_names_a_picture_in_both_spellings_names_it_twice(tmp_path: Path) -> None:
    folder = make("folder", tmp_path, (ONE, "rose"))
    lines = [f"folder/{ONE}/000.png,{label}" for label in (ONE, LETTERS)] + ["folder/rose/000.png,rose"]
    (tmp_path / "all.csv").write_text("path,label\n" + "\n".join(lines), encoding="utf-8")
    raw = read_raw(str(folder.parent / "all.csv"))
    assert raw.undivided is not None and raw.undivided.labels.tolist() == [0, 1]


def test_parts_of_a_folder_may_spell_a_class_in_two_ways(tmp_path: Path) -> None:
    for part, name in (("train", ONE), ("val", LETTERS)):
        fill(tmp_path / part / name, 2)
        fill(tmp_path / part / "rose", 2)
    raw = read_raw(str(tmp_path))
    assert raw.class_names == (ONE, "rose") and raw.test is not None and raw.test.labels.tolist() == [0, 0, 1, 1]


def test_two_spellings_of_one_name_alone_are_one_class_too_few(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 1 class"):
        read_raw(str(make("folder", tmp_path, (ONE, LETTERS))))


@pytest.mark.parametrize("own", [(LETTERS, "rose"), (ONE, "rose"), ("rose", LETTERS)])
def test_a_model_is_judged_on_data_that_spells_its_classes_otherwise(tmp_path: Path, own: tuple[str, ...]) -> None:
    judged = judged_pictures(str(make("folder", tmp_path, (LETTERS, "rose"))), {}, own)
    require_same_classes(own, judged.class_names, "data")
    assert judged.given == 8 and judged.class_names == tuple(class_name(one) for one in own)
    for source, label in zip(judged.pictures.sources, judged.pictures.labels, strict=True):
        assert class_name(Path(source).parent.name) == judged.class_names[label]


def test_a_run_goes_on_with_an_archive_of_its_folder_whatever_the_order_of_the_classes(tmp_path: Path) -> None:
    """Lists order numbers as numbers; the labels are those of the run."""
    folder = make("folder", tmp_path, ("1", "2", "10", LETTERS))
    drawn = draw_split(str(folder), read_raw(str(folder)), DataRecipe())
    assert drawn.data.class_names == ("1", "10", "2", ONE)
    for kind in ("zip", "csv"):
        path = make(kind, tmp_path, ("1", "2", "10", LETTERS))
        found = find_split(str(path), read_raw(str(path)), drawn.stored)
        assert found.data.class_names == drawn.data.class_names and not found.lines
        assert found.data.train.labels.tolist() == drawn.data.train.labels.tolist()


def test_a_run_on_a_folder_of_numbers_goes_on_with_a_list_of_it(tmp_path: Path) -> None:
    folder = make("folder", tmp_path, ("1", "2", "10"))
    drawn = draw_split(str(folder), read_raw(str(folder)), DataRecipe())
    path = make("csv", tmp_path, ("1", "2", "10"))
    raw = read_raw(str(path))
    assert raw.class_names == ("1", "2", "10") != drawn.data.class_names
    found = find_split(str(path), raw, drawn.stored)
    assert found.data.test.labels.tolist() == drawn.data.test.labels.tolist()


def test_an_archive_has_its_folders_classes_in_their_order(tmp_path: Path) -> None:
    names = ("1", "2", "10", "02")
    folder, archive = (read_raw(str(make(kind, tmp_path, names))).class_names for kind in ("folder", "zip"))
    assert archive == folder == ("02", "1", "10", "2")


def test_names_that_read_alike_are_told(tmp_path: Path) -> None:
    assert list(alike(("Cat", "cat", "dog", "ﬁsh", "fish", "a  b", "a b"))) == [
        ("Cat", "cat"),
        ("ﬁsh", "fish"),
        ("a  b", "a b"),
    ]
    folder = make("folder", tmp_path, ("Cat", "cat", "dog"))
    (line,) = (one for one in draw_split(str(folder), read_raw(str(folder)), DataRecipe()).lines if "alike" in one)
    assert line == "names that read alike: Cat and cat; give them one name if they are one class"
    folder = make("folder", tmp_path / "other", ("cat", "dog"))
    assert not any("alike" in one for one in draw_split(str(folder), read_raw(str(folder)), DataRecipe()).lines)


def test_a_class_that_is_added_is_another_one_in_any_spelling() -> None:
    with pytest.raises(InputError, match="already"):
        require_name((LETTERS, "rose"), ONE)
    with pytest.raises(InputError, match="already"):
        require_name((ONE, "rose"), LETTERS)
    assert require_name(("rose",), LETTERS) == ONE
