"""The command line on streams that break: pipes, full disks, narrow and ASCII terminals, interrupts; and bad inputs."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from paths import HELPERS, ROOT
from PIL import Image
from random_packed import random_packed

from gsb_vit.runtime.packed_file import write

SHAPE = dict(image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, mlp_hidden=40, num_classes=3)
NAMES = ("cat [b]", "dog \x1b]0;x\x07", "漢字\n:smile:")
SHOWN = ("cat [b]", "dog \\x1b]0;x\\x07", "漢字\\n:smile:")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A packed model whose class names try to write to the terminal."""
    path = tmp_path_factory.mktemp("streams") / "model.safetensors"
    write(path, replace(random_packed(seed=5, **SHAPE), class_names=NAMES))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures with names that nobody should have, and one that is no picture."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("[bold].png", "a [b].png", "e\x1b[31m.png", "f\nnew.png", b"g\xff.png", "h" * 200 + ".png"):
        with open(os.fsencode(root) + b"/" + os.fsencode(name), "wb") as file:
            Image.new("RGB", (20, 20), (len(name), 9, 99)).save(file, "PNG")
    (root / "c.png").write_text("not a picture")
    return root


def environment(**more):
    path = os.pathsep.join([str(ROOT / "src"), str(HELPERS)])
    base = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "FORCE_COLOR")}
    return {**base, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def command(*arguments):
    return [sys.executable, "-m", "gsb_vit", *map(os.fspath, map(str, arguments))]


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_closed_standard_output_is_one_line_before_any_work(model, folder, closed):
    words = command("predict", model, folder / "[bold].png", "--engine", "reference")
    shell = ["sh", "-c", f'"$@" {closed}', "sh", *words]
    done = subprocess.run(shell, env=environment(), capture_output=True, timeout=120)
    said = done.stderr.decode().splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr.decode()
    assert said == (
        [] if "2>" in closed else ["gsb-vit: the standard output is closed; give it a file, or > /dev/null"]
    )


def test_a_closed_error_output_loses_no_answers(model, folder):
    words = command("predict", model, folder / "[bold].png", folder / "c.png", "--engine", "reference", "--json")
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *words], env=environment(), capture_output=True, timeout=120)
    assert done.returncode == 1 and len(json.loads(done.stdout)) == 2


def predict(model, *arguments, **more):
    words = command("predict", model, *arguments, "--engine", "reference")
    return subprocess.run(words, env=environment(**more), capture_output=True, timeout=120)


