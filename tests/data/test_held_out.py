"""Held-out means held out: a picture is known by its bytes, whatever its file or folder is called."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from class_folders import fill

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.digests import SHORT, digest, pack_seen, unpack_seen
from gsb_vit.data.held_out import SPLIT_OPTIONS, Judged, judged_pictures
from gsb_vit.data.splits import DataRecipe, read_raw
from gsb_vit.data.stored_split import draw_split, find_split, read_split
from gsb_vit.errors import InputError

CLASSES = ("a", "b", "c")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of 96: 288 pictures, as in the issue."""
    for name in CLASSES:
        fill(tmp_path / "mine" / name, 96)
    return tmp_path / "mine"


def draw(folder: Path, recipe: DataRecipe | None = None, **options):
    return draw_split(str(folder), read_raw(str(folder)), recipe or DataRecipe(), **options)


def provenance_of(drawn, folder: Path) -> dict:
    split = {"classes": "all", "split_seed": 0, "test_fraction": 0.3, "validation_fraction": 0.15}
    return {"data": folder.name, "split": split, "seen": pack_seen(drawn.stored.seen)}


def test_a_copy_of_the_training_folder_is_known_by_any_name(pictures: Path, tmp_path: Path) -> None:
    drawn = draw(pictures)
    tested = len(drawn.data.test)
    for name in ("mine", "elsewhere/other name"):
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(pictures, folder)
        judged = judged_pictures(str(folder), provenance_of(drawn, pictures))
        assert (judged.given, judged.seen, len(judged.pictures)) == (288, 288 - tested, tested)
        assert f"288 pictures of {folder}, {288 - tested} of them seen in training" in judged.line


def test_a_picture_added_to_every_class_is_held_out_and_redraws_nothing(pictures: Path) -> None:
    drawn = draw(pictures)
    before = {digest(source) for source in drawn.data.test.sources}
    for name in CLASSES:
        fill(pictures / name, 1, start=500)
        (pictures / name / "500.png").rename(pictures / name / "000a.png")  # among the others, not behind them
    judged = judged_pictures(str(pictures), provenance_of(drawn, pictures))
    found = {digest(source) for source in judged.pictures.sources}
    assert before < found and len(found) == len(before) + 3 and not found & drawn.stored.seen


def test_new_pictures_in_a_folder_of_the_old_name_are_all_judged(pictures: Path, tmp_path: Path) -> None:
    drawn = draw(pictures)
    for name in CLASSES:
        fill(tmp_path / "new" / "mine" / name, 24)
    judged = judged_pictures(str(tmp_path / "new" / "mine"), provenance_of(drawn, pictures))
    assert (judged.given, judged.seen, len(judged.pictures)) == (72, 0, 72)


def test_pictures_trained_on_do_not_count_in_a_test_part_either(pictures: Path, tmp_path: Path) -> None:
    drawn = draw(pictures)
    other = tmp_path / "published"
    for part, count in (("train", 2), ("test", 6)):
        for name in CLASSES:
            fill(other / part / name, count)
    shutil.copy(drawn.data.train.sources[0], other / "test" / "a" / "copied.png")
    judged = judged_pictures(str(other), provenance_of(drawn, pictures))
    assert (judged.given, judged.seen, len(judged.pictures)) == (19, 1, 18)


def test_where_all_are_seen_the_way_out_is_named_and_judging_on_all_is_said(pictures: Path, tmp_path: Path) -> None:
    drawn = draw(pictures)
    for source, label in zip(drawn.data.train.sources, drawn.data.train.labels, strict=True):
        (tmp_path / "seen" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "seen" / CLASSES[label])
    count = len(drawn.data.train)
    with pytest.raises(InputError, match=f"all {count} pictures .* seen in training; .*--all"):
        judged_pictures(str(tmp_path / "seen"), provenance_of(drawn, pictures))
    judged = judged_pictures(str(tmp_path / "seen"), provenance_of(drawn, pictures), everything=True)
    assert (judged.given, judged.seen, len(judged.pictures)) == (count, count, count)
    assert "judged on all, the seen ones too" in judged.line


