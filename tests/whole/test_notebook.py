"""The notebook of examples/: stripped of outputs, and its cells run in order, as in Jupyter but without it."""

import ast
import json
from html.parser import HTMLParser

import pytest
from paths import ROOT

import gsb_vit

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells_of(path, kind):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def run_cell(source, names):
    """Run a cell's code; → the value of its last line where that is an expression, which Jupyter would show."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_there_is_a_notebook():
    assert [path.name for path in NOTEBOOKS] == ["folder_to_classifier.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_the_format_is_held(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | (
            {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        )
        assert cell.get("execution_count") is None and cell.get("outputs", []) == []


# Trains a teacher and two stages for some epochs: what the notebook promises is run as it stands.
@pytest.mark.slow
def test_the_cells_run_in_order_and_leave_a_report_and_a_file(tmp_path, monkeypatch, capsys, one_thread):
    pytest.importorskip("gsb_vit._native")
    monkeypatch.chdir(tmp_path)
    names, values = {"__name__": "__main__"}, []
    for source in cells_of(NOTEBOOKS[0], "code"):
        values.append(run_cell(source, names))
    assert (tmp_path / "runs/notebook/report.html").stat().st_size > 10_000
    assert gsb_vit.load(tmp_path / "digits.safetensors").class_names == ("four", "one", "three", "two", "zero")
    assert gsb_vit.load(tmp_path / "digits-and-five.safetensors").class_names[-1] == "five"
    run, model, wider = values[1], values[2], values[-1]
    assert run.test["top1"] > 0.4  # of five classes
    for shown in (run, model, wider):
        parser = HTMLParser()
        parser.feed(shown._repr_html_())
        assert "<table>" in shown._repr_html_()
    printed = capsys.readouterr().out
    assert " of 40 fives found" in printed and "report.html" in printed
