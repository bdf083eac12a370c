"""Text on its way to a terminal or a pipe: names are shown as they are, nothing is obeyed, no column is lost."""

import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from .errors import ModelError

# Control and format characters, line and paragraph separators, and bytes of a path that are not UTF-8 (surrogates).
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # format characters that words and emoji are written with
_GAP = "  "
COLUMNS = 80  # of a line of text for people, in a log as in a terminal
NARROWEST = 12  # cells that a first column keeps when it is shortened; narrower, rows become records
ELLIPSIS = "…"


def printable(text: str) -> str:
    """Return text whose control, format and direction characters are written out, as in ``\\x1b``; the rest as it is.

    A byte of a path that is not UTF-8 becomes ``\\xff``. No output of this holds a line break or moves a cursor.
    """
    return "".join(_escaped(one) if _is_obeyed(one) else one for one in text)


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in _OBEYED and character not in _JOINERS


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it could not decode
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_text(text: str) -> str:
    """Return JSON text in which what a terminal would obey is escaped as JSON does; line breaks between values stay."""

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        if character == "\n" or not _is_obeyed(character):
            return character
        code = ord(character)
        if code < 0x10000:
            return f"\\u{code:04x}"
        return f"\\u{0xD800 + (code - 0x10000 >> 10):04x}\\u{0xDC00 + (code - 0x10000 & 0x3FF):04x}"

    return re.sub(r"[^ -~]", escape, text)


def as_json(values: Any, indent: int | None = 2) -> str:
    """Return JSON text for the standard output: no NaN, no infinity, nothing that a terminal obeys.

    Unicode stands as it is where the output can show it. Without ``indent`` it is one line.

    Raises:
        ModelError: a number is not finite.
    """
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")
    try:
        text = json.dumps(values, indent=indent, ensure_ascii=not is_unicode, allow_nan=False)
    except ValueError as error:
        raise ModelError(
            "the result holds numbers that are not finite, which JSON has not; export the model again"
        ) from error
    return json_text(text)


def shortened(text: str, width: int) -> str:
    """Return text of at most ``width`` cells: a longer one loses its middle, which becomes ``…``."""
    if cell_len(text) <= width:
        return text
    kept = max(width - 1, 0)
    tail = kept - kept // 2
    front = _front(text, kept // 2)
    back = _front(text[::-1], tail)[::-1]
    return f"{front}{ELLIPSIS}{back}" if width > 0 else ""


def _front(text: str, width: int) -> str:
    """The longest beginning of at most ``width`` cells."""
    used = 0
    for index, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return text[:index]
    return text


def plain_console(stream: Any = None, *, quiet: bool = False) -> Console:
    """Return a console that obeys no markup, no emoji names and no control characters of what it prints."""
    return _PlainConsole(file=stream, markup=False, emoji=False, highlight=False, quiet=quiet)


class _PlainConsole(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        options.update(markup=False, emoji=False, highlight=False)
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; lines of text are left to the terminal to fold, so that a path can be copied."""
        if all(isinstance(one, (str, Text)) for one in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)


@dataclass
class Table:
    """A table of texts: the first column aligned to the left, the others to the right unless ``left`` names them."""

    title: str
    columns: Sequence[str]
    left: Sequence[str] = ()
    caption: str = ""
    rows: list[tuple[tuple[str, ...], bool]] = field(default_factory=list)

    def add_row(self, *texts: str, bold: bool = False) -> None:
        """Append a row of one text a column; missing ones are empty."""
        cells = tuple(printable(text) for text in texts)
        self.rows.append((cells + ("",) * (len(self.columns) - len(cells)), bold))

    def lines(self, width: int | None) -> Iterator[tuple[str, bool]]:
        """Give the lines and whether each is bold, of at most ``width`` cells (None: as wide as the texts).

        A table that is too wide has its first column shortened in the middle; where that is not enough, every row
        becomes a record with a line for each of its cells. Records fold: nothing of them is left out. The caption is
        prose of at most 80 cells.
        """
        if self.title:
            yield from ((line, True) for line in folded(printable(self.title), width))
        widths = [
            max(cell_len(cells[index]) for cells in (self.columns, *(row for row, _ in self.rows)))
            for index in range(len(self.columns))
        ]
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - (width if width is not None else sys.maxsize)
        if excess > 0:
            widths[0] = max(widths[0] - excess, min(widths[0], NARROWEST))
        if width is not None and sum(widths) + len(_GAP) * (len(widths) - 1) > width:
            yield from self._records(width)
        else:
            for cells, bold in ((tuple(self.columns), True), *self.rows):
                yield self._row(cells, widths), bold
        for line in self.caption.split("\n") if self.caption else ():
            for part in filled(printable(line), min(width or COLUMNS, COLUMNS)):
                yield from ((one, False) for one in folded(part, width))

    def _row(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        texts = []
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            text = shortened(cell, width)
            room = " " * (width - cell_len(text))
            texts.append(text + room if index == 0 or self.columns[index] in self.left else room + text)
        return _GAP.join(texts).rstrip()

    def _records(self, width: int) -> Iterator[tuple[str, bool]]:
        for cells, bold in self.rows:
            for line in folded(cells[0], width):
                yield line, True
            for name, cell in zip(self.columns[1:], cells[1:], strict=True):
                if cell:
                    yield from ((line, bold) for line in folded(f"{_GAP}{name}: {cell}", width))


def folded(text: str, width: int | None) -> list[str]:
    """Return text in lines of at most ``width`` cells, cut wherever a line is full; None leaves it whole."""
    if width is None or cell_len(text) <= width or width < 2:
        return [text]
    lines = []
    while text:
        lines.append(_front(text, width))
        text = text[len(lines[-1]) :]
    return lines


def filled(text: str, width: int = COLUMNS) -> list[str]:
    """Return prose in lines of at most ``width`` cells, broken at spaces; the second and the next are indented.

    A word that is longer has a line of its own.
    """
    indent = text[: len(text) - len(text.lstrip(" "))]
    first, *words = text.lstrip(" ").split(" ")
    lines, line = [], indent + first
    for word in words:
        if cell_len(line) + 1 + cell_len(word) > width:
            lines.append(line)
            line = f"{indent}{_GAP}{word}"
        else:
            line += " " + word
    return [*lines, line]


def told(text: str, *names: str) -> list[str]:
    """Return prose that ends with names of files, as ``filled``: where one line does not hold all, a name has its own.

    A name is never cut, so that it can be copied.
    """
    names = tuple(map(printable, names))
    whole = f"{text} {' and '.join(names)}"
    if cell_len(whole) <= COLUMNS:
        return [whole]
    lines = filled(text)
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip(" "))]
    return [*lines, *(indent + _GAP + name for name in names)]


def counted(number: int, one: str, several: str = "") -> str:
    """A number and its noun: ``1 picture``, ``1,000 pictures``."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def terminal_width() -> int | None:
    """The cells of a line of the standard output; None where it is no terminal."""
    console = plain_console()
    return console.width if console.is_terminal else None


def show(*tables: Table, console: Console | None = None) -> None:
    """Print tables, to the standard output by default: as wide as the terminal, or in a pipe as wide as they are."""
    console = console or plain_console()
    width = console.width if console.is_terminal else None
    for table in tables:
        for line, bold in table.lines(width):
            console.print(Text(line, style="bold" if bold else ""), soft_wrap=True, highlight=False)
