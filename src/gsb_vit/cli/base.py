"""The application: what all commands share, and how a command ends."""

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Annotated, Any

import typer

from gsb_vit import __version__
from gsb_vit.data.datasets import SPECS
from gsb_vit.errors import InputError
from gsb_vit.limits import MAX_MEMORY_VARIABLE
from gsb_vit.terminal import as_json, filled, printable

app = typer.Typer(
    name="gsb-vit",
    help="Train one-bit vision transformers on few pictures, pack them, and run them on packed bits.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

TRAINING_LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "sklearn", "scipy", "tensorboard")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunJson = Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to the error output.")]
DATA = typer.Option(
    "--data",
    metavar="SPEC",
    help="A folder of class folders (perhaps with train/ and val/ or test/), a .zip of them, a list of path and label "
    "(.csv, .jsonl), wds/SHARDS.tar, hfds/NAME, or "
    f"{' or '.join(', '.join(SPECS).rsplit(', ', 1))}.",
)
Data = Annotated[str, DATA]
DataOrNone = Annotated[str | None, DATA]
PACKED = "a packed model, or the name of one that comes with gsb-vit (gsb-vit models lists them)"
MODEL = f"{PACKED.capitalize()}."
Threads = Annotated[int, typer.Option("--threads", min=0, help="Threads of the engine; 0 takes all cores.")]


def allow_memory(wanted: float | None) -> float | None:
    """Set the limit for this process and for those it starts."""
    if wanted is not None:
        if not 0 < wanted <= 1e6:
            raise InputError(f"--max-gigabytes {wanted} must be above 0 and at most 1,000,000")
        os.environ[MAX_MEMORY_VARIABLE] = str(max(int(wanted * 1e9), 1))
    return wanted


MaxGigabytes = Annotated[
    float | None,
    typer.Option(
        "--max-gigabytes",
        metavar="N",
        callback=allow_memory,
        help="Refuse models that take more memory (default: 1.07 packed, 16 trained).",
    ),
]
Engine = Annotated[
    str, typer.Option("--engine", metavar="native|reference", help="What runs a packed model (reference: slow NumPy).")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    0: done; 1: some pictures or runs failed and the others did not; 2: refused, with one line on the error output and,
    after ``--json``, the object ``{"error": ...}`` on the standard output; 130: interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stderr is None:  # Python's word for a closed stream; the next file would take its number
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    if sys.stdout is None:
        print("gsb-vit: the standard output is closed; give it a file, or > /dev/null", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is strictly ASCII shows escapes
    limit = os.environ.get(MAX_MEMORY_VARIABLE)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.simplefilter("ignore", DeprecationWarning)  # one library's words to another, not to a user
        status, message = _outcome(words)
        if message and not write_refusal(message, _wants_json(words)):
            status = 2
    if not _flush(sys.stdout):
        status = status or 1
    os.environ.pop(MAX_MEMORY_VARIABLE, None)  # a program that calls this again starts with its own limit
    os.environ.update({} if limit is None else {MAX_MEMORY_VARIABLE: limit})
    sys.exit(status)


def _outcome(words: list[str]) -> tuple[int, str]:
    """Run a command: → exit status, and the line to say where it was refused."""
    for position, word in enumerate(words, 1):
        if word == "":  # as a path it would be the folder that this is run in
            return 2, f"argument {position} is empty; give it a value, or leave it out with its option"
        if "\0" in word:  # some versions of click ask the system about it as a path
            return 2, f"argument {position} holds a NUL, which no file and no name has; leave it out"
    try:
        status = app(args=words, prog_name="gsb-vit", standalone_mode=False)
        sys.stdout.flush()
        return (status if isinstance(status, int) else 0), ""
    except InputError as error:
        return 2, str(error)
    except ModuleNotFoundError as error:
        # Some data sets are read by libraries of the training extra.
        if (error.name or "").partition(".")[0] not in TRAINING_LIBRARIES:
            raise
        return 2, f"this needs {error.name}: pip install 'gsb-vit[train]'"
    except BrokenPipeError:
        return 1, ""
    except OSError as error:
        reason = error.strerror or str(error)
        return 2, f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else f"output: {reason}"
    except KeyboardInterrupt:
        return 130, ""
    except MemoryError:
        return 2, "there is not enough memory for this; give smaller pictures, a smaller model or fewer at a time"
    except Exception as error:
        # Wrong usage. Typer raises click's errors, or its own copies of them, depending on its version.
        if type(error).__name__ == "Abort":
            return 130, ""
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2, ""
        return 2, f"{error.format_message()} (gsb-vit --help lists what there is)"


def write_refusal(message: str, to_json: bool) -> bool:
    """Say why a command was refused; → whether anyone could be told."""
    try:
        print(f"gsb-vit: {printable(message)}", file=sys.stderr, flush=True)
        if to_json:
            print_json({"error": message})
    except OSError:
        return False
    return True


def _wants_json(words: Sequence[str]) -> bool:
    """Whether programs read the output, as JSON or JSON Lines."""
    formats = [second for first, second in pairwise(words) if first == "--format"]
    formats += [word.partition("=")[2] for word in words if word.startswith("--format=")]
    return "--json" in words or any(one in ("json", "jsonl") for one in formats)


def _flush(stream: Any) -> bool:
    """Write out what a stream holds; where that fails, let go of it, so that Python does not try again at its end."""
    try:
        stream.flush()
        return True
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    with contextlib.suppress(OSError):
        print(f"gsb-vit: warning: {printable(str(message))}", file=sys.stderr, flush=True)


def tell(line: str) -> None:
    """Say what the user should know, beside the output, which may be JSON."""
    print(printable(line), file=sys.stderr)


def require_training(what: str) -> None:
    missing = [name for name in TRAINING_LIBRARIES if find_spec(name) is None]
    if missing:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install 'gsb-vit[train]'")


def print_prose(text: str) -> None:
    """Print text without names of files in lines of 80 cells."""
    print(*filled(printable(text)), sep="\n")


def print_json(values: Any) -> None:
    print(as_json(values))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gsb-vit {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
