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

# Instructions per cycle, as assumed: a core that runs them in order, one that does not, and small ones. Counted
# instructions take 1.22 cycles each by the timings of the Cortex-M4's manual, memory without wait states, and 1.28 on a
# Cortex-M55 if vectors take two and all else one. The same is assumed of the LX7.
_IN_ORDER, _OUT_OF_ORDER, _SMALL = 1.0, 2.0, 0.8


@dataclass(frozen=True)
class Board:
    """A board: its processor, clock in Hz, bytes of RAM and of flash (None: a card or an external chip of any size).

    ``build``: the engine's build that runs there. ``is_micro``: without an operating system, so the model is read where
    it lies in flash, and RAM holds what changes: in one piece, so that it is the largest of the board's that counts.
    ``source`` names who states clock and memory.
    """

    name: str
    title: str
    processor: str
    build: str
    clock: float
    per_cycle: float
    ram: int
    flash: int | None
    source: str
    is_micro: bool = False


def _pi(name: str, title: str, processor: str, build: str, clock: float, per_cycle: float, ram: int) -> Board:
    return Board(name, title, processor, build, clock, per_cycle, ram, None, "Raspberry Pi documentation")


def _micro(
    name: str, title: str, processor: str, clock: float, per_cycle: float, ram: int, flash: int | None, source: str
) -> Board:
    return Board(name, title, processor, f"c99-{name}", clock, per_cycle, ram, flash, source, is_micro=True)


_MB, _KB = 1 << 20, 1 << 10
_ESP32_S3_DATA = 0x3FCDB700 - 0x3FC88000  # ESP-IDF's segment for static data: from its start to the boot loader's
BOARDS = {
    board.name: board
    for board in (
        _pi("pi2", "Raspberry Pi 2 (BCM2836)", "Cortex-A7", "armv7", 900e6, _IN_ORDER, 1024 * _MB),
        _pi("pi3", "Raspberry Pi 3 B+", "Cortex-A53", "aarch64", 1400e6, _IN_ORDER, 1024 * _MB),
        _pi("pi4", "Raspberry Pi 4 (1 GB)", "Cortex-A72", "aarch64", 1500e6, _OUT_OF_ORDER, 1024 * _MB),
        _pi("pi5", "Raspberry Pi 5 (2 GB)", "Cortex-A76", "aarch64-dot", 2400e6, _OUT_OF_ORDER, 2048 * _MB),
        _pi("zero2", "Raspberry Pi Zero 2 W", "Cortex-A53", "aarch64", 1000e6, _IN_ORDER, 512 * _MB),
        Board("visionfive2", "VisionFive 2 (2 GB)", "RISC-V U74", "riscv64", 1500e6, _IN_ORDER, 2048 * _MB, None,
              "VisionFive 2 quick start guide"),
        _micro("cortex-m4f", "nRF52840", "Cortex-M4F", 64e6, _SMALL, 256 * _KB, 1 * _MB,
               "nRF52840 product specification"),
        _micro("cortex-m7", "STM32H743 (AXI SRAM)", "Cortex-M7", 480e6, _IN_ORDER, 512 * _KB, 2 * _MB,
               "STM32H743 data sheet (DS12110)"),
        _micro("cortex-m55", "STM32N6", "Cortex-M55", 800e6, _SMALL, 4224 * _KB, None,
               "STM32N6 data sheet and reference manual (RM0486)"),
        _micro("esp32-s3", "ESP32-S3-DevKitC-1-N8", "Xtensa LX7", 240e6, _SMALL, _ESP32_S3_DATA, 8 * _MB,
               "ESP32-S3 data sheet; ESP-IDF's linker script"),
    )
}  # fmt: skip


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
        said = f"not estimated: nothing was counted for {board.build}"
        return Estimate(board, ram, ram_is, memory.file, None, None, said)
    instructions = found.instructions(a)
    ms = 1e3 * instructions / (board.clock * board.per_cycle)
    said = f"estimated from {found.how}; clock and instructions per cycle are assumed"
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
