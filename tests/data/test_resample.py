"""Horizontally first, whatever Pillow would choose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.resample import FILTERS, resize
from gsb_vit.errors import InputError


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 400), st.integers(1, 80), st.integers(1, 60), st.integers(1, 90), st.sampled_from(sorted(FILTERS)),
    st.floats(0, 0.5, width=32), st.floats(0.5, 1, width=32), st.integers(0, 2**32),
)  # fmt: skip
def test_one_axis_after_the_other_is_the_rule(height, width, to_height, to_width, name, begin, end, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    left, top, right, bottom = begin * width, begin * height, end * width, end * height
    found = resize(image, (to_height, to_width), name, (left, top, right, bottom), 10**6)
    across = image.resize((to_width, height), FILTERS[name], box=(left, 0, right, height))
    assert np.array_equal(found, across.resize((to_width, to_height), FILTERS[name], box=(0, top, to_width, bottom)))


def test_a_tall_sliver_costs_no_more_than_the_part_that_is_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (3_000_000, 2, 3), dtype=np.uint8)
    assert Preprocessing((224, 224))(pixels).shape == (224, 224, 3)  # the rows between would be 2 GB


def test_a_picture_that_would_be_too_large_on_the_way_is_refused():
    with pytest.raises(InputError, match="1 × 90000 pixels is too long: 90000 rows of 30 are more than 90000 pixels"):
        resize(Image.new("RGB", (1, 90_000)), (20, 30), "bicubic", (0, 0, 1, 90_000), 90_000)
