"""A packed file that an earlier commit wrote still loads and gives the logits it gave then, bit for bit."""

from pathlib import Path

import numpy as np
import pytest

from gsb_vit.runtime.classifier import ENGINES, load
from gsb_vit.runtime.packed_file import read, write

OLD = Path(__file__).with_name("old")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_old_file_gives_its_old_logits(engine):
    if engine == "native":
        pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
    model = load(OLD / "model.safetensors", threads=1, engine=engine)
    logits = model.logits(np.load(OLD / "pictures.npy"))
    assert logits.tobytes() == np.load(OLD / "logits.npy").tobytes()
    assert model.class_names == ("ankle boot", "été", "tree", "😀 smile", 'quote " and \\ slash')
    assert model.architecture.name == "gsb_vit_tiny_patch16_224"


def test_an_old_file_written_again_has_the_same_tensors(tmp_path):
    old = read(OLD / "model.safetensors")
    write(tmp_path / "model.safetensors", old)
    again = read(tmp_path / "model.safetensors")
    assert all(again[name].tobytes() == array.tobytes() for name, array in old.tensors.items())
    assert (again.architecture, again.provenance) == (old.architecture, old.provenance)
