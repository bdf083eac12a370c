"""Numbers of a model that overflow are an error, in both engines and on every instruction set, never an answer."""

from dataclasses import replace

import numpy as np
import pytest
from random_packed import TINY, random_packed, random_pictures

from gsb_vit.errors import InputError
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.reference import NOT_FINITE, ReferenceModel, layer_norm

_native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")

SHAPE = dict(TINY, depth=2, image_size=32)
HUGE = np.float32(3e38)


def model_with(changes, **options):
    model = random_packed(seed=7, **SHAPE)
    tensors = dict(model.tensors)
    for name, change in changes.items():
        tensors[name] = change(tensors[name].copy())
    return replace(model, tensors=tensors, architecture=replace(model.architecture, **options))


def filled(value):
    return lambda array: np.full_like(array, value)


def row(index, value):
    def change(array):
        array[index] = value
        return array

    return change


OVERFLOWS = {
    "logits": {"heads.0.scale": filled(HUGE)},
    "one class": {"heads.1.scale": row(2, HUGE), "heads.1.shift": filled(1)},
    "two heads cancel": {"heads.0.scale": filled(HUGE), "heads.1.scale": filled(-HUGE)},
    "patches": {"patch_embed.scale": filled(HUGE)},
    "position of one patch": {"patch_embed.position": row(3, HUGE)},
    "class token": {"prefix_tokens": row(0, HUGE)},
    "projection": {"blocks.0.attn.proj.scale": filled(HUGE)},
    "last projection": {"blocks.1.attn.proj.scale": filled(HUGE)},
    "MLP": {"blocks.0.mlp.fc2.scale": filled(HUGE)},
    "last MLP": {"blocks.1.mlp.fc2.scale": filled(HUGE)},
    "squares": {"patch_embed.position": row((0, 0), np.float32(1e20))},
}


@pytest.mark.parametrize("case", OVERFLOWS)
def test_every_engine_says_so(tmp_path, case):
    model = model_with(OVERFLOWS[case])
    pictures = random_pictures(model.architecture, 3)
    packed_file.write(tmp_path / "m", model)
    for backend in _native.backends():
        for threads in (1, 2):
            engine = _native.Model(str(tmp_path / "m"), threads, backend)
            with pytest.raises(_native.NativeError, match=NOT_FINITE):
                engine.logits(pictures)
    for engine in ("native", "reference"):
        with pytest.raises(InputError, match=NOT_FINITE):
            load(tmp_path / "m", engine=engine).logits(pictures)
    with pytest.raises(InputError, match=NOT_FINITE):
        load(tmp_path / "m").predict(pictures[0])


def test_equal_numbers_have_no_norm_where_eps_is_0(tmp_path):
    flat = {"prefix_tokens": row(0, 0.25)}
    for eps, fails in ((0.0, True), (1e-12, False)):
        model = model_with(flat, layer_norm_eps=eps)
        pictures = random_pictures(model.architecture, 1)
        packed_file.write(tmp_path / "m", model)
        for engine in ("native", "reference"):
            if fails:
                with pytest.raises(InputError, match=NOT_FINITE):
                    load(tmp_path / "m", engine=engine).logits(pictures)
        if not fails:
            expected = ReferenceModel(model).logits(pictures)
            assert load(tmp_path / "m").logits(pictures).tobytes() == expected.tobytes()


def test_a_row_that_nothing_reads_may_overflow(tmp_path):
    """Behind the last attention only the tokens of the heads are needed, and only they are judged."""
    model = random_packed(seed=7, **SHAPE)
    pictures = random_pictures(model.architecture, 1)
    trace = ReferenceModel(model).trace(pictures[0])
    # A projection that overflows where any channel's product has another sign than those of the tokens read.
    dot = trace["blocks.1.attn.proj.dot"]
    read = model.architecture.num_heads_out
    channels = np.flatnonzero((dot[:read] == 0).all(axis=0) & (dot[read:] != 0).any(axis=0))
    scale = model.tensors["blocks.1.attn.proj.scale"].copy()
    scale[channels] = HUGE
    assert len(channels), "this seed has no such channel"
    model = replace(model, tensors={**model.tensors, "blocks.1.attn.proj.scale": scale})
    packed_file.write(tmp_path / "m", model)
    expected = ReferenceModel(model).logits(pictures)
    for backend in _native.backends():
        assert _native.Model(str(tmp_path / "m"), 1, backend).logits(pictures).tobytes() == expected.tobytes()


def test_a_picture_after_one_that_overflowed_is_right(tmp_path):
    """Overflow depends on the picture: a bright one does, a black one does not, and leaves no mark on it."""
    model = model_with({"patch_embed.scale": filled(np.float32(1e33)), "patch_embed.weight": filled(100)})
    packed_file.write(tmp_path / "m", model)
    black = np.zeros((1, 32, 32, 3), np.uint8)
    expected = ReferenceModel(model).logits(black)
    for threads in (1, 2):
        engine = _native.Model(str(tmp_path / "m"), threads)
        with pytest.raises(_native.NativeError, match=NOT_FINITE):
            engine.logits(np.concatenate([black + 255, black]))
        assert engine.logits(black).tobytes() == expected.tobytes()


def test_a_norm_that_does_not_hold_is_nan():
    weight, bias = np.ones(3, np.float32), np.zeros(3, np.float32)
    rows = np.array([[1, 2, 3], [5, 5, 5], [np.inf, 0, 0], [HUGE, -HUGE, 0]], np.float32)
    with np.errstate(all="ignore"):
        assert np.isnan(layer_norm(rows, weight, bias, 0.0)).all(axis=1).tolist() == [False, True, True, True]
        assert np.isnan(layer_norm(rows, weight, bias, 1e-6)).all(axis=1).tolist() == [False, False, True, True]