def test_a_model_of_before_is_judged_by_the_old_rule_and_it_is_said(pictures: Path) -> None:
    old = provenance_of(draw(pictures), pictures)
    del old["seen"]
    judged = judged_pictures(str(pictures), old)
    assert judged.seen is None and judged.given == 288 and len(judged.pictures) == len(draw(pictures).data.test)
    assert "does not say which pictures it has seen" in judged.line
    assert len(judged_pictures(str(pictures), {**old, "data": "another"}).pictures) == 288


def test_digests_in_a_model_file_are_small_and_checked() -> None:
    arrays = [np.full((2, 2), i, np.uint16) for i in range(1000)]
    packed = pack_seen(digest(one) for one in arrays)
    assert len(json.dumps(packed)) < 10_800  # for a thousand pictures, as the documentation says
    assert unpack_seen({"seen": packed}) == {digest(one)[: 2 * SHORT] for one in arrays}
    assert digest(arrays[7]) != digest(arrays[7].astype(np.uint8)) != digest(arrays[7].reshape(4, 1))
    assert unpack_seen({}) is None
    for wrong in (5, {}, {**packed, "count": 999}, {**packed, "pictures": "?"}, {**packed, "digest": "md5/8"}):
        with pytest.raises(InputError, match="digests of its training pictures are damaged"):
            unpack_seen({"seen": wrong})


def test_a_stored_split_is_found_again_wherever_its_pictures_lie(pictures: Path, tmp_path: Path) -> None:
    drawn = draw(pictures)
    run = tmp_path / "run"
    run.mkdir()
    drawn.stored.write(run)
    assert read_split(run) == drawn.stored
    moved = pictures.rename(tmp_path / "moved")
    for name in CLASSES:
        fill(moved / name, 2, start=700)
    again = find_split(str(moved), read_raw(str(moved)), read_split(run))
    assert again.lines == ("6 pictures are new since the run began; they are ignored",)
    for part in ("train", "validation", "test"):
        before, after = getattr(drawn.data, part), getattr(again.data, part)
        assert [one.name for one in before.sources] == [one.name for one in after.sources]
        assert before.labels.tolist() == after.labels.tolist()


def test_pictures_that_are_gone_stop_a_resumed_run_or_are_counted(pictures: Path) -> None:
    drawn = draw(pictures)
    gone = drawn.data.train.sources[3]
    gone.unlink()
    raw = read_raw(str(pictures))
    with pytest.raises(InputError, match=f"1 of the run's {len(drawn.data.train)} training .*{gone.name}.*--allow-mis"):
        find_split(str(pictures), raw, drawn.stored)
    again = find_split(str(pictures), raw, drawn.stored, allow_missing=True)
    assert len(again.data.train) == len(drawn.data.train) - 1 and len(again.data.test) == len(drawn.data.test)
    assert again.stored == drawn.stored  # what has been seen stays seen
    drawn.data.test.sources[0].unlink()
    assert len(find_split(str(pictures), read_raw(str(pictures)), drawn.stored, allow_missing=True).lines) == 2


def test_shots_leave_pictures_that_are_not_new(pictures: Path) -> None:
    raw = read_raw(str(pictures))
    drawn = draw_split(str(pictures), raw, DataRecipe(shots=10))
    assert len(drawn.data.train) + len(drawn.data.validation) == 30
    assert find_split(str(pictures), raw, drawn.stored).lines == ()


def test_copies_of_training_pictures_test_nothing(pictures: Path) -> None:
    first = draw(pictures)
    original, copy = first.data.train.sources[0], first.data.test.sources[0]
    copy.write_bytes(original.read_bytes())
    apart = DataRecipe(near_duplicates="ignore")
    drawn = draw(pictures, apart)
    assert len(drawn.data.test) == len(first.data.test) - 1 and drawn.lines[0].startswith(
        "left out of the test, copies of"
    )
    assert drawn.stored.tested_on_seen == 0
    taught = frozenset(digest(one)[: 2 * SHORT] for one in first.data.test.sources[1:4])
    drawn = draw(pictures, apart, taught=taught)
    assert len(drawn.data.test) == len(first.data.test) - 4 and set(drawn.stored.taught) == taught


