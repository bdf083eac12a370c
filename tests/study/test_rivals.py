"""Rivals: networks of other families beside one bit, made int8, timed in turns; how rows, table and plot show it."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_study import run_here

from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.models.trained import load_model
from gsb_vit.study.plan import load_study, plan, run_folder
from gsb_vit.study.plots import plot_svg
from gsb_vit.study.results import Spread, _int8_of, aggregate, deployed, file_bytes
from gsb_vit.study.tables import csv_text, markdown

STUDY = """
title = "Rivals"
data = "digits"
recipe = "quickstart"
reference = "one_bit"
int8 = "onnxruntime"
[set]
model.depth = 1
model.embed_dim = 32
data.shots = 8
threads = 1
teacher.source = "timm:test_efficientnet"
teacher.img_size = 24
teacher.epochs = 1
teacher.cache_views = 1
twin.epochs = 2
twin.warmup_epochs = 0
stage1.epochs = 0
stage2.epochs = 0
[variants.conv]
title = "a convolutional network"
model.architecture = "test_resnet"
model.shown_size = 32
[variants.teacher]
title = "the teacher"
twin.epochs = 0
[variants.one_bit]
title = "one bit"
twin.epochs = 1
stage2.epochs = 1
[plot]
x = "bytes"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rivals.toml"
    path.write_text(STUDY, encoding="utf-8")
    return path


def test_networks_of_all_families_share_a_teacher_and_its_views(file: Path, tmp_path: Path) -> None:
    jobs = plan(load_study(file), tmp_path / "out").jobs
    assert [job.kind for job in jobs] == ["teacher", "student", "student"]
    assert {job.needs for job in jobs[1:]} == {jobs[0].name}
    assert {job.recipe.teacher.views for job in jobs[1:]} == {str(tmp_path / "out" / "views")}
    assert jobs[0].recipe.teacher.views is None


def test_an_unknown_engine_is_refused(file: Path) -> None:
    file.write_text(STUDY.replace('"onnxruntime"', '"abacus"'), encoding="utf-8")
    with pytest.raises(InputError, match="int8 = 'abacus'"):
        load_study(file)


def test_a_missing_onnxruntime_is_said_before_anything_trains(file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("gsb_vit.study.int8.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxruntime.*gsb-vit\[train,bench\]"):
        run_here(monkeypatch, file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_int8_model_that_counts_is_the_fastest_or_before_any_is_timed_the_best() -> None:
    forms = [{"form": "all", "bytes": 10, "top1": 0.5}, {"form": "products", "bytes": 12, "top1": 0.6}]
    assert _int8_of({"int8": forms})["int8_form"] == "products"
    timed = [{**one, "latency_ms": ms} for one, ms in zip(forms, (1.0, 2.0), strict=True)]
    assert _int8_of({"int8": timed}) == {
        "int8_form": "all",
        "int8_bytes": 10,
        "int8_top1": 0.5,
        "latency_ms": 1.0,
    }
    assert set(_int8_of({}).values()) == {None}


def made_rows(study, timed: bool) -> list[dict]:
    shared = {"seed": 0, "final": 1, "top5": 0.9, "macro_precision": 0.5, "macro_recall": 0.5, "macro_f1": 0.5}
    shared |= {"test_pictures": 10, "chosen_epoch": 1, "seconds": 2.0, "parameters": 5, "commit": "abc", "cpu": "x"}
    shared |= {"gpu": None, "threads": 1, "command": "gsb-vit study", "data": "digits", "run": "r"}
    conv = {"variant": "conv", "title": "conv", "stage": "twin", "top1": 0.80, "bytes": 4000, "packed_bytes": None}
    conv |= {"int8_form": "all", "int8_bytes": 1200, "int8_top1": 0.75, "latency_ms": 2.0 if timed else None}
    own = {"variant": "one_bit", "title": "one bit", "stage": "stage2", "top1": 0.78, "bytes": 900, "packed_bytes": 950}
    own |= {"int8_form": None, "int8_bytes": None, "int8_top1": None, "latency_ms": 0.5 if timed else None}
    return [{**shared, **conv}, {**shared, **own}]


@pytest.mark.parametrize("timed", [False, True])
def test_what_is_int8_counts_with_its_int8_figures(file: Path, timed: bool) -> None:
    study = load_study(file)
    rows = made_rows(study, timed)
    assert [deployed(row) for row in rows] == [0.75, 0.78]
    conv, own = aggregate(study, rows)
    assert (file_bytes(conv), file_bytes(own)) == (1200, 950)
    assert conv.int8 == Spread.of([0.75]) and own.int8 is None
    assert conv.lead is not None and conv.lead.mean == pytest.approx(-0.03)  # not of its float figures
    text = markdown(study, [conv, own])
    line = next(line for line in text.splitlines() if line.startswith("| conv |"))
    assert "| **80.00** | 75.00 |" in line and "*" not in line.replace("**", "")
    assert ("ms per image" in text) == timed and "static, calibrated on training pictures" in text
    assert "int8_top1" in csv_text(study, rows).splitlines()[0]
    picture = plot_svg(study, [conv, own])
    assert picture is not None and ('id="axes_2"' in picture) == timed


# Trains three small networks, exports one to ONNX and quantizes it four times.
@pytest.mark.slow
def test_a_study_makes_its_rivals_int8_and_times_them_in_turns(file: Path, tmp_path: Path, monkeypatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    from gsb_vit.study.int8 import int8_file, run_onnx

    out, document = tmp_path / "out", tmp_path / "doc.md"
    document.write_text("<!-- study rivals -->\n<!-- /study rivals -->\n", encoding="utf-8")
    errors, started = run_here(monkeypatch, file, out, document=document)
    assert errors == {} and len(started) == 3
    conv = run_folder(out, "conv-s0")
    size = json.loads((conv / "size.json").read_text())
    assert [one["form"] for one in size["int8"]] == ["all", "products"]
    trained = load_model(conv)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    for one in size["int8"]:
        path = int8_file(conv, one["form"])
        assert path.stat().st_size == one["bytes"] < size["bytes"]
        assert run_onnx(path, pixels).shape == (4, 10)
    assert "int8" not in json.loads((run_folder(out, "one_bit-s0") / "size.json").read_text())
    assert trained.info.architecture == "test_resnet" and "| in int8 |" in document.read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["study", str(file), "--out", str(out), "--jobs", "0", "--latency"])
    assert stop.value.code == 0
    (teacher,) = (path for path in conv.parent.iterdir() if path.name.startswith("teacher-"))
    assert load_model(teacher).preprocessing.size == (24, 24) != trained.preprocessing.size
    for folder in (conv, teacher):
        (kept,) = (one for one in json.loads((folder / "size.json").read_text())["int8"] if one["form"] == "all")
        assert "latency_ms" in kept and (kept["latency_ms"] is not None or "spread" in kept["latency_problem"])
