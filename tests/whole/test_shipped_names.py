"""Every command that takes a MODEL takes the name of one that comes with the package."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from gsb_vit.cli import main
from gsb_vit.runtime.shipped import shipped_models

ENGINE = "native" if find_spec("gsb_vit._native") else "reference"


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: → exit status, output, error output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((16, 16), 128, np.uint8)).save(path)
    return path


def test_models_lists_them_and_prints_a_card(run):
    status, output, _ = run("models")
    assert status == 0 and all(name in output for name in shipped_models())
    status, output, _ = run("models", "--json")
    found = {one["name"]: one for one in json.loads(output)}
    assert set(found) == set(shipped_models()) and found["digits"]["classes"] == 10
    status, output, _ = run("models", "digits")
    assert status == 0 and output.startswith("# digits: ") and "## Licence" in output
    status, output, errors = run("models", "nothing")
    assert (status, output) == (2, "") and "digits" in errors


def test_predict_and_summary_take_the_name(run, picture):
    status, output, errors = run("predict", "digits", picture, "--top", 1, "--json", "--engine", "reference")
    assert status == 0 and errors == ""
    (answer,) = json.loads(output)
    assert answer["predictions"][0]["class"] in {str(digit) for digit in range(10)}
    status, output, _ = run("summary", "digits", "--json")
    assert status == 0 and json.loads(output)["file_bytes"] == shipped_models()["digits"].path.stat().st_size


def test_a_folder_of_that_name_is_used_and_said_in_one_line(run, picture, tmp_path):
    (tmp_path / "digits").mkdir()
    status, output, errors = run("predict", "digits", picture)
    assert (status, output) == (2, "")
    warning, refusal = errors.splitlines()
    assert warning.startswith("gsb-vit: warning: digits is here as a folder") and "is a folder" in refusal
    assert run("predict", "shipped:digits", picture, "--engine", "reference")[0] == 0


def test_evaluate_takes_the_name(run):
    pytest.importorskip("sklearn")
    status, output, _ = run("evaluate", "digits", "--data", "digits", "--json", "--engine", ENGINE)
    assert status == 0 and json.loads(output)["top1"] > 0.9


def test_report_takes_the_name_and_writes_here(run, tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    before = set(shipped_models()["digits"].path.parent.iterdir())
    status, _, errors = run("report", "digits", "--data", "digits", "--engine", ENGINE)
    assert status == 0, errors
    assert (tmp_path / "digits.html").is_file() and set(shipped_models()["digits"].path.parent.iterdir()) == before


def test_app_takes_the_name(run, tmp_path):
    status, _, errors = run("app", "digits", "-o", tmp_path / "app.html")
    assert status == 0, errors
    assert 'data-name="digits"' in (tmp_path / "app.html").read_text(encoding="utf-8")


def test_bench_takes_the_name(run):
    pytest.importorskip("gsb_vit._native")
    status, output, errors = run("bench", "digits", "--profile", "--json")
    assert status == 0, errors
    assert json.loads(output)
