"""Near copies are found by what they show, and stay in one part of a drawn split."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from gsb_vit.data.likeness import BITS, NEAR, group_copies, picture_hash, thumbnail
from gsb_vit.data.splits import DataRecipe, read_raw, stratified_split
from gsb_vit.data.stored_split import draw_split, read_split
from gsb_vit.errors import InputError


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A smooth random picture: what photographs have in common is that near pixels are alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def hash_of(image: Image.Image) -> np.ndarray | None:
    return picture_hash(thumbnail(image), image.size)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


COPIES = {
    "saved at quality 30": lambda one: as_jpeg(one, 30),
    "halved": lambda one: one.resize((80, 60), Image.Resampling.LANCZOS),
    "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.15),
    "greyed": lambda one: one.convert("L").convert("RGB"),
    "cut": lambda one: one.crop((1, 1, 159, 119)),
}


@pytest.mark.parametrize("change", COPIES)
def test_what_shows_the_same_photograph_is_near_and_what_does_not_is_far(change: str) -> None:
    for seed in range(5):
        own, other = hash_of(photo(seed)), hash_of(photo(seed + 100))
        assert own.shape == (BITS,)
        assert (own != hash_of(COPIES[change](photo(seed)))).sum() <= NEAR
        assert (own != other).sum() > 2 * NEAR


def test_small_and_plain_pictures_have_no_hash() -> None:
    assert hash_of(photo(0, (100, 15))) is None and hash_of(photo(0, (100, 16))) is not None
    assert hash_of(Image.new("RGB", (64, 64), (200, 10, 10))) is None
    assert group_copies([None, None, None], ["x", "y", "x"]).tolist() == [0, 1, 0]
    assert group_copies([None, None], ["", ""]).tolist() == [0, 1]
    assert group_copies([], []).tolist() == []


def plain_groups(bits: np.ndarray) -> list[int]:
    """Every pair, one after the other."""
    group = list(range(len(bits)))
    for i in range(len(bits)):
        for j in range(i):
            if (bits[i] != bits[j]).sum() <= NEAR and group[i] != group[j]:
                low, high = sorted((group[i], group[j]))
                group = [low if one == high else one for one in group]
    return group


@pytest.mark.parametrize("rows", [1, 3, 1024])
def test_groups_are_those_of_every_pair_whatever_the_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsb_vit.data.likeness._ROWS", rows)
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2, (40, BITS)).astype(bool)
    for i in range(1, 40):
        if i % 3:  # chains: each a step of 20 to 44 bits away from an earlier one
            bits[i] = bits[rng.integers(0, i)]
            flipped = rng.permutation(BITS)[: rng.integers(20, 45)]
            bits[i, flipped] ^= True
    found = group_copies(list(bits), [str(i) for i in range(40)])
    assert found.tolist() == plain_groups(bits) and 5 < len(set(found)) < 35


def test_thousands_of_pictures_and_a_crowd_of_copies_take_no_time() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (4000, BITS)).astype(bool)
    bits[2000:] = bits[0]
    bits[np.arange(2000, 4000), rng.integers(0, BITS, 2000)] ^= True  # two bits at most between any two
    groups = group_copies(list(bits), [str(i) for i in range(4000)])
    assert (groups == 0).sum() == 2001 and len(np.unique(groups)) == 2000


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=3, max_size=60), st.integers(0, 5))
def test_a_group_is_never_in_two_parts_unless_it_is_the_whole_class(drawn: list[tuple[int, int]], seed: int) -> None:
    labels, groups = np.array(drawn).T
    groups = groups + 10 * labels * (groups > 1)  # groups 0 and 1 may lie in several classes
    kept, cut = stratified_split(labels, 0.3, np.random.default_rng(seed), groups)
    assert sorted([*kept, *cut]) == list(range(len(labels)))
    first = {int(group): int(labels[np.flatnonzero(groups == group)[0]]) for group in np.unique(groups)}
    for group in set(groups[kept]) & set(groups[cut]):
        assert list(first.values()).count(first[group]) == 1
    for label in set(first.values()):  # a class of two groups or more is in both parts, where it is to be
        own = [group for group in first if first[group] == label]
        pictures = int(np.isin(groups, own).sum())
        if len(own) > 1 and round(0.3 * pictures):
            assert set(own) & set(groups[kept]) and set(own) & set(groups[cut])


def test_groups_of_one_change_no_draw() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 100)
    before = stratified_split(labels, 0.3, np.random.default_rng(5))
    for numbers in (np.arange(100), np.random.default_rng(1).permutation(100)):
        after = stratified_split(labels, 0.3, np.random.default_rng(5), numbers)
        assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def write(folder: Path, seeds: range, **save: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        photo(seed).save(folder / f"{seed:03}{'-again' if save else ''}.{'jpg' if save else 'png'}", **save)


def test_a_folder_with_near_copies_keeps_them_together_and_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a", range(20))
    write(tmp_path / "a", range(8), quality=60)
    write(tmp_path / "b", range(100, 120))
    write(tmp_path / "b", range(18, 19), quality=60)  # of a picture of class a
    (tmp_path / "b" / "copy.png").write_bytes((tmp_path / "b" / "100.png").read_bytes())
    drawn = draw_split(str(tmp_path), read_raw(str(tmp_path)), DataRecipe())
    text = "\n".join(drawn.lines)
    assert "2 classes: a 28, b 22" in text
    assert "sizes: 160 × 120; all in colour" in text
    assert "copies: 1 exact and 9 near, in 10 groups; each stays in one part" in text
    assert "labels that contradict: copies in several classes, once, as\n  a/018.png\n  b/018-again.jpg" in text
    assert "flatter" not in text
    home = {}
    for name, part in drawn.stored.parts.items():
        home |= dict.fromkeys(map(str, part.names), name)
    assert len(drawn.stored.copies) == 10
    for group in drawn.stored.copies:
        assert len({home[name] for name in group}) == 1
    drawn.stored.write(tmp_path)
    assert read_split(tmp_path) == drawn.stored
    old = json.loads((tmp_path / "split.json").read_text())
    del old["copies"]
    (tmp_path / "split.json").write_text(json.dumps(old))
    assert read_split(tmp_path).copies == ()
    told = draw_split(str(tmp_path), read_raw(str(tmp_path)), DataRecipe(near_duplicates="ignore"))
    assert not told.stored.copies and not any("near" in line for line in told.lines)


def test_near_copies_across_folders_of_the_user_are_counted_and_nothing_moves(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 50)):
        write(tmp_path / "train" / name, range(first, first + 12))
        write(tmp_path / "test" / name, range(first + 20, first + 26))
    write(tmp_path / "test" / "a", range(3), quality=60)
    drawn = draw_split(str(tmp_path), read_raw(str(tmp_path)), DataRecipe())
    assert len(drawn.data.test) == 15
    text = "\n".join(drawn.lines)
    assert (
        "near copies of training pictures flatter the model: 3 of 15 test pictures, as\n  test/a/000-again.jpg" in text
    )
    assert len(drawn.stored.copies) == 3


def test_a_class_of_one_photograph_is_divided_and_said(tmp_path: Path) -> None:
    write(tmp_path / "a", range(10))
    for quality in range(30, 80, 5):
        write(tmp_path / f"b{quality}", range(60, 61), quality=quality)
        (tmp_path / "b").mkdir(exist_ok=True)
        next((tmp_path / f"b{quality}").iterdir()).rename(tmp_path / "b" / f"{quality}.jpg")
        (tmp_path / f"b{quality}").rmdir()
    drawn = draw_split(str(tmp_path), read_raw(str(tmp_path)), DataRecipe())
    assert np.bincount(drawn.data.test.labels).tolist() == [3, 3]
    assert any("flatter the model: 3 of 6 test pictures" in line for line in drawn.lines)


@pytest.mark.parametrize("alone", [0, 1])
def test_a_class_of_copies_of_another_names_the_way_out(tmp_path: Path, alone: int) -> None:
    write(tmp_path / "a", range(10))
    write(tmp_path / "b", range(50, 50 + alone))
    (tmp_path / "b").mkdir(exist_ok=True)
    for quality in range(50, 80, 5):
        photo(0).save(tmp_path / "b" / f"{quality}.jpg", quality=quality)
    with pytest.raises(InputError) as refused:
        draw_split(str(tmp_path), read_raw(str(tmp_path)), DataRecipe())
    assert str(refused.value) == (
        f"{str(tmp_path)!r}: class 'b' has zero test pictures: 6 of its pictures are copies of others, and copies stay "
        "in one part of the split; remove copies, add pictures, or add --set data.near_duplicates=ignore"
    )
    drawn = draw_split(str(tmp_path), read_raw(str(tmp_path)), DataRecipe(near_duplicates="ignore"))
    assert (np.bincount(drawn.data.test.labels) > 0).all()


def test_built_in_sets_are_split_as_ever() -> None:
    pytest.importorskip("sklearn")
    raw = read_raw("digits")
    drawn = draw_split("digits", raw, DataRecipe())
    kept, cut = stratified_split(raw.undivided.labels, 0.3, np.random.default_rng([0, 0]))
    assert drawn.data.test.labels.tolist() == raw.undivided.labels[cut].tolist()
    assert drawn.findings is None and drawn.stored.copies == () and len(kept) == len(raw.undivided) - len(cut)
