"""What a board needs: memory against the engine's own count, instructions against QEMU's, and the command."""

import importlib.util
import json
import shutil
import sys
from dataclasses import replace

import pytest
from c_model import needs_cortex_m
from needs import skip_without
from paths import ROOT
from random_packed import SHAPES, random_packed, write_random_packed

import gsb_vit
from gsb_vit.bench import boards
from gsb_vit.bench.boards import BOARDS, Board, estimate, find_boards, least_ram
from gsb_vit.bench.cost import summarize
from gsb_vit.bench.instructions import Counted, c_work, counted, work, work_of
from gsb_vit.bench.memory import memory_of
from gsb_vit.cli import main
from gsb_vit.errors import InputError

TINY = dict(image_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, mlp_hidden=48, num_classes=5)


def shape_of(**arguments):
    return random_packed(seed=0, **arguments).architecture


@pytest.fixture
def run(capsys):
    """Run a command in this process: → exit status, output, error output."""

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, *capsys.readouterr()

    return call


def bytes_that_suffice(path):
    """The smallest limit with which the engine loads a model."""
    low, high = 1, 1 << 28
    while low < high:
        middle = (low + high) // 2
        try:
            gsb_vit.load(path, threads=1, backend="portable", max_memory=middle)
            high = middle
        except InputError:
            low = middle + 1
    return low


@pytest.mark.parametrize("name", SHAPES)
def test_memory_is_what_the_engine_counts(tmp_path, name):
    pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
    packed = write_random_packed(tmp_path / "model.safetensors", seed=1, **SHAPES[name])
    size = (tmp_path / "model.safetensors").stat().st_size
    found = memory_of(packed.architecture, size).total
    assert bytes_that_suffice(tmp_path / "model.safetensors") == pytest.approx(found, rel=0.06)
    assert memory_of(packed.architecture).file == pytest.approx(size, rel=0.1)


def test_a_lower_bound_is_below_what_the_engine_takes():
    for arguments in SHAPES.values():
        a = shape_of(**arguments)
        assert 4 * a.num_tokens * a.embed_dim < least_ram(a) < memory_of(a).forward


def test_work_by_hand():
    """18 tokens of 32 numbers in 2 heads, padded to 32 numbers each; the last block's rest for two tokens only."""
    found = work(shape_of(**TINY))
    assert found["linear_words"] == 36 * 3 * 64 + 20 * (32 * 2 + 48 + 32 * 2)
    assert (found["query_outputs"], found["hidden_outputs"]) == (36 * 3 * 64, 20 * 48)
    assert found["score_words"] == found["score_entries"] == 2 * 2 * 18 * 18
    assert (found["value_words"], found["value_outputs"]) == (20 * 64, 20 * 64)
    assert (found["patch_products"], found["tokenizer_products"]) == (3 * 16 * 16 * 32, 0)
    assert found["class_products"] == 2 * 5 * 32
    assert found["pictures"] == 1
    tokenizer = work(shape_of(**{**TINY, "tokenizer_channels": (5,), "global_pool": "avg", "prefix_tokens": 0}))
    assert tokenizer["hidden_outputs"] == 2 * 16 * 48
    assert tokenizer["patch_products"] == 0
    assert tokenizer["tokenizer_products"] == 3 * 12 * 64 * 16 + 3 * 16 * 16 * 32
    assert tokenizer["tokenizer_outputs"] == 64 * 16 + 16 * 32


def test_work_of_one_bit_convolutions_by_hand():
    options = {"tokenizer_channels": (5, 40), "patch_size": 8, "global_pool": "avg", "prefix_tokens": 0}
    found, bytes_ = (work(shape_of(**{**TINY, **options, "level_bits": bits})) for bits in ((1, 1), (8, 8)))
    assert found["linear_words"] - bytes_["linear_words"] == 9 * 16 * 48 + 18 * 4 * 32
    assert found["hidden_outputs"] - bytes_["hidden_outputs"] == 16 * 48
    assert found["residual_outputs"] - bytes_["residual_outputs"] == 4 * 32
    assert (found["tokenizer_products"], found["tokenizer_outputs"]) == (3 * 12 * 64 * 16, 64 * 16)


