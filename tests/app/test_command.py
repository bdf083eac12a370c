"""`gsb-vit app`: what it writes, and what it refuses."""

import base64
import re

import pytest
from random_packed import TINY, write_random_packed
from wasm_build import MODULE

from gsb_vit.cli import main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["app", *map(str, arguments)])
    return stop.value.code, capsys.readouterr()


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    path.parent.mkdir()
    write_random_packed(path, seed=1, **TINY)
    return path


def test_one_file_holds_everything(model, tmp_path, capsys):
    other = tmp_path / "run.safetensors"
    other.write_bytes(model.read_bytes())
    code, said = run(capsys, model, other, model, "-o", tmp_path / "app.html")
    assert code == 0
    assert "open it in a browser" in said.out
    page = (tmp_path / "app.html").read_text()
    held = re.findall(r'<script type="text/plain"([^>]*)>([A-Za-z0-9+/=]+)</script>', page)
    assert [base64.b64decode(text) for _, text in held] == [MODULE.read_bytes(), *[model.read_bytes()] * 3]
    assert re.findall(r'data-name="([^"]*)"', page) == ["run", "run (2)", "run (3)"]
    assert not re.search(r"\{\{\w+\}\}|^import |\bhttps?://", page, re.MULTILINE)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy


def test_names_from_the_outside_stay_text(model, tmp_path, capsys):
    named = model.with_name('a"><script>alert(1)</script>.safetensors'.replace("/", "_"))
    model.rename(named)
    assert run(capsys, named, "-o", tmp_path / "app.html")[0] == 0
    page = (tmp_path / "app.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("missing", None, "missing: cannot be read"),
        ("photo", b"\xff\xd8 no model", "photo: not a packed model"),
    ],
)
def test_what_is_no_model_is_refused_and_nothing_is_written(tmp_path, capsys, name, data, says):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    code, said = run(capsys, tmp_path / name, "-o", tmp_path / "app.html")
    assert code == 2
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "app.html").exists()


def test_a_model_is_not_overwritten(model, capsys):
    before = model.read_bytes()
    code, said = run(capsys, model, "-o", model)
    assert code == 2
    assert "is one of the models" in said.err
    assert model.read_bytes() == before
