"""The C file on the Cortex-M4F, M7 and M55 that QEMU emulates: equal logits, in 512 kB of flash and 256 kB of RAM."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from c_model import BOARDS, needs_cortex_m, pictures_header, run_on_board
from paths import ROOT
from random_packed import TINY, write_random_packed

from gsb_vit.export.c_source import write_c
from gsb_vit.runtime.classifier import load

MODELS = {  # those of `gsb-vit quickstart`, a small one for photos, and rows and patches that fill no whole word
    "digits": dict(image_size=16, patch_size=4, embed_dim=128, depth=2, num_heads=2, mlp_hidden=512, num_classes=10),
    "32 px": dict(image_size=32, patch_size=4, embed_dim=128, depth=4, num_heads=2, mlp_hidden=512, num_classes=20),
    "odd": dict(image_size=15, patch_size=5, embed_dim=72, depth=2, num_heads=3, mlp_hidden=1010, num_classes=3),
    "tokenizer": dict(image_size=16, patch_size=4, embed_dim=96, depth=1, num_heads=2, mlp_hidden=100, num_classes=5,
                      tokenizer_channels=(5,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("board", BOARDS)
def test_logits_on_the_board_equal_the_engines(tmp_path, board, name):
    needs_cortex_m()
    path = tmp_path / "model.safetensors"
    write_random_packed(path, seed=21, **MODELS[name])
    made = write_c(path, tmp_path, "reference")
    pictures = np.random.default_rng(22).integers(0, 256, (2, 45, 37, 3), dtype=np.uint8)
    (tmp_path / "pictures.h").write_text(pictures_header(pictures))
    # GNU C fuses multiplications and additions where it may, and both processors can: the file's own pragma forbids it.
    said = run_on_board(tmp_path, board, "-std=gnu11", "-O2")
    assert ("logits", "equal those of gsb-vit") in said
    rows = [[int(word, 16) for word in rest.split()] for what, rest in said if what == "logits" and "gsb" not in rest]
    classifier = load(path, engine="reference")
    expected = classifier.logits(np.stack([classifier.prepare(picture) for picture in pictures]))
    assert rows == expected.view(np.uint32).tolist()
    numbers = dict(said)
    assert 0 < int(numbers["stack"], 16) <= made.stack_bytes
    assert int(numbers["arena"], 16) == made.arena_bytes


def test_the_benchmark_counts_instructions(tmp_path):
    needs_cortex_m()
    pytest.importorskip("gsb_vit._native")
    write_random_packed(tmp_path / "model.safetensors", seed=23, **TINY)
    command = [sys.executable, ROOT / "benchmarks" / "microcontroller.py", tmp_path / "model.safetensors", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, "--level=-Os"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    assert [row["board"] for row in rows] == list(BOARDS)
    assert all(row["equal"] and 0 < row["code"] < 10_000 and row["instructions"] > 100_000 for row in rows)
