"""What reaches a terminal or a pipe: every column at every width, names as they are, nothing that is obeyed."""

import io
import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from gsb_vit.bars import Bars
from gsb_vit.bench.peers.timing import Measurement
from gsb_vit.report.tables import AnswerLines, bench_table, metrics_table
from gsb_vit.runtime.classifier import Prediction
from gsb_vit.terminal import (
    Table,
    counted,
    filled,
    folded,
    json_text,
    plain_console,
    printable,
    shortened,
    show,
    told,
)

WIDTHS = [20, 40, 80, 200]
NASTY = [
    "[bold]",
    "[/b]",
    "[old]",
    ":smile:",
    "\x1b]0;title\x07",
    "\x1b[31m",
    "a\nb",
    "\x9b2J",
    "\u202etxt.exe",
    "\udcff",
]
PATHS = st.lists(st.deferred(lambda: NAMES.filter(lambda name: "\0" not in name)), min_size=1, max_size=4)
NAMES = st.one_of(st.sampled_from(NASTY), st.text(st.characters(), min_size=1, max_size=120))


def is_plain(text):
    return all(unicodedata.category(one) not in ("Cc", "Cs", "Zl", "Zp") for one in text)


@given(NAMES)
def test_printable_obeys_nothing_and_keeps_the_rest(name):
    assert is_plain(printable(name))
    if is_plain(name) and not re.search(r"[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]", name):
        kept = [one for one in name if unicodedata.category(one) != "Cf"]
        assert [one for one in printable(name) if one in kept][: len(kept)] or not kept


def test_printable_by_example():
    assert printable("\x1b]0;x\x07 a\nb\tc\r \udcff \x9b \u202e [bold] :smile: é 漢 👨\u200d👩") == (
        "\\x1b]0;x\\x07 a\\nb\\tc\\r \\xff \\x9b \\u202e [bold] :smile: é 漢 👨\u200d👩"
    )


@given(NAMES)
def test_json_text_is_the_same_json(name):
    text = json_text(json.dumps([name], indent=2, ensure_ascii=False))
    assert json.loads(text) == [name]
    assert is_plain(text.replace("\n", ""))


@given(NAMES, st.integers(0, 60))
def test_shortened_fits_and_keeps_both_ends(name, width):
    name = printable(name)
    text = shortened(name, width)
    assert cell_len(text) <= max(width, 0)
    if cell_len(name) <= width:
        assert text == name
    elif width >= 5:
        front, _, back = text.partition("…")
        assert name.startswith(front) and name.endswith(back)


@given(NAMES, st.integers(2, 60))
def test_folded_loses_nothing(name, width):
    lines = folded(printable(name), width)
    assert "".join(lines) == printable(name)
    assert all(cell_len(line) <= width or len(line) == 1 for line in lines)


@pytest.mark.parametrize("width", [*WIDTHS, None])
@given(
    st.lists(NAMES.filter(lambda name: "\0" not in name), min_size=1, max_size=4),
    st.lists(NAMES, min_size=1, max_size=3),
)
def test_predictions_lose_no_column(width, paths, classes):
    pictures = [Path(name) for name in paths]
    lines = AnswerLines(pictures, classes, width)
    answers = [Prediction(name, 1 / (2 + rank)) for rank, name in enumerate(classes)]
    for picture in pictures:
        said = list(lines.answers(picture, answers))
        whole = "".join(said)
        assert all(is_plain(line.replace("\t", "")) for line in said)
        if width is not None:
            assert all(cell_len(line) <= width for line in said)
        for answer in answers:
            percent = f"{100 * answer.probability:.1f} %"
            assert printable(answer.name) in whole and percent in whole
        ends = printable(str(picture))
        assert ends in whole or (ends[:2] in whole and ends[-2:] in whole)
        if width is None:
            assert [line.split("\t") for line in said] == [
                [ends, printable(one.name), f"{100 * one.probability:.1f} %"] for one in answers
            ]


def test_a_row_of_a_wide_terminal():
    lines = AnswerLines([Path("a.jpg"), Path("x" * 90 + "end.jpg")], ["cat", "dog [/b]"], 60)
    assert lines.heading().split() == ["picture", "class", "percent"]
    (row,) = lines.answers(Path("x" * 90 + "end.jpg"), [Prediction("dog [/b]", 0.931)])
    assert re.fullmatch(r"x+…x+end\.jpg  dog \[/b\]   93\.1 %", row) and len(row) <= 60
    assert AnswerLines([Path("a.jpg")], ["c" * 70], 60).heading() is None