def in_a_terminal(words, columns, **more):
    """Run a command in a terminal of so many columns: → exit status, what it wrote."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(words[0], words, environment(COLUMNS=str(columns), TERM="xterm", **more))
    written = b""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        written += data
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), written.decode(errors="surrogateescape")


def test_one_bad_picture_costs_no_answer(model, folder):
    done = predict(model, folder, "--top", 1, "--json")
    assert done.returncode == 1
    answers = json.loads(done.stdout)
    assert len(answers) == 7
    (bad,) = [answer for answer in answers if "error" in answer]
    assert list(bad) == ["path", "error"] and bad["path"].endswith("c.png") and "not a picture" in bad["error"]
    assert all(list(answer) == ["path", "predictions"] for answer in answers if answer is not bad)
    assert any(answer["path"].endswith("/g\udcff.png") for answer in answers)
    assert done.stderr.decode() == "gsb-vit: 1 of 7 pictures could not be read\n"
    assert b"\x1b" not in done.stdout


def test_a_pipe_gets_every_column(model, folder):
    done = predict(model, folder, "--top", 3)
    assert done.returncode == 1 and b"\x1b" not in done.stdout
    rows = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert len(rows) == 6 * 3 + 1 and {len(row) for row in rows} == {3}
    good = [row for row in rows if row[1] != "error"]
    assert {row[1] for row in good} == set(SHOWN)
    assert all(re.fullmatch(r"[0-9.]+ %", row[2]) for row in good)
    names = {row[0].removeprefix(f"{folder}/") for row in good}
    assert names == {"[bold].png", "a [b].png", "e\\x1b[31m.png", "f\\nnew.png", "g\\xff.png", "h" * 200 + ".png"}


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_a_terminal_gets_every_answer_at_any_width(model, folder, columns):
    status, written = in_a_terminal(command("predict", model, folder, "--engine", "reference"), columns)
    assert status == 1 and "\x1b" not in written
    lines = written.split("\r\n")
    whole = "".join(line.strip() for line in lines)
    assert whole.count(" %") == 18
    assert all(whole.count(name.replace(" ", "")) or name in whole for name in SHOWN)
    answers = [line for line in lines if not line.startswith("gsb-vit:")]
    assert all(len(line) <= columns for line in answers)


@pytest.mark.parametrize("columns", [20, 80])
def test_summary_in_a_terminal_keeps_every_figure(model, columns):
    _, narrow = in_a_terminal(command("summary", model), columns)
    piped = subprocess.run(command("summary", model), env=environment(), capture_output=True, text=True, timeout=120)
    figures = re.findall(r"\d+\.\d\d [kMG]", piped.stdout)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", narrow).replace("\r\n", "")
    assert figures and sum(plain.count(one) for one in set(figures)) >= len(set(figures))


def test_answers_come_one_by_one(model, folder):
    """The first answer is there while a later picture is not yet: that one is a pipe, read only when it is written."""
    words = command("predict", model, *[folder / "[bold].png"] * 300, "--engine", "reference", "--json")
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE) as process:
        first = process.stdout.read(2)
        assert first == b"[\n" and process.poll() is None
        process.stdout.read()
    assert process.returncode == 0


def test_a_model_whose_numbers_overflow_is_refused_by_name(tmp_path, folder):
    packed = random_packed(seed=5, **SHAPE)
    tensors = {
        name: np.full_like(array, 3e38) if name.endswith("proj.scale") or name.startswith("heads.0.scale") else array
        for name, array in packed.tensors.items()
    }
    write(tmp_path / "huge.safetensors", replace(packed, tensors=tensors))
    for options in ([], ["--json"]):
        done = predict(tmp_path / "huge.safetensors", folder / "[bold].png", *options)
        assert done.returncode == 2
        (line,) = done.stderr.decode().splitlines()
        assert "huge.safetensors" in line and "overflow" in line
        assert b"NaN" not in done.stdout and b"nan" not in done.stdout
        if options:
            assert [list(one) for one in json.loads(done.stdout)] == [["path", "error"]]
    done = subprocess.run(
        command("evaluate", tmp_path / "huge.safetensors", "--data", classes(tmp_path), "--engine", "reference"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "overflow" in done.stderr and "Traceback" not in done.stderr


def classes(root):
    for index in range(3):
        (root / "data" / f"class {index}").mkdir(parents=True)
        Image.new("L", (8, 8), 80 * index).save(root / "data" / f"class {index}" / "0.png")
    return root / "data"


REFUSED = [
    ["predict", "nothing.safetensors", "x.png"],
    ["predict", "\x1b]0;x\x07.safetensors", "x.png"],
    ["predict", ".", "."],
    ["predict"],
    ["summary", "nothing.safetensors"],
    ["evaluate", "nothing.safetensors", "--data", "nowhere"],
    ["predict", "m", "x", "--top", "0"],
    ["predict", "m", "x", "--top", "9" * 400],
    ["predict", "m", "x", "--threads", "9" * 20],
    ["predict", "m", "x", "--max-megapixels", "nan"],
    ["predict", "m", "x", "--engine", "[/b]"],
    ["bench", "m", "--arch", "n"],
    ["nothing"],
    ["--nothing"],
]


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words)[:40].encode("unicode_escape").decode())
def test_refusals_are_one_line_and_json_for_programs(words, capfd, monkeypatch, tmp_path):
    from gsb_vit.cli import main

    monkeypatch.chdir(tmp_path)
    for options in ([], ["--json"], ["--format", "jsonl"]):
        with pytest.raises(SystemExit) as stop:
            main([*words, *options])
        output, errors = capfd.readouterr()
        assert stop.value.code == 2
        (line,) = errors.splitlines()
        assert line.startswith("gsb-vit: ") and "\x1b" not in line
        if options:
            assert list(json.loads(output)) == ["error"]
        else:
            assert output == ""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_terminal_that_is_strictly_ascii(model, folder, options):
    for more in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = predict(model, folder, *options, **more)
        assert done.returncode == 1, done.stderr
        text = done.stdout.decode("ascii")
        if options:
            assert {one["class"] for answer in json.loads(text) for one in answer.get("predictions", [])} == set(NAMES)
        else:
            assert "\\u6f22" in text


def test_a_full_disk_and_a_closed_pipe_are_no_tracebacks(model, folder):
    words = command("predict", model, folder, "--engine", "reference")
    for options in ([], ["--json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*words, *options], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
            )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "No space left" in line
        process = subprocess.Popen(
            [*words, *options], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()
        errors = process.stderr.read().decode()
        process.stderr.close()
        assert process.wait(timeout=120) == 1 and errors == ""
    with open("/dev/full", "w") as full:
        words = command("--version")
        done = subprocess.run(words, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_an_interrupt_ends_with_130_and_whole_json(model, folder):
    words = command("predict", model, *[folder / "[bold].png"] * 3000, "--engine", "reference", "--json")
    process = subprocess.Popen(
        words,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors == b""
    assert first == b"[" and len(json.loads(first + output)) < 3000


@pytest.mark.parametrize(
    ("error", "status"), [(MemoryError(), 2), (KeyboardInterrupt(), 130), (OSError(5, "bad disk"), 2)]
)
def test_what_the_machine_raises(monkeypatch, capfd, error, status):
    import gsb_vit
    from gsb_vit import cli

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(gsb_vit, "load", fail, raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "m", "x"])
    assert stop.value.code == status
    assert len(capfd.readouterr().err.splitlines()) == (1 if status == 2 else 0)


def test_a_limit_on_the_command_line(model, folder):
    done = predict(model, folder / "[bold].png", "--max-megapixels", "0.0001")
    assert done.returncode == 1 and b"megapixels" in done.stdout


def test_a_warning_is_one_line(tmp_path, model):
    (tmp_path / "x").mkdir()
    for name in "ab":
        Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16)).save(tmp_path / "x" / f"{name}.png")
    done = predict(model, tmp_path / "x")
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("gsb-vit: warning: ") and "12 bits" in line
