"""What a board needs for a model, before anything is trained: ``gsb-vit bench --board``.

RAM and flash follow from the shape. Time is estimated: instructions that were counted, divided by the board's clock and
by instructions per cycle, which are *assumed* here. Where nothing was counted there is no time.
"""

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from gsb_vit.errors import InputError, shown
from gsb_vit.runtime.schema import Architecture

from .cost import Summary, summarize
from .instructions import counted
from .memory import memory_of

# Instructions per cycle, as assumed: a core that runs them in order, and one that does not.
_IN_ORDER, _OUT_OF_ORDER = 1.0, 2.0


@dataclass(frozen=True)
class Board:
    """A board: its processor, clock in Hz, bytes of RAM and of flash (None: a card or an external chip of any size).

    ``build``: the engine's build that runs there. ``is_micro``: without an operating system, so the model is read where
    it lies in flash, and RAM holds what changes.
    """

    name: str
    title: str
    processor: str
    build: str
    clock: float
    per_cycle: float
    ram: int
    flash: int | None = None
    is_micro: bool = False


_MB, _KB = 1 << 20, 1 << 10
BOARDS = {
    board.name: board
    for board in (
        Board("pi2", "Raspberry Pi 2", "Cortex-A7", "armv7", 900e6, _IN_ORDER, 1024 * _MB),
        Board("pi3", "Raspberry Pi 3 B+", "Cortex-A53", "aarch64", 1400e6, _IN_ORDER, 1024 * _MB),
        Board("pi4", "Raspberry Pi 4 (1 GB)", "Cortex-A72", "aarch64", 1500e6, _OUT_OF_ORDER, 1024 * _MB),
        Board("pi5", "Raspberry Pi 5 (2 GB)", "Cortex-A76", "aarch64", 2400e6, _OUT_OF_ORDER, 2048 * _MB),
        Board("zero2", "Raspberry Pi Zero 2 W", "Cortex-A53", "aarch64", 1000e6, _IN_ORDER, 512 * _MB),
        Board("visionfive2", "VisionFive 2 (2 GB)", "RISC-V U74", "riscv64", 1500e6, _IN_ORDER, 2048 * _MB),
        Board("cortex-m4f", "nRF52840", "Cortex-M4F", "c99-cortex-m4f", 64e6, _IN_ORDER, 256 * _KB, 1 * _MB, True),
        Board("cortex-m7", "STM32H743", "Cortex-M7", "c99-cortex-m7", 480e6, _IN_ORDER, 1024 * _KB, 2 * _MB, True),
        Board("cortex-m55", "STM32N6", "Cortex-M55", "c99-cortex-m55", 800e6, _IN_ORDER, 4300 * _KB, None, True),
        Board("esp32-s3", "ESP32-S3", "Xtensa LX7", "c99-esp32-s3", 240e6, _IN_ORDER, 512 * _KB, 8 * _MB, True),
    )
}


@dataclass(frozen=True)
class Estimate:
    """What a model needs on a board, in bytes, instructions and milliseconds of one picture on one core.

    ``ram_is`` says whether RAM is what the engine takes or only a lower bound. ``time_is`` says where the milliseconds
    come from, or why there are none.
    """

    board: Board
    ram: int
    ram_is: str
    flash: int
    instructions: float | None
    ms: float | None
    time_is: str

    @property
    def fits(self) -> bool:
        """Is there room? False also where a lower bound has none; True for one that has room is no promise."""
        return self.ram <= self.board.ram and (self.board.flash is None or self.flash <= self.board.flash)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        board = asdict(self.board)
        own = {key: value for key, value in vars(self).items() if key != "board"}
        return {"board": board.pop("name"), **own, "fits": self.fits, "assumed": board}


def find_boards(name: str) -> list[Board]:
    """Return the boards of a name, ``all`` being all. Raises InputError that lists the known ones."""
    if name == "all":
        return list(BOARDS.values())
    if name not in BOARDS:
        near = difflib.get_close_matches(name.lower(), BOARDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown board {shown(name)}; --board takes {', '.join(BOARDS)} or all{hint}")
    return [BOARDS[name]]


def estimate(a: Architecture, board: Board, file_bytes: int | None = None) -> Estimate:
    """Estimate what a model of this shape needs on a board; ``file_bytes``: those of its packed file, if it exists."""
    memory = memory_of(a, file_bytes)
    if board.is_micro:
        ram, ram_is = least_ram(a), "a lower bound: what is alive at once"
    else:
        ram, ram_is = memory.total, "what the engine takes on one thread"
    found = counted(board.build)
    if found is None:
        return Estimate(board, ram, ram_is, memory.file, None, None, f"nothing was counted for {board.build}")
    instructions = found.instructions(a)
    ms = 1e3 * instructions / (board.clock * board.per_cycle)
    said = f"{found.how}; clock and instructions per cycle are assumed"
    return Estimate(board, ram, ram_is, memory.file + found.program, instructions, ms, said)


def least_ram(a: Architecture) -> int:
    """Return the bytes that any program for this shape holds at once: the residual stream with a block's bits.

    Tokens in float32; queries and keys, the Value's planes, and one head's attention masks in bits.
    """
    tokens, width = a.num_tokens, a.embed_dim
    bits = 2 * tokens * width + a.value_groups * tokens * width + a.attention_groups * tokens
    return 4 * tokens * width + bits // 8


def estimates(a: Architecture, board: str, file_bytes: int | None = None) -> tuple[Summary, list[Estimate]]:
    """Return the model's costs and an estimate for each board of this name."""
    return summarize(a, file_bytes), [estimate(a, one, file_bytes) for one in find_boards(board)]
