"""Classes of far different size: what is chosen, that it is said, and that every class is shown equally often."""

from pathlib import Path

import numpy as np
import pytest
from class_folders import fill
from hypothesis import given
from hypothesis import strategies as st

from gsb_vit.data.balance import balanced_order, imbalance, resolve
from gsb_vit.data.splits import DataRecipe, read_raw
from gsb_vit.data.stored_split import draw_split, find_split, read_split


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(0, 3))
def test_an_epoch_shows_every_class_equally_often_and_its_pictures_too(drawn: list[int], seed: int) -> None:
    labels = np.array(drawn)
    order = balanced_order(labels, np.random.default_rng(seed))
    assert len(order) == len(labels)
    shown = np.bincount(order, minlength=len(labels))
    classes = [shown[labels == label] for label in np.unique(labels)]
    assert np.ptp([one.sum() for one in classes]) <= 1
    assert all(np.ptp(one) <= 1 for one in classes)
    again = balanced_order(labels, np.random.default_rng(seed))
    assert np.array_equal(order, again)


def test_auto_balances_the_users_own_pictures_beyond_a_ratio() -> None:
    far, near = np.repeat([0, 1, 2], [48, 48, 5]), np.repeat([0, 1], [40, 14])
    assert imbalance(far, 3) == 9.6 and imbalance(far, 4) == float("inf")
    assert resolve("auto", far, 3, own=True) == "sampling"
    assert resolve("auto", near, 2, own=True) == "none" == resolve("auto", far, 3, own=False)
    assert resolve("none", far, 3, own=True) == "none" and resolve("sampling", near, 2, own=False) == "sampling"


@pytest.mark.parametrize(
    ("choice", "kept", "said"), [("auto", "sampling", "every class equally"), ("none",) * 2 + ("large",)]
)
def test_unequal_classes_are_said_and_what_follows_is_kept(tmp_path: Path, choice: str, kept: str, said: str) -> None:
    for name, count in (("many", 48), ("more", 48), ("few", 5)):
        fill(tmp_path / name, count)
    raw = read_raw(str(tmp_path))
    drawn = draw_split(str(tmp_path), raw, DataRecipe(balance=choice))
    line = "\n".join(drawn.lines).partition("unequal classes")[2].replace("\n  ", " ")
    assert said in line and ": many 29, few 3 training pictures, 9.7 times as many;" in line
    assert drawn.stored.balance == kept
    drawn.stored.write(tmp_path)
    assert read_split(tmp_path).balance == kept
    assert find_split(str(tmp_path), raw, read_split(tmp_path)).stored.balance == kept


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("wallflower", "wallflour"), "class names nearly the same, 5 and 48 pictures: wallflour and wallflower"),
        (("wallflower", "rose"), None),
    ],
)
def test_a_small_class_with_nearly_the_name_of_a_large_one_is_told(tmp_path: Path, names, said: str | None) -> None:
    for name, count in zip(names, (48, 5), strict=True):
        fill(tmp_path / name, count)
    lines = draw_split(str(tmp_path), read_raw(str(tmp_path)), DataRecipe()).lines
    assert (said in lines) if said else not any("nearly the same" in line for line in lines)
