"""What becomes of a run when something goes wrong: each fault is made, the run is resumed, its weights are compared.

    python benchmarks/faults.py [--kills 50] [--only KIND ...] [--json]

A small run on pictures of digits is trained once without a fault. Then each fault strikes a run of its own, which is
resumed as its one line says. A row counts how often the fault was made, how often the command answered in one line (or
needed none), and how often the resumed run ended, on the CPU, with the weights of the undisturbed one: every tensor of
every stage, bit for bit. Linux; the rows of a full and of a write-protected disk need the right to mount a tmpfs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gsb_vit.data.datasets import read_digits
from gsb_vit.errors import InputError
from gsb_vit.files import locked
from gsb_vit.models.trained import BEST, LAST, read_tensors
from gsb_vit.terminal import plain_console
from gsb_vit.train import loop
from gsb_vit.train.checkpoint import PREVIOUS, STATE
from gsb_vit.train.log import RunLog
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import train

STAGES = ("teacher", "stage1", "stage2")
SETTINGS = [
    "model.depth=1",
    "model.embed_dim=16",
    "model.num_heads=1",
    "model.drop_path_rate=0.1",
    "stage2.ema_decay=0.7",
    "threads=1",
    *(f"{stage}.{setting}" for stage in STAGES for setting in ("epochs=2", "batch_size=14")),  # all 70 in each epoch
]
PICTURES = 12  # a class
REFUSED = 2  # a child's exit status: one line was said
FOREVER = 10**9
KINDS = ("killed", "corrupted", "damaged", "disks", "vanished", "clocks", "two_processes")


@dataclass
class Row:
    """One fault: how often it was made, answered in one line or none, and left the weights of the undisturbed run."""

    fault: str
    tried: int = 0
    one_line: int = 0
    same: int = 0
    said: str = ""


@dataclass
class Ended:
    """How a training process ended: exit status (negative: a signal), its lines, and its refusal."""

    status: int
    said: str = ""
    error: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether it ended well, was killed, or was refused in one line."""
        return self.status in (0, -signal.SIGKILL) or (self.status == REFUSED and "\n" not in self.error)


