import numpy as np
import pytest
from bit_products import mask_dot, popcount, popcount_by_table, sign_dot, xor_popcount
from hypothesis import given, settings
from hypothesis import strategies as st

from gsb_vit.runtime.bits import pack, pad_is_zero, unpack

DEPTHS = (1, 63, 64, 65, 511, 512, 513)
depths = st.sampled_from(DEPTHS)
seeds = st.integers(0, 2**32 - 1)


@given(depths, st.integers(0, 5), seeds)
@settings(max_examples=60, deadline=None)
def test_unpack_undoes_pack(depth, rows, seed):
    bits = np.random.default_rng(seed).random((2, rows, depth)) < 0.5
    words = pack(bits)
    assert words.dtype == np.uint64 and words.shape == (2, rows, -(-depth // 64))
    assert np.array_equal(unpack(words, depth), bits)
    assert pad_is_zero(words, depth)


@pytest.mark.parametrize("depth", DEPTHS)
def test_element_j_of_word_i_is_element_64_i_plus_j(depth):
    for position in {0, depth // 2, depth - 1}:
        bits = np.zeros(depth, dtype=bool)
        bits[position] = True
        words = pack(bits)
        assert [int(word) for word in words] == [
            2 ** (position % 64) if word == position // 64 else 0 for word in range(len(words))
        ]


@given(depths, st.integers(1, 4), st.integers(1, 4), seeds)
@settings(max_examples=60, deadline=None)
def test_packed_products_equal_integer_products(depth, rows, columns, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.random((2, rows, depth)) < rng.random(), rng.random((2, columns, depth)) < rng.random()
    signs_left, signs_right = 2 * left.astype(int) - 1, 2 * right.astype(int) - 1
    words_left, words_right = pack(left), pack(right)
    transposed = signs_right.transpose(0, 2, 1)
    assert np.array_equal(sign_dot(words_left, words_right, depth), signs_left @ transposed)
    assert np.array_equal(mask_dot(words_left, words_right), left.astype(int) @ transposed)
    differing = (left[:, :, None] != right[:, None]).sum(axis=-1)
    assert np.array_equal(xor_popcount(words_left, words_right), differing)


def test_products_broadcast_leading_axes():
    rng = np.random.default_rng(0)
    left, right = rng.random((3, 1, 4, 65)) < 0.5, rng.random((2, 5, 65)) < 0.5
    expected = (2 * left.astype(int) - 1) @ (2 * right.astype(int) - 1).transpose(0, 2, 1)
    assert np.array_equal(sign_dot(pack(left), pack(right), 65), expected)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9))
def test_both_popcounts_equal_pythons(values):
    words = np.array(values, dtype=np.uint64)
    expected = [bin(value).count("1") for value in values]
    assert popcount(words).tolist() == expected
    assert popcount_by_table(words).tolist() == expected


def test_old_numpy_takes_the_table(monkeypatch):
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    bits = np.random.default_rng(1).random((3, 129)) < 0.5
    words = pack(bits)
    signs = 2 * bits.astype(int) - 1
    assert np.array_equal(sign_dot(words, words, 129), signs @ signs.T)
    assert np.array_equal(popcount(words[:, ::2]), popcount_by_table(words[:, ::2]))


def test_zero_and_negative_zero_are_plus_one():
    assert pack(np.array([0.0, -0.0, -1.0, 2.0]) >= 0).tolist() == [0b1011]


def test_pad_is_zero_sees_a_stray_bit():
    assert not pad_is_zero(np.array([[0, 2]], dtype=np.uint64), 65)
    assert pad_is_zero(np.array([[2**64 - 1, 1]], dtype=np.uint64), 65)
    assert pad_is_zero(np.array([[2**64 - 1]], dtype=np.uint64), 64)
