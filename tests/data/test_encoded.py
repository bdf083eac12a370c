"""Data in one file: zip archives that nobody vouches for, lists of paths and labels; and timm's readers."""

import csv
import io
import json
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from class_folders import fill
from PIL import Image
from random_packed import write_random_packed

from gsb_vit import cli
from gsb_vit.data.digests import digest
from gsb_vit.data.encoded import ArchivedPicture, HeldPicture
from gsb_vit.data.pictures import open_picture
from gsb_vit.data.splits import DataRecipe, load_data, read_raw
from gsb_vit.data.stored_split import draw_split, find_split
from gsb_vit.errors import InputError


def png(seed: int, size: tuple[int, int] = (12, 10)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def classes(*tops: str, count: int = 4) -> dict[str, bytes]:
    return {
        f"{top}/{name}/{i}.png": png(hash((top, name, i)) % 2**32)
        for top in tops
        for name in "ab"
        for i in range(count)
    }


def packed(members: dict[str, bytes]) -> dict[str, bytes]:
    return {name.lstrip("/"): data for name, data in members.items()}


@pytest.mark.parametrize("around", ["", "pictures", "deep/er"])
def test_an_archive_is_read_as_the_folder_that_it_holds(tmp_path: Path, around: str) -> None:
    folder = tmp_path / "mine"
    for name in ("rose", "tulip"):
        fill(folder / name, 12)
    fill(folder / "rose" / "more", 2)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, Path(around) / path.relative_to(folder))
    raw, plain = read_raw(str(tmp_path / "mine.zip")), read_raw(str(folder))
    assert raw.class_names == plain.class_names == ("rose", "tulip")
    assert sorted(map(digest, raw.undivided.sources)) == sorted(map(digest, plain.undivided.sources))
    assert len(raw.contents.pictures) == 26 and "26 pictures found" in "\n".join(raw.contents.lines())
    drawn = draw_split(str(tmp_path / "mine.zip"), raw, DataRecipe())
    assert any(line.startswith("2 classes: rose 14, tulip 12") for line in drawn.lines)
    shutil.rmtree(tmp_path / "mine" / "rose" / "nothing", ignore_errors=True)
    moved = find_split(str(folder), plain, drawn.stored)  # unpacked since
    assert [digest(one) for one in moved.data.test.sources] == [digest(one) for one in drawn.data.test.sources]
    assert not list(tmp_path.glob("*.tmp")) and {path.name for path in tmp_path.iterdir()} == {"mine", "mine.zip"}


def test_the_parts_of_an_archive_have_their_usual_names(tmp_path: Path) -> None:
    raw = read_raw(str(pack(tmp_path / "a.zip", {**classes("Train", "val", "TEST"), "notes.txt": b"x"})))
    assert [len(part) for part in (raw.train, raw.validation, raw.test)] == [8, 8, 8]
    assert "1 .txt files" in "\n".join(raw.contents.lines())
    raw = read_raw(str(pack(tmp_path / "b.zip", classes("data/train", "data/valid"))))
    assert [len(part) for part in (raw.train, raw.test)] == [8, 8] and raw.validation is None
    for tops, message in ((("val", "valid", "train"), "keep one folder for each part"), (("test", "x"), "no train/")):
        with pytest.raises(InputError, match=message):
            read_raw(str(pack(tmp_path / "c.zip", classes(*tops))))


