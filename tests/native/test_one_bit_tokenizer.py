"""One-bit convolutions at the edges of what counts can give: ties, constants, channels that never or always are 1."""

from dataclasses import replace

import numpy as np
import pytest
from random_packed import SHAPES, random_packed, random_pictures

import gsb_vit
from gsb_vit.runtime.packed_file import write
from gsb_vit.runtime.reference import ReferenceModel

native = pytest.importorskip("gsb_vit._native", reason="the native extension is not built")


def at_the_edges():
    """The second convolution's outputs are at 0.5 or a step beside it for some sums, or constant."""
    model = random_packed(seed=2, **SHAPES["one_bit_convolutions"])
    scale, bias = model["tokenizer.1.scale"].copy(), model["tokenizer.1.bias"].copy()
    channels = np.arange(64)
    scale[:] = np.where(channels % 2, 0.25, -0.25)
    bias[:] = 0.5 - scale * (channels % 16 - 8)  # y is exactly 0.5 where S is channel mod 16 − 8
    scale[:8], bias[:8] = [0, -0.0, 0, 0, 1e-30, -1e-30, 3e38, -3e38], [0.5, 0.5, 0.5000001, -1, 0.5, 0.5, 0, 0]
    bias[8:12] = [1e6, -1e6, 3e38, -3e38]
    tensors = {**model.tensors, "tokenizer.1.scale": scale, "tokenizer.1.bias": bias}
    return replace(model, tensors=tensors)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The model's file, pictures, and their logits by the reference, whose levels reach every edge."""
    model = at_the_edges()
    pictures = random_pictures(model.architecture, 3, seed=1)
    reference = ReferenceModel(model)
    trace = reference.trace(pictures[0])
    levels = trace["tokenizer.1.levels"].reshape(-1, 64)
    always = levels.min(0) == levels.max(0)
    assert levels[0, :4].tolist() == [0, 0, 1, 0] and always[[0, 1, 2, 3, 8, 9, 10, 11]].all()
    assert levels[0, 8:12].tolist() == [1, 0, 1, 0]
    assert (~always[12:]).mean() > 0.7
    path = tmp_path_factory.mktemp("edges") / "model.safetensors"
    write(path, model)
    return path, pictures, reference.logits(pictures)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", native.backends())
def test_every_backend_gives_the_references_logits(case, backend, threads):
    path, pictures, expected = case
    model = gsb_vit.load(path, threads=threads, backend=backend)
    assert model.backend == backend
    assert model.logits(pictures).tobytes() == expected.tobytes()