def written(table, width, terminal):
    stream = io.StringIO()
    console = plain_console(stream)
    console._force_terminal = terminal
    console.width = width
    show(table, console=console)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", WIDTHS)
@given(st.lists(st.lists(NAMES, min_size=3, max_size=3), min_size=1, max_size=3))
def test_tables_lose_no_column(terminal, width, rows):
    table = Table("", ("name", "one", "two"))
    for row in rows:
        table.add_row(*row)
    output = written(table, width, terminal).split("\n")
    whole = "".join(output)
    assert all(is_plain(line) for line in output)
    if terminal:
        assert all(cell_len(line) <= width for line in output)
    for _, one, two in rows:
        assert printable(one).strip() in whole and printable(two).strip() in whole


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_commands_keep_every_figure(width):
    metrics = {"n": 7, "top1": 0.91, "top5": 0.92, "macro_precision": 0.93, "macro_recall": 0.94, "macro_f1": 0.95}
    metrics |= {"calibration_error": 0.0612, "false_alarm_rate": 0.0713}
    for terminal in (True, False):
        output = written(metrics_table(metrics, "[bold]/\x1b[31m" + "x" * 300), width, terminal)
        assert all(f"{100 * value:.2f}" in output for name, value in metrics.items() if name != "n")
        assert "[bold]" in output and "\x1b" not in output
    row = Measurement(
        "gsb-vit", "1 bit", 1, 1, file_mb=3.25, median_ms=2.125, peak_mb=81.0, problem="[/b] is no\x1b problem"
    )
    output = "".join(written(bench_table([row]), width, True).split())
    for text in ("gsb-vit", "1 bit", "2.125", "470.6", "3.250", "81", "[/b] is no\\x1b problem"):
        assert "".join(text.split()) in output


@pytest.mark.parametrize("width", [*WIDTHS, None])
def test_captions_fold_at_spaces_and_at_80_cells_at_most(width):
    """In a pipe, too, where the rows are as wide as their texts."""
    table = Table("", ("name",), caption="a caption of some words\n" + "the second line has more of them " * 5)
    table.add_row("x" * 200)
    caption = [line for line, _ in table.lines(width) if "x" not in line and line != "name"]
    assert all(cell_len(line) <= min(width or 80, 80) for line in caption)
    assert " ".join(" ".join(caption).split()) == " ".join(table.caption.split())


def test_no_console_of_the_package_obeys_markup():
    """Where a console is made, it is plain_console's; Rich's own obeys what a name holds."""
    stream = io.StringIO()
    plain_console(stream).print("[bold]a[/b] :smile: \x1b]0;x\x07")
    assert stream.getvalue() == "[bold]a[/b] :smile: \\x1b]0;x\\x07\n"
    root = Path(__file__).resolve().parents[2] / "src" / "gsb_vit"
    sources = {path.name: path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert [name for name, text in sources.items() if re.search(r"(?<!_Plain)\bConsole\([^):]", text)] == []
    columns = [
        column for text in sources.values() for column in re.findall(r"TextColumn\(.*(?:description|numbers).*", text)
    ]
    assert columns and all("markup=False" in column for column in columns)


@given(
    st.lists(st.text("ab, –日", min_size=1, max_size=30).filter(lambda word: " " not in word), min_size=1, max_size=40)
)
def test_prose_is_filled_to_80_cells_and_loses_nothing(words):
    text = "  " + " ".join(words)
    lines = filled(text)
    assert all(cell_len(line) <= 80 for line in lines)
    assert " ".join(line.strip(" ") for line in lines) == text.strip(" ")
    assert lines[0].startswith("  ") and all(line.startswith("    ") for line in lines[1:])


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_names_are_never_cut(names):
    lines = told("copies in several classes, once, as", *names)
    whole = [printable(name) for name in names]
    assert (lines == [f"copies in several classes, once, as {' and '.join(whole)}"] and cell_len(lines[0]) <= 80) or (
        lines == ["copies in several classes, once, as", *("  " + name for name in whole)]
    )


def test_numbers_and_their_nouns():
    assert [counted(n, "picture") for n in (0, 1, 1000)] == ["0 pictures", "1 picture", "1,000 pictures"]
    assert counted(2, "copy", "copies") == "2 copies"


@pytest.mark.parametrize("active", [True, False])
def test_bars_write_nothing_where_there_is_no_terminal(active) -> None:
    stream = io.StringIO()
    with Bars(console=plain_console(stream), active=active) as bars:
        bars.advance(bars.add_task("work", total=2))
    assert stream.getvalue() == ""