def test_members_that_lead_out_or_are_no_files_are_left_aside(tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"
    outside = ("../../x/1.png", "/etc/a/1.png", "a/../../b/2.png", "C:/a/1.png", "c:1.png")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in packed(classes("")).items():
            archive.writestr(name, data)
        for name in (*outside, "a\\..\\1.png"):
            archive.writestr(name, png(1))
        for mode in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
            member = zipfile.ZipInfo(f"a/odd{mode}.png")
            member.external_attr = (mode | 0o644) << 16
            archive.writestr(member, b"/etc/passwd")
        archive.writestr("__MACOSX/a/._1.png", b"x")
        archive.writestr("a/.hidden.png", b"x")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("b/9.png", png(5))
            archive.writestr("b/9.png", png(6))
    raw = read_raw(str(path))
    said = "\n".join(raw.contents.lines())
    assert len(raw.undivided) == 8
    assert f"{len(outside)} members whose names lead out of the archive" in said
    assert "1 members with backslashes in their names (pack again with /)" in said
    assert "3 members that are no regular files" in said and "2 members with the name of another" in said
    assert "1 files or folders of the system" in said and "1 hidden files or folders" in said
    assert {one.name for one in tmp_path.iterdir()} == {"evil.zip"}


@pytest.mark.parametrize("name", ["", ".", "./.", "//"])
def test_members_without_a_name_are_left_aside(tmp_path: Path, name: str) -> None:
    member = zipfile.ZipInfo("x")
    member.filename = name
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for good, data in packed(classes("")).items():
            archive.writestr(good, data)
        archive.writestr(member, png(1))
    raw = read_raw(str(tmp_path / "a.zip"))
    assert raw.class_names == ("a", "b") and len(raw.undivided) == 8
    assert name.endswith("/") or "1 members without a name" in "\n".join(raw.contents.lines())


def test_one_member_by_two_spellings_of_its_name_is_not_counted_twice(tmp_path: Path) -> None:
    raw = read_raw(str(pack(tmp_path / "a.zip", {**packed(classes("")), "a//0.png": png(1), "b/./0.png": png(2)})))
    assert len(raw.undivided) == 6 and "4 members with the name of another" in "\n".join(raw.contents.lines())


def test_a_name_with_a_colon_is_no_drive(tmp_path: Path) -> None:
    raw = read_raw(str(pack(tmp_path / "a.zip", {**packed(classes("")), "cat: small/0.png": png(1)})))
    assert raw.class_names == ("a", "b", "cat: small")


@pytest.mark.parametrize("around", ["", "mine/"])
@pytest.mark.parametrize(
    ("more", "folder"),
    [({"c/": b""}, "c"), ({"c/notes.txt": b"x"}, "c"), ({"c/deep/": b""}, "c"), ({"c/1.jp2": b"x"}, "c")],
)
def test_a_class_folder_without_pictures_is_refused_as_outside_an_archive(
    tmp_path: Path, around: str, more: dict[str, bytes], folder: str
) -> None:
    members = {around + name: data for name, data in (packed(classes("")) | more).items()}
    with pytest.raises(InputError, match=f"class folder {around}{folder}/ holds zero pictures"):
        read_raw(str(pack(tmp_path / "a.zip", members)))


def test_an_empty_class_in_a_part_of_an_archive_is_refused_and_other_folders_are_not(tmp_path: Path) -> None:
    parts = classes("train", "test")
    with pytest.raises(InputError, match="class folder train/c/ holds zero pictures"):
        read_raw(str(pack(tmp_path / "a.zip", {**parts, "train/c/": b""})))
    fine = {"docs/": b"", "docs/a.txt": b"x", "train/": b"", "train/a/": b"", "__MACOSX/c/": b"", "train/.git/x": b""}
    assert len(read_raw(str(pack(tmp_path / "b.zip", {**parts, **fine}))).train) == 8


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = packed(classes(""))
    members["a/bomb.png"] = bytes(40_000_000)
    path = pack(tmp_path / "bomb.zip", members)
    assert path.stat().st_size < 200_000
    monkeypatch.setenv("GSB_VIT_MAX_PIXELS", "10000")
    asked = []
    real = zipfile.ZipExtFile.read

    def read(self, n=-1):
        asked.append(n)
        return real(self, n)

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    with pytest.raises(InputError, match=r"1 of 9 pictures cannot be used: .*a/bomb\.png"):
        draw_split(str(path), read_raw(str(path)), DataRecipe())
    assert max(asked) == 160_001 and min(asked) > 0


def test_archives_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    whole = pack(tmp_path / "a.zip", packed(classes("")), zipfile.ZIP_STORED).read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2], bytes(500)):
        (tmp_path / "b.zip").write_bytes(data)
        with pytest.raises(InputError, match="no zip archive") as caught:
            read_raw(str(tmp_path / "b.zip"))
        assert "\n" not in str(caught.value)
    spoiled = bytearray(whole)
    spoiled[60] ^= 255  # in the first member: its checksum says so
    (tmp_path / "c.zip").write_bytes(spoiled)
    with pytest.raises(InputError, match=r"a/0\.png: cannot be read"):
        draw_split(str(tmp_path / "c.zip"), read_raw(str(tmp_path / "c.zip")), DataRecipe())
    locked = bytearray(whole)
    locked[whole.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "d.zip").write_bytes(locked)
    with pytest.raises(InputError, match="is encrypted"):
        read_raw(str(tmp_path / "d.zip"))
    for members, message in (({"1.png": png(1)}, "no pictures with a class"), ({"a/1.png": png(1)}, "one class")):
        with pytest.raises(InputError, match=message):
            read_raw(str(pack(tmp_path / "e.zip", members)))