def test_bad_pictures_are_found_before_anything_trains_and_may_be_left_out(pictures: Path) -> None:
    for number in range(5):
        path = pictures / "b" / f"{number:03}.png"
        path.write_bytes(path.read_bytes()[:90])
    (pictures / "c" / "000.png").write_text("not a picture")
    seen = []

    def watch(count: int):
        return lambda: seen.append(count)

    with pytest.raises(InputError, match=r"6 of 288 pictures cannot be used: .*000\.png.*, …; .*--skip-bad") as caught:
        draw(pictures, watch=watch)
    assert "\n" not in str(caught.value) and seen == [288] * 288
    drawn = draw(pictures, skip_bad=True)
    assert len(drawn.stored.left_out) == 6 and drawn.lines[0] == "6 undecodable pictures left out:"
    used = sum(len(part) for part in (drawn.data.train, drawn.data.validation, drawn.data.test))
    assert used == 282 and find_split(str(pictures), read_raw(str(pictures)), drawn.stored).lines == ()


def test_what_is_judged_is_told_in_lines_of_80_cells_and_names_are_whole() -> None:
    nothing = LabelledPictures((), np.array([], dtype=np.int64))
    short = Judged(
        ("a", "b"), nothing, 9, 2, ("9 pictures of mine, 2 of them seen in training", "judged on the other 7")
    )
    assert short.lines == [short.line] == ["9 pictures of mine, 2 of them seen in training; judged on the other 7"]
    name = "a long name; of a file/" * 6
    text = f"9 pictures of {name}, 2 of them seen in training"
    long = Judged(("a", "b"), nothing, 9, 2, (text, "judged on the other 7"), (name, name, "x", "y"))
    assert long.line == f"{text}; judged on the other 7; 4 that cannot be used are left out: {name}, {name}, x, …"
    left_out = ["  4 that cannot be used are left out:", f"    {name}", f"    {name}", "    x", "    …"]
    assert long.lines == [text, "  judged on the other 7", *left_out]


def test_a_test_part_of_nothing_but_copies_is_said(tmp_path: Path) -> None:
    for name in CLASSES:
        original = fill(tmp_path / name, 1) / "000.png"
        for i in range(1, 10):
            shutil.copy(original, tmp_path / name / f"{i:03}.png")
    drawn = draw(tmp_path)
    assert len(drawn.data.test) == 9 == drawn.stored.tested_on_seen
    assert drawn.lines[0].startswith("all 9 test pictures are copies")
    with pytest.raises(InputError, match="all 30 pictures"):
        judged_pictures(str(tmp_path), provenance_of(drawn, tmp_path))


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"digest": "md5"}'])
def test_a_damaged_split_is_named(pictures: Path, damage: bytes) -> None:
    draw(pictures).stored.write(pictures)
    (pictures / "split.json").write_bytes(damage)
    with pytest.raises(InputError, match=r"split\.json is damaged .*; bring it back from a copy"):
        read_split(pictures)


ODD = [None, True, "x", -1, 1.5, [1], {"a": 1}, 10**30]
FITS = {"shots": (None, 10**30), "split_seed": (10**30,), "classes": ("x",)}


@pytest.mark.parametrize("name", SPLIT_OPTIONS)
def test_split_options_of_a_model_that_are_none_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mine"
    for label in CLASSES:
        fill(folder / label, 4)
    for value in (one for one in ODD if one not in FITS.get(name, ())):
        old = {"data": "mine", "split": {name: value}}
        with pytest.raises(InputError, match=f"split option {name} = .* is damaged"):
            judged_pictures(str(folder), old, CLASSES)
        assert judged_pictures(str(folder), old, CLASSES, everything=True).given == 12