class Moments:
    """Counts what a run does, before and after each: steps, epochs, and everything that it does to a file."""

    def __init__(self, at: int = FOREVER, then: Callable[[], None] = lambda: None, only: str = "") -> None:
        self.at, self.then, self.only, self.count = at, then, only, 0

    def _happens(self, name: str) -> None:
        if self.only in name:
            self.count += 1
            if self.count == self.at:
                self.then()

    def watch(self) -> None:
        """Replace the functions that are counted, for the rest of this process."""
        for owner, name in (
            (os, "replace"),
            (os, "fsync"),
            (os, "link"),
            (tempfile, "mkstemp"),
            (Path, "write_bytes"),
            (Path, "mkdir"),
            (RunLog, "epoch"),
            (torch.optim.AdamW, "step"),
        ):
            setattr(owner, name, self._counted(getattr(owner, name), name))

    def _counted(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._happens(f"before {name}")
            result = function(*arguments, **options)
            self._happens(f"after {name}")
            return result

        return counted


def launch(data: Path, out: Path, *, resume: bool = True, moments: Moments | None = None) -> Ended:
    """Train in a process of its own, forked from this one so that PyTorch is loaded already."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        stream, status, error = StringIO(), 3, ""
        try:
            loop.SAVING_SHARE = float("inf")  # every epoch is saved, however short
            if moments is not None:
                moments.watch()
            recipe = load_recipe("quickstart", SETTINGS)
            train(recipe, str(data), out, resume=resume, console=plain_console(stream))
            status = 0
        except InputError as caught:
            status, error = REFUSED, str(caught)
        except BaseException:
            error = traceback.format_exc()
        count = moments.count if moments is not None else 0
        os.write(writer, json.dumps({"said": stream.getvalue()[-20_000:], "error": error, "count": count}).encode())
        os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told = json.loads(text) if text else {"said": "", "error": "", "count": 0}
    if moments is not None:
        moments.count = told["count"]
    return Ended(status, told["said"], told["error"])


def weights(out: Path) -> dict[str, bytes]:
    """The bytes of every tensor that a run leaves in its stages, but for states."""
    found = {}
    for stage in STAGES:
        for path in sorted((out / stage).glob("*.safetensors")):
            for key, tensor in read_tensors(path)[0].items() if path.name not in (STATE, PREVIOUS) else ():
                found[f"{stage}/{path.name}/{key}"] = (
                    tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
    return found


class Faults:
    """Makes faults in a folder of its own; each method gives one row or more."""

    def __init__(self, root: Path, kills: int) -> None:
        self.root, self.kills, self.number = root, kills, 0
        self.data = write_pictures(root / "pictures")
        self.whole = root / "undisturbed"
        moments = Moments()
        ended = launch(self.data, self.whole, moments=moments)
        if ended.status:
            raise SystemExit(f"the undisturbed run failed: {ended.error}")
        self.moments = moments.count
        self.expected = weights(self.whole)
        assert {f"{stage}/{name}" for stage in STAGES for name in (BEST, LAST)} <= {
            key.rpartition("/")[0] for key in self.expected
        }

    def rows(self, kinds: Sequence[str]) -> Iterator[Row]:
        """The rows of some kinds of faults, one after another."""
        for kind in kinds:
            yield from getattr(self, kind)()

    def new(self) -> Path:
        """A path for a run that does not exist yet."""
        self.number += 1
        return self.root / f"run-{self.number}"

    def copy(self) -> Path:
        """A copy of the undisturbed run."""
        return shutil.copytree(self.whole, self.new())

    def judge(self, row: Row, out: Path, *answers: Ended, data: Path | None = None) -> None:
        """Resume a run and count it in a row; ``answers`` are those of the fault itself."""
        ended = launch(data or self.data, out)
        row.tried += 1
        row.one_line += all(one.is_plain for one in answers) and ended.is_plain
        row.same += ended.status == 0 and weights(out) == self.expected
        row.said = row.said or next((one.error for one in answers if one.error), "")
        for one in (*answers, ended):
            if not one.is_plain:
                print(f"exit status {one.status}: {one.error}", flush=True)
        if out.is_dir() and not out.is_mount():
            shutil.rmtree(out)

    def killed(self) -> Iterator[Row]:
        """SIGKILL at moments spread evenly over all that a run does."""
        row = Row(f"SIGKILL at {self.kills} of {self.moments} moments")
        for number in range(self.kills):
            out = self.new()
            at = 1 + number * (self.moments - 1) // max(self.kills - 1, 1)
            ended = launch(self.data, out, moments=Moments(at, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            if ended.status != -signal.SIGKILL:
                raise SystemExit(f"moment {at} did not come: {ended}")
            self.judge(row, out, ended)
        yield row

    def corrupted(self) -> Iterator[Row]:
        """The newest checkpoint is damaged; then it and the one before."""
        newest, both = Row("newest checkpoint damaged (bit, half, empty)"), Row("both checkpoints of a stage damaged")
        for stage in STAGES:
            for damage in (flip, cut, empty):
                out = self.copy()
                damage(out / stage / STATE)
                ended = launch(self.data, out)
                if "going on from the state before it" not in ended.said:
                    raise SystemExit(f"nothing was said of the damaged state: {ended}")
                newest.said = next(line for line in ended.said.splitlines() if "going on from" in line)
                self.judge(newest, out, ended)
            out = self.copy()
            for name in (STATE, PREVIOUS):
                flip(out / stage / name)
            ended = launch(self.data, out)
            both.said = next(line for line in ended.said.splitlines() if "begins anew" in line)
            self.judge(both, out, ended)
        yield newest
        yield both

    def damaged(self) -> Iterator[Row]:
        """A file of the run is damaged; the way on that its line names is gone."""
        for name in ("run.json", "recipe.toml", "split.json", "stage2/best.safetensors"):
            row = Row(f"{name} damaged (bit, half, empty)")
            for damage in (brace, cut, empty) if name.count(".") == 1 and "/" not in name else (flip, cut, empty):
                out = self.copy()
                damage(out / name)
                ended = launch(self.data, out)
                if ended.status != REFUSED:
                    raise SystemExit(f"the damage in {name} was not noticed: {ended}")
                (out / name).unlink()
                if "/" in name:
                    shutil.rmtree((out / name).parent)
                self.judge(row, out, ended)
            yield row

    def disks(self) -> Iterator[Row]:
        """A disk that is full, or that turns read-only."""
        full, protected = Row("disk full (ENOSPC on a tmpfs)"), Row("disk turns read-only")
        needed = sum(path.stat().st_size for path in self.whole.rglob("*") if path.is_file())
        for number in range(6):
            with Disk(self.root / "disk", needed * (number + 1) // 8) as disk:
                if not disk.is_there:
                    break
                ended = launch(self.data, disk.path / "run")
                if ended.status == 0:
                    raise SystemExit(f"{needed} bytes fit on a disk of {disk.size}")
                disk.remount(f"size={8 * needed}")
                self.judge(full, disk.path / "run", ended)
        for stage in range(2, 5):  # after the run's folder, the teacher's, stage 1's, stage 2's
            with Disk(self.root / "disk", 8 * needed) as disk:
                if not disk.is_there:
                    break
                protect = lambda disk=disk: disk.remount("ro")  # noqa: E731
                ended = launch(self.data, disk.path / "run", moments=Moments(stage, protect, "before mkdir"))
                if ended.status != REFUSED:
                    raise SystemExit(f"nothing was said of the disk: {ended}")
                disk.remount("rw")
                self.judge(protected, disk.path / "run", ended)
        yield full
        yield protected

    def vanished(self) -> Iterator[Row]:
        """Folders that are gone in the middle of a run, and pictures that lie elsewhere when it goes on."""
        row = Row("run folder gone in the middle, brought back")
        for epoch in (1, 3, 5):
            out, away = self.new(), self.new()
            ended = launch(self.data, out, moments=Moments(epoch, lambda o=out, a=away: o.rename(a), "after epoch"))
            shutil.rmtree(out, ignore_errors=True)
            away.rename(out)
            self.judge(row, out, ended)
        yield row
        row = Row("run folder, or a stage's, deleted in the middle")
        for lost in (".", *STAGES):
            out = self.new()
            delete = lambda path=out / lost: shutil.rmtree(path, ignore_errors=True)  # noqa: E731
            ended = launch(self.data, out, moments=Moments(5, delete, "after epoch"))
            self.judge(row, out, ended)
        yield row
        row = Row("pictures gone when the run goes on; found in another folder")
        for epoch in (1, 3, 5):
            out, moved = self.new(), self.root / "moved"
            launch(self.data, out, moments=Moments(epoch, lambda: os.kill(os.getpid(), signal.SIGKILL), "after epoch"))
            self.data.rename(moved)
            ended = launch(self.data, out)
            self.judge(row, out, ended, data=moved)
            moved.rename(self.data)
        yield row

    def clocks(self) -> Iterator[Row]:
        """Clocks that jump in the middle of a run: of the day, both ways, and the one that durations are taken from."""
        row = Row("clock jumps by 30 years, both ways; a sleep of a day")
        for name, jump in (("time", 1e9), ("time", -1e9), ("perf_counter", 86_400.0), ("monotonic", 86_400.0)):
            out, clock = self.new(), getattr(time, name)
            turn = lambda n=name, c=clock, j=jump: setattr(time, n, lambda: c() + j)  # noqa: E731
            self.judge(row, out, launch(self.data, out, moments=Moments(3, turn, "after epoch")))
        yield row

    def two_processes(self) -> Iterator[Row]:
        """A second process on a run's folder is refused."""
        row, out = Row("a second process on the folder"), self.copy()
        with locked(out, "gsb-vit train"):
            ended = launch(self.data, out)
        if ended.status != REFUSED:
            raise SystemExit(f"the second process was not refused: {ended}")
        self.judge(row, out, ended)
        yield row


class Disk:
    """A tmpfs of a size in bytes, where this process may mount one."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size

    def __enter__(self) -> Disk:
        self.path.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(self.path)]
        self.is_there = (
            shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
        )
        return self

    def remount(self, option: str) -> None:
        """Change the size, or whether the disk can be written to."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)

    def __exit__(self, *details: object) -> None:
        if self.is_there:
            subprocess.run(["umount", "-l", str(self.path)], check=True)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def brace(path: Path) -> None:
    """Change one byte of text, so that it is no text of its kind any more."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Keep the first half of a file, and a byte more that ends it badly."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xff")


def empty(path: Path) -> None:
    """Keep nothing of a file."""
    path.write_bytes(b"")


def write_pictures(folder: Path) -> Path:
    """The first digits of each class, as files."""
    digits = read_digits().undivided
    assert digits is not None
    counts = [0] * 10
    for picture, label in zip(digits.sources, digits.labels, strict=True):
        if counts[label] < PICTURES:
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / str(label) / f"{counts[label]:02}.png")
            counts[label] += 1
    return folder


def main() -> None:
    """Make all faults and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="moments of SIGKILL")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="some kinds of faults")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="gsb-vit-faults-") as temporary:
        root = Path(temporary)
        rows = []
        if not options.json:
            print("| fault | tried | one line, or none needed | same weights |\n|---|---|---|---|", flush=True)
        for row in Faults(root, options.kills).rows(options.only):
            rows.append({**asdict(row), "said": row.said.replace(str(root), "…")})
            if not options.json:
                print(f"| {row.fault} | {row.tried or 'not here'} | {row.one_line} | {row.same} |", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