def test_predict_takes_the_pictures_of_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shape = dict(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=1, mlp_hidden=16, num_classes=3)
    write_random_packed(tmp_path / "model.safetensors", seed=1, **shape)
    pack(tmp_path / "a.zip", {"x/2.png": png(2), "1.png": png(1), "3.png": b"no picture", "notes.txt": b"x"})
    for seed in (1, 2):
        (tmp_path / f"{seed}.png").write_bytes(png(seed))
    answers = {}
    for paths in (["a.zip"], ["1.png", "2.png"]):
        words = [str(tmp_path / path) for path in paths]
        with pytest.raises(SystemExit) as done:
            cli.main(["predict", str(tmp_path / "model.safetensors"), *words, "--json", "--engine", "reference"])
        said = capsys.readouterr()
        assert done.value.code == (1 if "a.zip" in paths else 0)
        found = json.loads(said.out)
        answers |= {one["path"].rpartition("/")[2]: one.get("predictions") for one in found if "zip" not in one["path"]}
        if "a.zip" in paths:
            assert [one["path"] for one in found] == [
                f"{tmp_path}/a.zip/{name}" for name in ("1.png", "3.png", "x/2.png")
            ]
            assert "3 pictures found\n  ignored: 1 .txt files" in said.err and "not a picture" in found[1]["error"]
            archived = [found[0]["predictions"], found[2]["predictions"]]
    assert archived == [answers["1.png"], answers["2.png"]]