def test_work_of_the_c_file_by_hand():
    """18 tokens, 16 of them patches; heads of 16 numbers; a row of attention is computed twice but for fixed limits."""
    a = shape_of(**TINY)
    found = c_work(a)
    products = 36 * 3 * 32 + 20 * (32 + 48)  # of one word; of two those with 48 hidden numbers
    rows = 2 * (20 + (36 if a.attention_groups > 1 and a.threshold_scope == "sample" else 0))
    single = products + rows * 18 + 20 * 32 * a.attention_groups
    assert (found["quads"], found["threes"], found["ones"]) == (0, 0, single + 2 * 20 * 32)
    assert (found["score_rows"], found["norm_numbers"]) == (rows, 56 * 32)
    assert (found["patch_products"], found["patch_outputs"]) == (3 * 16 * 16 * 32, 16 * 32)
    assert found["convolved_products"] == found["convolved_outputs"] == 0
    wide = {**TINY, "embed_dim": 224, "num_heads": 1, "mlp_hidden": 32, "depth": 1}  # of 7 words
    assert (c_work(shape_of(**wide))["threes"], c_work(shape_of(**wide), helium=True)["quads"]) != (0, 0)
    seven = c_work(shape_of(**wide), helium=True)
    assert seven["quads"] == seven["threes"] == 18 * 3 * 224 + 2 * (224 + 32) + found_rows(wide) * 18
    tokenizer = c_work(shape_of(**{**TINY, "tokenizer_channels": (5,), "global_pool": "avg", "prefix_tokens": 0}))
    assert tokenizer["patch_products"] == tokenizer["patch_outputs"] == 0
    assert tokenizer["convolved_products"] == 27 * 64 * 5 + 45 * 16 * 32
    assert tokenizer["convolved_outputs"] == 64 * 5 + 16 * 32


def test_work_of_one_bit_convolutions_of_the_c_file_by_hand():
    """Places 8 × 8, 4 × 4 and 2 × 2; a window's upper line and first column are left out where they are outside."""
    options = {"tokenizer_channels": (5, 40), "patch_size": 8, "global_pool": "avg", "prefix_tokens": 0}
    found, bytes_ = (c_work(shape_of(**{**TINY, **options, "level_bits": bits})) for bits in ((1, 1), (8, 8)))
    lines = {4: 4 * 3 - 1, 2: 2 * 3 - 1}  # of a column of places: 11 of one word a tap, 5 of two
    columns = {4: 4 * 3 - 1, 2: 2 * 3 - 1}
    threes = lines[4] * 3 * 40 + lines[2] * 1 * 32 * 2 + lines[2] * 32 * 1
    ones = lines[4] * 40 * 2 + lines[2] * 32 * 1
    assert found["threes"] - bytes_["threes"] == threes
    assert found["ones"] - bytes_["ones"] == ones + lines[4] * columns[4] + lines[2] * columns[2] * 2
    assert found["bit_convolved_outputs"] == 16 * 40 + 4 * 32
    assert (found["convolved_products"], found["convolved_outputs"]) == (27 * 64 * 5, 64 * 5)
    assert bytes_["bit_convolved_outputs"] == 0
    mixed = c_work(shape_of(**{**TINY, **options, "level_bits": (8, 1)}), helium=True)
    assert mixed["bit_convolved_outputs"] == 4 * 32
    assert mixed["quads"] == lines[2] * 32 * 2  # six words, or four at the left edge


def test_one_bit_convolutions_have_a_time_on_every_board():
    options = {"tokenizer_channels": (32, 48), "patch_size": 8, "global_pool": "avg", "prefix_tokens": 0}
    one, eight = (shape_of(**{**TINY, **options, "level_bits": bits}) for bits in ((1, 1), (8, 8)))
    for board in BOARDS.values():
        assert estimate(one, board).ms < estimate(eight, board).ms


def found_rows(shape):
    return c_work(shape_of(**shape))["score_rows"]


BUILDS = sorted({board.build for board in BOARDS.values() if counted(board.build)})


def test_every_board_was_counted():
    assert {board.build for board in BOARDS.values()} == set(BUILDS)


@pytest.mark.parametrize("build", BUILDS)
def test_counts_are_there_for_every_kind_of_work(build):
    found = counted(build)
    assert list(found.per_unit) == list(work_of(build, shape_of(**TINY)))
    assert min(found.per_unit.values()) >= 0 < found.per_unit["ones" if build.startswith("c99-") else "linear_words"]
    assert 0 < found.largest_error < 0.3
    assert f"off by at most {100 * found.largest_error:.0f} %" in found.how


