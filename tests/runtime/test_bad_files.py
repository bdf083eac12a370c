"""The Python and the C++ reader take and refuse the same files: one table of bad ones, and seeded random damage."""

import os
import re
import time

import numpy as np
import pytest
from bad_packed import base_files, sealed, table
from damaged_packed import damaged
from random_packed import random_pictures
from safetensors.numpy import save_file

from gsb_vit.errors import InputError
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.reference import ReferenceModel

_native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return base_files(tmp_path_factory.mktemp("bases"))


def outcomes(path):
    """What either reader makes of a file: a model, or its message."""
    found = []
    for reader in (read, lambda path: _native.Model(str(path), 1)):
        try:
            found.append(reader(path))
        except (InputError, _native.NativeError) as error:
            found.append(str(error))
    return found


def agree(path, python, native):
    """Do both refuse the file in one line that names it, or give equal logits?"""
    if isinstance(python, str) or isinstance(native, str):
        both = isinstance(python, str) and isinstance(native, str)
        return both and all(m.startswith(f"{path}: ") and len(m.splitlines()) == 1 for m in (python, native))
    pictures = random_pictures(python.architecture, 1)
    answers = []
    for engine in (ReferenceModel(python), native):
        try:
            answers.append(engine.logits(pictures).tobytes())
        except ValueError as error:  # a damaged number makes others overflow
            answers.append(str(error))
    return answers[0] == answers[1]


def test_both_readers_refuse_what_the_table_says(bases, tmp_path):
    path = tmp_path / "model.safetensors"
    faults = []
    rows = [(row, version) for row in table() for version in row.versions]
    for row, version in rows:
        path.write_bytes(row.apply(bases[row.base, version]))
        python, native = outcomes(path)
        fits = agree(path, python, native) and isinstance(python, str) == (row.reason is not None)
        if row.reason is not None:
            fits &= all(re.search(row.reason, str(message)) for message in (python, native))
            fits &= max(len(str(python)), len(str(native))) < 1000
        if not fits:
            faults.append((row.name, row.base, version, row.reason, str(python)[:300], str(native)[:300]))
    assert faults == []


def test_both_readers_agree_on_random_damage(bases, tmp_path):
    """GSB_VIT_DAMAGED=20000 tries as many. Of version 2, half get checksums that fit the damage."""
    path, rng = tmp_path / "model.safetensors", np.random.default_rng(0)
    taken = refused = 0
    disagreements = []
    for number in range(int(os.environ.get("GSB_VIT_DAMAGED", "2000"))):
        data = damaged(rng, bases[sorted(bases)[number % len(bases)]])
        path.write_bytes(sealed(data) if number // len(bases) % 2 else data)
        python, native = outcomes(path)
        refused += isinstance(python, str)
        taken += not isinstance(python, str)
        if not agree(path, python, native):
            disagreements.append((number, str(python)[:300], str(native)[:300]))
    print(f"{taken} taken, {refused} refused, {len(disagreements)} disagreements")
    assert disagreements == []
    assert taken > 100 and refused > 1000


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_only_regular_files_are_read(tmp_path, engine):
    os.mkfifo(tmp_path / "fifo")
    start = time.monotonic()
    for path, what in (
        (tmp_path / "fifo", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(InputError, match=what) as caught:
            load(path, engine=engine)
        assert str(caught.value).startswith(f"{path}: cannot be read (")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("dtype", ["int64", "float64", "int32", "uint8", "bool", "float32"])
def test_a_trained_model_is_refused_for_what_it_is(tmp_path, dtype):
    """It may hold tensors of types that no packed file has, such as the counts of a BatchNorm."""
    path = tmp_path / "trained.safetensors"
    save_file({"norm.num_batches_tracked": np.zeros(3, dtype=dtype)}, path, metadata={"architecture": "{}"})
    for message in outcomes(path):
        assert message == f"{path}: not a packed model; make one with `gsb-vit export RUN -o MODEL.safetensors`"