def test_an_archive_that_changes_is_opened_anew(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.zip", {"a/1.png": png(1)})
    one = ArchivedPicture(path, "a/1.png")
    assert one.read(10**6) == png(1) and str(one) == f"{path}/a/1.png"
    pack(tmp_path / "new.zip", {"a/1.png": png(2), "b/2.png": png(3)}).replace(path)
    assert one.read(10**6) == png(2)
    pack(tmp_path / "new.zip", {"b/2.png": png(3)}).replace(path)
    with pytest.raises(InputError, match="is gone from the archive"):
        one.read(1)


@pytest.fixture
def pictures(tmp_path: Path) -> list[tuple[str, str, str]]:
    for name in ("rose", "tulip"):
        fill(tmp_path / "all" / name, 12)
    paths = sorted((tmp_path / "all").rglob("*.png"))
    parts = ["train", "Train", "valid", "TEST"]
    return [(str(p.relative_to(tmp_path)), p.parent.name, parts[i % 4]) for i, p in enumerate(paths)]


def write_list(path: Path, rows: list[tuple], names: tuple[str, ...]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([names, *rows])
    else:
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_list_names_pictures_and_classes(tmp_path: Path, pictures, suffix: str) -> None:
    rows = [(label, path, 7) for path, label, _ in pictures]
    raw = read_raw(str(write_list(tmp_path / f"mine{suffix}", rows, ("label", "path", "more"))))
    assert raw.class_names == ("rose", "tulip") and np.bincount(raw.undivided.labels).tolist() == [12, 12]
    assert raw.undivided.sources[0] == tmp_path / pictures[0][0]
    raw = read_raw(str(write_list(tmp_path / f"parts{suffix}", pictures, ("path", "label", "split"))))
    assert [len(part) for part in (raw.train, raw.validation, raw.test)] == [12, 6, 6]
    data = load_data(str(tmp_path / f"parts{suffix}"), DataRecipe())
    assert len(data.validation) == 6
    numbered = [(path, int(label == "rose") * 9 + 1) for path, label, _ in pictures]
    raw = read_raw(str(write_list(tmp_path / f"numbers{suffix}", numbered, ("path", "label"))))
    assert raw.class_names == ("1", "10")


LIST_MISTAKES = {
    "path,name\nx,y\n": "has the columns 'path, name'; give columns path and label",
    "": "has the columns",
    "path,label\nnowhere.png,a\n": "line 2: no file .*nowhere.png",
    "path,label\nall,a\n": "line 2: no file",
    "path,label\nall/rose/000.png\n": "line 2: label = None",
    "path,label\nall/rose/000.png,\n": "line 2: label = ''",
    "path,label,split\nall/rose/000.png,a,tset\n": "line 2: split = 'tset'; use one of train",
    "path,label,split\nall/rose/000.png,a,train\nall/rose/001.png,b,\n": "some lines have a split and others",
    "path,label,split\nall/rose/000.png,a,test\nall/rose/001.png,b,test\n": "'test' but none for training",
    "path,label,split\nall/rose/000.png,a,train\nall/rose/001.png,b,test\n": "'b' has no pictures in part 'train'|'a'",
    "path,label\nall/rose/000.png,a\n": "one class, 'a'",
    'path,label\n"all/rose/000.png,a\n': "line .*unexpected end|line 2",
}


@pytest.mark.parametrize("text", LIST_MISTAKES)
def test_mistakes_in_a_list_are_named_with_their_line(tmp_path: Path, pictures, text: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(InputError, match=LIST_MISTAKES[text]) as caught:
        read_raw(str(tmp_path / "mine.csv"))
    assert "\n" not in str(caught.value)


def test_mistakes_in_json_lines_are_named_with_their_line(tmp_path: Path, pictures) -> None:
    good = json.dumps({"path": pictures[0][0], "label": "a"})
    for line, message in (
        ("[1]", "no object"),
        ("{", "no JSON"),
        ('{"path": 3, "label": "a"}', "path = 3"),
        ("9" * 5000, "no"),
    ):
        (tmp_path / "mine.jsonl").write_text(f"{good}\n{line}\n")
        with pytest.raises(InputError, match=f"line 2: .*{message}"):
            read_raw(str(tmp_path / "mine.jsonl"))
    (tmp_path / "mine.csv").write_bytes(b"path,label\n\xff,a\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_raw(str(tmp_path / "mine.csv"))


def test_other_files_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"no data set; give a folder of class folders, a \.zip of them, or a list"):
        read_raw(str(tmp_path / "mine.txt"))


def test_a_held_picture_is_one_of_bytes(tmp_path: Path) -> None:
    held = HeldPicture("hfds/x/train/0", png(3))
    (tmp_path / "3.png").write_bytes(png(3))
    assert open_picture(held).size == (12, 10) and digest(held) == digest(tmp_path / "3.png")
    with pytest.raises(InputError, match="hfds/x/train/0"):
        open_picture(HeldPicture("hfds/x/train/0", b"no picture"))


def write_shard(path: Path, seeds: range, spoiled: int | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        for seed in seeds:
            data = b"no picture" if seed == spoiled else png(seed)
            for name, content in ((f"{seed:05}.png", data), (f"{seed:05}.cls", str(seed % 3).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_shards_of_webdataset_are_read_through_timm(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("webdataset", reason="WebDataset shards: without webdataset")
    for number in range(2):
        write_shard(tmp_path / f"mine-{number:03}.tar", range(15 * number, 15 * number + 15))
    raw = read_raw(f"wds/{tmp_path}/mine-{{000..001}}.tar")
    assert raw.class_names == ("0", "1", "2") and np.bincount(raw.undivided.labels).tolist() == [10, 10, 10]
    assert np.array_equal(raw.undivided.sources[7], np.asarray(open_picture(png(7)))) and raw.undivided.labels[7] == 1
    again = read_raw(f"wds/{tmp_path}/mine-{{000..001}}.tar")
    drawn = draw_split("wds", raw, DataRecipe())
    assert find_split("wds", again, drawn.stored).lines == ()
    info = {
        "splits": {
            part: {"name": part, "num_samples": 15, "filenames": [f"mine-{n:03}.tar"], "shard_lengths": [15]}
            for n, part in enumerate(("train", "validation"))
        }
    }
    (tmp_path / "_info.json").write_text(json.dumps(info))
    raw = read_raw(f"wds/{tmp_path}")
    assert [len(part) for part in (raw.train, raw.test)] == [15, 15]


def test_shards_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("webdataset", reason="WebDataset shards: without webdataset")
    write_shard(tmp_path / "mine.tar", range(9), spoiled=4)
    with pytest.raises(InputError, match=r"1 samples cannot be read.*mend them"):
        read_raw(f"wds/{tmp_path}/mine.tar")
    for name in ("pipe:touch x.tar", f"{tmp_path}/no.tar", f"{tmp_path}/mine.txt", f"{tmp_path}", "http://x/y.tar", ""):
        with pytest.raises(InputError) as caught:
            read_raw(f"wds/{name}")
        assert "\n" not in str(caught.value)
    assert not Path("x.tar").exists()
    write_shard(tmp_path / "good.tar", range(9))
    monkeypatch.setenv("GSB_VIT_MAX_MEMORY", "1000")
    with pytest.raises(InputError, match=r"held in memory and take more than 0\.00 MB"):
        read_raw(f"wds/{tmp_path}/good.tar")


def test_what_a_reader_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsb_vit.data.readers.find_spec", lambda name: None)
    for spec, needed in (("wds/x.tar", "timm and webdataset"), ("hfds/x", "timm and datasets")):
        with pytest.raises(InputError, match=rf"{spec} needs {needed}: pip install 'gsb-vit\[readers\]'"):
            read_raw(spec)


def test_a_folder_that_datasets_loads_is_read_through_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("datasets", reason="Hugging Face data sets: without datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for part in ("train", "test"):
        for name in ("rose", "tulip"):
            fill(tmp_path / "mine" / part / name, 3)
    raw = read_raw(f"hfds/{tmp_path}/mine")
    assert raw.class_names == ("rose", "tulip")
    assert [len(part) for part in (raw.train, raw.test)] == [6, 6]
    plain = read_raw(str(tmp_path / "mine"))
    assert sorted(map(digest, raw.train.sources)) == sorted(map(digest, plain.train.sources))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,rose, red\n", "line 2: 3 fields for 2 columns; put quotes around a field with a comma"),
        ("path,label,label\na.png,rose,tulip\n", "2 columns label; keep one of them"),
        ("path;label\na.png;rose\n", "with commas between them"),
        (f"path,label\n{'x' * 5000},rose\n", "line 2: no file .*x…; paths are relative"),
        (f"path,label\n{'x/' * 9000},rose\n", "line 2: no file"),
    ],
)
def test_a_csv_that_says_two_things_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(InputError, match=message) as caught:
        read_raw(str(tmp_path / "a.csv"))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "a.png", "label": "a", "label": "b"}', "label is there 2 times"),
        ('{"path": "a.png", "label": "\\ud800"}', "label = "),
        ('{"path": "a\\udc80.png", "label": "a"}', "path = "),
    ],
)
def test_a_line_of_json_that_says_two_things_or_cannot_be_written_is_refused(
    tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(InputError, match=f"line 1: .*{message}"):
        read_raw(str(tmp_path / "a.jsonl"))


def test_a_picture_that_a_list_names_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "a" / name).write_bytes(png(len(name)))
    lines = ["a/1.png,rose", "a/2.png,tulip", "./a/1.png,rose", f"{tmp_path}/a/../a/2.png,tulip", "a/1.png,tulip"]
    (tmp_path / "a.csv").write_text("path,label\n" + "\n".join(lines))
    raw = read_raw(str(tmp_path / "a.csv"))
    assert raw.undivided.labels.tolist() == [0, 1, 1]  # two labels of one picture contradict: both stay, and are told
    assert "2 lines that name a picture again" in "\n".join(raw.contents.lines())


def test_a_member_that_cannot_be_read_says_so_once(tmp_path: Path) -> None:
    whole = bytearray(pack(tmp_path / "a.zip", {"a/0.png": png(1)}, zipfile.ZIP_STORED).read_bytes())
    whole[whole.find(b"PK\x01\x02") + 10] = 99  # a method that nobody knows
    (tmp_path / "b.zip").write_bytes(whole)
    with pytest.raises(InputError, match=r"pack the archive again$") as caught:
        open_picture(ArchivedPicture(tmp_path / "b.zip", "a/0.png"))
    assert str(caught.value).count("cannot be read") == 1


@pytest.mark.parametrize("spec", ["", "  "])
def test_data_with_an_empty_name_is_not_the_folder_that_this_is_run_in(spec: str) -> None:
    with pytest.raises(InputError, match="empty name"):
        read_raw(spec)
