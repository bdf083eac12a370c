"""The C file on the Cortex-M4F and M55 that QEMU emulates: equal logits, in 512 kB of flash and 256 kB of RAM."""

import numpy as np
import pytest
from c_model import BOARDS, EXACT, needs_cortex_m, pictures_header, run_on_board
from random_packed import write_random_packed

from gsb_vit.export.c_source import write_c
from gsb_vit.runtime.classifier import load

MODELS = {  # those of `gsb-vit quickstart`, and a small one for photos
    "digits": dict(image_size=16, patch_size=4, embed_dim=128, depth=2, num_heads=2, mlp_hidden=512, num_classes=10),
    "32 px": dict(image_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=2, mlp_hidden=512, num_classes=20),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("board", BOARDS)
def test_logits_on_the_board_equal_the_engines(tmp_path, board, name):
    needs_cortex_m()
    path = tmp_path / "model.safetensors"
    write_random_packed(path, seed=21, **MODELS[name])
    made = write_c(path, tmp_path, "reference")
    pictures = np.random.default_rng(22).integers(0, 256, (2, 45, 37, 3), dtype=np.uint8)
    (tmp_path / "pictures.h").write_text(pictures_header(pictures))
    said = run_on_board(tmp_path, board, "-O2", EXACT)
    assert ("logits", "equal those of gsb-vit") in said
    rows = [[int(word, 16) for word in rest.split()] for what, rest in said if what == "logits" and "gsb" not in rest]
    classifier = load(path, engine="reference")
    expected = classifier.logits(np.stack([classifier.prepare(picture) for picture in pictures]))
    assert rows == expected.view(np.uint32).tolist()
    numbers = dict(said)
    assert 0 < int(numbers["stack"], 16) <= made.stack_bytes
    assert int(numbers["arena"], 16) == made.arena_bytes