@pytest.mark.parametrize("one_bit", [False, True], ids=["any", "one-bit"])
@pytest.mark.parametrize("build", BUILDS)
def test_an_estimate_is_what_qemu_counts(build, one_bit, tmp_path):
    """Of a model that was not fitted; on the program of the preset, where it was built."""
    spec = importlib.util.spec_from_file_location("board_instructions", ROOT / "benchmarks" / "board_instructions.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules["board_instructions"] = script
    spec.loader.exec_module(script)
    if build == "c99-esp32-s3":
        lacks = script.xtensa_instructions.lacks()
    elif build in script.MICROS:
        needs_cortex_m()
        lacks = []
    else:
        lacks = [name for name in (script.EMULATORS[build][0], "cc") if shutil.which(name) is None]
        if not script.program_of(build).is_file():
            lacks.append(f"{script.program_of(build).relative_to(ROOT)}, made by zig and the preset of that name")
    if lacks:
        skip_without("counts of instructions", *lacks)
    if build in script.MICROS:
        pytest.importorskip("gsb_vit._native", reason="the native extension is not built")
        counter, make, numbers = script.MicroCounter(build, tmp_path), script.small_shapes, script.HELD_OUT_SMALL
    else:
        counter, make, numbers = script.Counter(build, tmp_path), script.shapes, script.HELD_OUT
    shape = make(*(script.HELD_OUT_ONE_BIT if one_bit else numbers), one_bit)[0]
    a, instructions = counter.count(script.pack(tmp_path / "model", shape))
    found = counted(build)
    assert found.instructions(a) == pytest.approx(instructions, rel=found.largest_error + 0.02)


def test_milliseconds_are_instructions_over_assumptions(monkeypatch):
    a = shape_of(**TINY)
    costs = {**dict.fromkeys(work(a), 0.0), "pixels": 1000.0}
    monkeypatch.setattr(boards, "counted", lambda build: Counted(build, "made up", costs, 0.1, 3, 500))
    board = Board("b", "B", "core", "x", clock=2e6, per_cycle=0.5, ram=1 << 30, flash=None, source="nobody")
    found = estimate(a, board)
    assert found.instructions == 256_000
    assert found.ms == pytest.approx(256.0)
    assert found.flash == memory_of(a).file + 500
    assert found.time_is == "estimated from made up; clock and instructions per cycle are assumed"


def test_no_time_where_nothing_was_counted(monkeypatch):
    monkeypatch.setattr(boards, "counted", lambda build: None)
    found = estimate(shape_of(**TINY), BOARDS["pi4"])
    assert (found.ms, found.instructions) == (None, None)
    assert found.time_is == "not estimated: nothing was counted for aarch64"


def test_a_model_without_room_does_not_fit():
    a = replace(shape_of(**TINY), image_size=(224, 224), embed_dim=64)
    assert not estimate(a, BOARDS["cortex-m4f"]).fits
    assert estimate(a, BOARDS["pi4"]).fits
    wide = replace(shape_of(**TINY), embed_dim=1536, mlp_hidden=6144)
    found = estimate(wide, BOARDS["cortex-m7"])
    assert found.flash > BOARDS["cortex-m7"].flash and not found.fits


def test_boards_are_found_by_name():
    assert [board.name for board in find_boards("pi4")] == ["pi4"]
    assert [board.name for board in find_boards("all")] == list(BOARDS)
    with pytest.raises(InputError, match=r"unknown board 'pi9'; --board takes pi2, pi3, .* or all; did you mean pi5\?"):
        find_boards("pi9")


def test_the_command_shows_boards_for_a_model(run, tmp_path):
    path = tmp_path / "model.safetensors"
    packed = write_random_packed(path, seed=1, **TINY)
    status, output, _ = run("bench", path, "--board", "all")
    assert status == 0
    assert all(f"{name} " in output for name in BOARDS)
    assert "16 × 16 pixels, 5 classes" in output
    assert "are assumed." in output
    status, output, _ = run("bench", path, "--board", "zero2", "--json")
    found = json.loads(output)
    assert found["model"]["ops"] == summarize(packed.architecture).packed.ops
    (row,) = found["boards"]
    assert (row["board"], row["fits"], row["assumed"]["clock"]) == ("zero2", True, 1e9)
    assert row["ram"] == memory_of(packed.architecture, path.stat().st_size).total
    assert row["ms"] == pytest.approx(1e3 * counted("aarch64").instructions(packed.architecture) / 1e9)


def test_the_command_plans_what_a_recipe_would_train(run, tmp_path):
    pytest.importorskip("timm")
    (tmp_path / "r.toml").write_text(
        "[model]\nimg_size = 32\npatch_size = 4\nembed_dim = 96\ndepth = 2\nnum_heads = 3\n"
    )
    options = ("--recipe", tmp_path / "r.toml", "--classes", 7, "--board", "pi3", "--json")
    found = json.loads(run("bench", *options)[1])
    changed = json.loads(run("bench", *options, "--set", "model.depth=1", "--image-size", 24)[1])
    assert found["model"]["classes"] == changed["model"]["classes"] == 7
    summed = [summarize(shape_of(**{**TINY, "image_size": side, "embed_dim": 96, "depth": depth, "num_heads": 3,
              "mlp_hidden": 384})).packed.bops for side, depth in ((32, 2), (24, 1))]  # fmt: skip
    assert [found["model"]["bops"], changed["model"]["bops"]] == summed
    assert changed["boards"][0]["ram"] != found["boards"][0]["ram"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--board", "pi9", "--arch", "x"), "--board takes pi2"),
        (("--board", "pi4"), "--board takes one of MODEL, --arch NAME and --recipe FILE.toml"),
        (("--board", "pi4", "m", "--arch", "x"), "--board takes one of MODEL"),
        (("--board", "pi4", "m", "--classes", "3"), "a MODEL has its size and its classes"),
        (("--board", "pi4", "--arch", "x", "--set", "a=b"), "--set changes a recipe; give --recipe"),
        (("--board", "pi4", "m", "--profile"), "--board times nothing"),
        (("m", "--classes", "3"), "go with --board"),
    ],
)
def test_refusals(run, arguments, why):
    status, output, errors = run("bench", *arguments)
    assert (status, output) == (2, "")
    (line,) = errors.splitlines()
    assert why in line
