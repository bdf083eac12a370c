"""How much stack the C file takes: the longest chain of calls, as GCC counts frames, is at most what is stated."""

import re

import pytest
from c_model import BOARDS, needs_compiler, needs_cortex_m, run
from random_packed import TINY, random_packed

from gsb_vit.export.c_source import STACK_BYTES, c_source

GROUPS = tuple(0.05 * n for n in range(1, 16))
WIDEST = dict(
    TINY, attention_thresholds=GROUPS, value_thresholds=GROUPS, attention_bias="full"
)  # the most groups there are
TOKENIZER = dict(TINY, image_size=16, patch_size=4, tokenizer_channels=(5,))


def deepest(folder, compiler, *flags):
    """Compile the model.c of a folder and return the bytes of its longest chain of frames."""
    run(compiler, "-std=c99", *flags, "-fcallgraph-info=su", "-c", "model.c", "-o", "model.o", cwd=folder)
    text = (folder / "model.ci").read_text()
    frames = {
        name: int(size)
        for name, size in re.findall(
            r'node: \{ title: "([^"]+)"[^}]*?\\n(\d+) bytes \((?:static|dynamic,bounded)\)', text
        )
    }
    assert "dynamic)" not in text and {"model_logits", "model_picture_logits"} <= {
        name.split(":")[-1] for name in frames
    }
    calls = re.findall(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"', text)

    def depth(name):
        return frames.get(name, 0) + max((depth(called) for caller, called in calls if caller == name), default=0)

    return max(map(depth, frames))


@pytest.mark.parametrize("shape", [WIDEST, TOKENIZER], ids=["widest", "tokenizer"])
def test_no_chain_of_calls_takes_more_than_stated(tmp_path, shape):
    needs_compiler("gcc")
    made = c_source(random_packed(seed=1, **shape), 0)
    (tmp_path / "model.h").write_text(made.header)
    (tmp_path / "model.c").write_text(made.source)
    for level in ("-O0", "-O3"):
        assert 100 < deepest(tmp_path, "gcc", level) <= made.stack_bytes == STACK_BYTES, level


@pytest.mark.parametrize("board", BOARDS)
def test_nor_on_a_microcontroller(tmp_path, board):
    needs_cortex_m()
    made = c_source(random_packed(seed=1, **WIDEST), 0)
    (tmp_path / "model.h").write_text(made.header)
    (tmp_path / "model.c").write_text(made.source)
    for level in ("-O0", "-O3"):
        assert 100 < deepest(tmp_path, "arm-none-eabi-gcc", level, *BOARDS[board][-1]) <= STACK_BYTES, level
