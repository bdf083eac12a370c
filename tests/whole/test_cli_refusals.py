"""Bad values for every parameter of every command, found by walking the commands: one line, never a traceback."""

import inspect
import json
import os
import re
import signal
import socket
import typing
from typing import NamedTuple

import pytest
from PIL import Image
from processes import HANG_SECONDS
from random_packed import write_random_packed

from gsb_vit import cli
from gsb_vit.errors import InputError

pytest.importorskip("torch", reason="PyTorch is not installed")

SHAPE = dict(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=1, mlp_hidden=16, num_classes=3)


class Parameter(NamedTuple):
    """A parameter of a command: its option (None: an argument), its type, and its name in the help."""

    name: str
    option: str | None
    kind: type
    metavar: str | None
    required: bool


def parameters_of(callback):
    """Read a command's parameters off its signature."""
    # get_type_hints would wrap what has None for a default in Optional, on Python 3.10.
    for name, parameter in inspect.signature(callback, eval_str=True).parameters.items():
        plain, info = typing.get_args(parameter.annotation)[:2]
        kinds = [one for one in (typing.get_args(plain) or (plain,)) if one is not type(None)]
        # In Annotated, what Typer calls the default is the first of the option's names.
        names = [one for one in (info.default, *(info.param_decls or ())) if str(one).startswith("--")]
        option = names[0] if names else None
        yield Parameter(name, option, kinds[0], info.metavar, parameter.default is inspect.Parameter.empty)


COMMANDS = {
    command.name or command.callback.__name__: tuple(parameters_of(command.callback))
    for command in cli.app.registered_commands
}
# A value of each required parameter that is good, by what the help calls it; names lie in the test's folder.
PLAIN = {
    "SPEC": "data",
    "RUN": "new",
    "RUN|MODEL": "model.safetensors",
    "MODEL": "model.safetensors",
    "MODEL.safetensors": "packed.safetensors",
    "MODEL|ARCH": "model.safetensors",
    "MODEL...": "model.safetensors",
    "APP.html": "app.html",
    "PATH...": "picture.png",
    "STUDY.toml": "study.toml",
    "DIR": "new",
    "NAME": "new",
    "PICTURE...": "data",
    "NEW.safetensors": "packed.safetensors",
    "USER/NAME": "user/name",
}
# Of the parameters that are no options of their own in a call without them.
ALSO = {"bench": ["model.safetensors"], "export": [], "quickstart": []}
HUGE = "9" * 400
TEXTS = ["", "[/b]", "\x1b]0;x\x07", "漢字\n", "x" * 5000, HUGE, "nothing", "a=b=c", "\udcff", "[" * 3000]
PATHS = [
    *TEXTS, "pipe", "pipe.toml", "pipe.safetensors", "/dev/zero", "/dev/full", "socket", "data", "a\0b",
    "text.safetensors", "text.toml", "binary.toml", "deep.toml", "long.safetensors", "nowhere/model.safetensors",
    "model.safetensors/x",
]  # fmt: skip
NUMBERS = ["", "-1", "x", "nan", "inf", "-inf", "1e400", HUGE, f"-{HUGE}", "0x10", "1.5", "१"]
SETTINGS = [
    "=",
    "a",
    "a=",
    "stage2.epochs=",
    f"stage2.epochs={HUGE}",
    "stage2.epochs=nan",
    "stage2=1",
    "model=[[[",
    "\0=1",
]


def bad_values(parameter):
    """What to try for a parameter, by its type."""
    if parameter.name in ("settings", "cluster_set"):
        return SETTINGS + TEXTS
    return {bool: [], int: NUMBERS, float: NUMBERS}.get(parameter.kind, PATHS)


CASES = [
    pytest.param(name, parameter, value, id=f"{name} {parameter.option or parameter.name} {ascii(value)[1:24]}")
    for name, parameters in COMMANDS.items()
    for parameter in parameters
    for value in bad_values(parameter)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A packed model, pictures, and what is no file."""
    root = tmp_path_factory.mktemp("refusals")
    write_random_packed(root / "model.safetensors", seed=1, **SHAPE)
    for index in range(3):
        (root / "data" / f"class {index}").mkdir(parents=True)
        Image.new("L", (8, 8), 80 * index).save(root / "data" / f"class {index}" / "0.png")
    Image.new("L", (8, 8)).save(root / "picture.png")
    for name in ("pipe", "pipe.toml", "pipe.safetensors"):
        os.mkfifo(root / name)
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(root)  # a socket's name is short
    server.bind("socket")
    os.chdir(here)
    (root / "text.safetensors").write_text("no model, but long enough to be one")
    (root / "text.toml").write_text("[nothing]\nx = 1\n")
    (root / "binary.toml").write_bytes(b"\xff\xfe\0")
    (root / "deep.toml").write_text("x = " + "[" * 5000)
    (root / "study.toml").write_text("[nothing]\nx = 1\n")
    (root / "long.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + bytes(100))
    yield root
    server.close()


@pytest.fixture(autouse=True)
def no_hang():
    """What opens a pipe waits for ever."""

    def stop(*_):
        raise TimeoutError("the command hangs")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(int(os.environ.get("REFUSAL_SECONDS", HANG_SECONDS)))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """What gets as far as training or timing has refused nothing; both take minutes."""
    from gsb_vit.bench.peers import worker
    from gsb_vit.runtime import hub
    from gsb_vit.train import loop

    def stop(*_, **__):
        raise InputError("the work begins")

    monkeypatch.setattr(loop.StageRun, "run", stop)
    monkeypatch.setattr(worker.Worker, "__init__", stop)
    monkeypatch.setattr(hub, "_hub", stop)


def words_of(name, tried, value):
    """The command line: required parameters with plain values, and the one that is tried."""
    words, arguments = [name], []
    for parameter in COMMANDS[name]:
        option = parameter.option
        if parameter.name == tried.name:
            given = value
        elif parameter.required:
            given = PLAIN[parameter.metavar]
        else:
            continue
        if option is None:
            arguments.append(given)
        else:
            words.append(f"{option}={given}")
    if tried.name not in ("model", "arch"):
        arguments += ALSO.get(name, [])
    return [*words, "--", *arguments] if arguments else words


FOUND = re.compile(r" pictures? found$|^  ")
PROGRESS = {"train", "study", "quickstart"}  # they tell it on the error output where the output is JSON


def test_every_command_prints_json():
    assert all(any(one.option == "--json" for one in parameters) for parameters in COMMANDS.values())


def call(words, capfd):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    output, errors = capfd.readouterr()
    return stop.value.code, output, errors


@pytest.mark.parametrize(("name", "parameter", "value"), CASES)
def test_a_bad_value_is_one_line(name, parameter, value, folder, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    words = words_of(name, parameter, value)
    status, _, errors = call(words, capfd)
    assert status in (0, 1, 2)
    if status == 2:
        *found, line = errors.splitlines()  # what was found in a folder may be told before
        assert all(FOUND.search(one) and one.isprintable() for one in found)
        assert line.startswith("gsb-vit: ") and line.isprintable()
        assert len(line) < 1200 + 3 * len(value)
    status, output, errors = call([words[0], "--json", *words[1:]], capfd)
    found = json.loads(output)
    if status == 2 and name != "predict":
        lines = errors.splitlines()
        assert list(found) == ["error"] and lines[-1].startswith("gsb-vit: ")
        assert name in PROGRESS or all(FOUND.search(one) for one in lines[:-1])
