"""The command line: what it prints, its exit statuses, and one line for what a user can mend."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from processes import HANG_SECONDS, wait_until
from random_packed import write_random_packed

from gsb_vit.bench.compare import benchmark
from gsb_vit.cli import app, main
from gsb_vit.decision import Decision, Unknown
from gsb_vit.errors import InputError
from gsb_vit.runtime.packed_file import read, write
from gsb_vit.runtime.reference import ReferenceModel

CLASSES = ("class 0", "class 1", "class 2")
METRICS = ["n", "top1", "top5", "macro_precision", "macro_recall", "macro_f1", "calibration_error"]
JUDGED = ["n_given", "n_seen", "n_left_out"]
RECIPE = """
seed = 3
[model]
img_size = 16
patch_size = 4
embed_dim = 32
depth = 1
num_heads = 2
[data]
resize = "squash"
[teacher]
epochs = 1
learning_rate = 1e-3
[stage1]
epochs = 1
learning_rate = 1e-4
[stage2]
epochs = 1
learning_rate = 1e-4
"""


@pytest.fixture
def run(capsys):
    """Run a command in this process: → exit status, output, error output."""

    def call(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return stop.value.code, output, errors

    return call


@pytest.fixture
def refused(run):
    """Run a command that must be refused: → its one line on the error output."""

    def call(*arguments):
        status, output, errors = run(*arguments)
        assert status == 2
        assert output == ""
        (line,) = errors.splitlines()
        assert line.startswith("gsb-vit: ")
        return line

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "model.safetensors"
    write_random_packed(
        path, seed=5, image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, mlp_hidden=40, num_classes=3
    )
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three class folders of two pictures, each of another kind."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    kinds = ["RGB", "L", "RGBA", "P", "CMYK", "I;16"]
    for index, kind in enumerate(kinds):
        folder = root / CLASSES[index // 2]
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        if kind == "I;16":
            image = Image.fromarray(rng.integers(0, 65536, (20, 24), dtype=np.uint16))
        else:
            image = Image.fromarray(pixels).convert(kind)
        image.save(folder / f"{index}.{'tif' if kind == 'CMYK' else 'png'}")
    return root


def test_the_commands_and_their_options_are_frozen():
    commands = {command.callback.__name__ for command in app.registered_commands}
    named = (
        "train quickstart export evaluate report predict add_class push offline_page models summary sensitivity bench"
        " study"
    )
    assert commands == set(named.split())


def test_help_names_every_command(run):
    status, output, _ = run("--help")
    assert status == 0
    for name in ("train", "quickstart", "export", "evaluate", "report", "predict", "app", "summary", "sensitivity"):
        assert name in output
        assert run(name, "--help")[0] == 0


def test_version(run):
    import gsb_vit

    assert run("--version")[:2] == (0, f"gsb-vit {gsb_vit.__version__}\n")


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["predict"], ["bench", "m", "--batch", "0"], ["train", "--nothing"]]
)
def test_wrong_usage_exits_2_without_a_traceback(run, arguments):
    status, _, errors = run(*arguments)
    assert status == 2
    assert errors and "Traceback" not in errors


def test_predict_prints_json(run, model, pictures):
    status, output, _ = run("predict", model, pictures, "--top", 2, "--json", "--engine", "reference")
    assert status == 0
    answers = json.loads(output)
    assert [Path(answer["path"]).name for answer in answers] == [f"{i}.{'tif' if i == 4 else 'png'}" for i in range(6)]
    for answer in answers:
        assert list(answer) == ["path", "predictions"]
        first, second = answer["predictions"]
        assert {first["class"], second["class"]} < set(CLASSES)
        assert 1 >= first["probability"] >= second["probability"] >= 0


@pytest.fixture(scope="module")
def deciding(model, pictures, tmp_path_factory):
    """The same model with a threshold above which half of the pictures are known; how many are not."""
    packed = read(model)
    logits = ReferenceModel(packed).logits(
        np.stack([packed.preprocessing(path) for path in sorted(pictures.rglob("*.*")) if path.is_file()])
    )
    threshold = float(np.median(logits.max(axis=1)))
    path = tmp_path_factory.mktemp("deciding") / "model.safetensors"
    write(path, replace(packed, decision=Decision(2.0, Unknown("max_logit", threshold, 0.05))))
    return path, int((logits.max(axis=1) < threshold).sum())


def test_predict_prints_json_lines(run, model, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    arguments = ("predict", model, pictures, bad, "--top", 2, "--engine", "reference")
    status, output, _ = run(*arguments, "--format", "jsonl")
    lines = [json.loads(line) for line in output.splitlines()]
    assert status == 1 and lines == json.loads(run(*arguments, "--format", "json")[1])
    assert len(lines) == 7 and list(lines[6]) == ["path", "error"]


def test_predict_prints_csv(run, model, pictures, tmp_path):
    odd, bad = tmp_path / 'a "quoted", name.png', tmp_path / "bad.png"
    odd.write_bytes((pictures / CLASSES[0] / "0.png").read_bytes())
    bad.write_bytes(b"no picture")
    arguments = ("predict", model, odd, bad, "--top", 2, "--engine", "reference")
    status, output, _ = run(*arguments, "--format=csv")
    assert status == 1
    heading, first, second, wrong = csv.reader(io.StringIO(output))
    assert heading == ["path", "status", "rank", "class", "probability", "error"]
    answers = json.loads(run(*arguments, "--json")[1])
    for rank, row in ((1, first), (2, second)):
        one = answers[0]["predictions"][rank - 1]
        assert row == [str(odd), "ok", str(rank), one["class"], repr(one["probability"]), ""]
    assert wrong == [str(bad), "error", "", "", "", answers[1]["error"]]


def test_predict_gives_strangers_no_class(run, deciding, pictures):
    path, strangers = deciding
    assert 0 < strangers < 6
    arguments = ("predict", path, pictures, "--top", 1, "--engine", "reference", "--unknown")
    answers = json.loads(run(*arguments, "--json")[1])
    assert [list(one) for one in answers] == [["path", "unknown", "predictions"]] * 6
    assert all(one["unknown"] == (one["predictions"] == []) for one in answers)
    assert sum(one["unknown"] for one in answers) == strangers
    assert [json.loads(line) for line in run(*arguments, "--format", "jsonl")[1].splitlines()] == answers
    rows = list(csv.DictReader(io.StringIO(run(*arguments, "--format", "csv")[1])))
    assert [row["status"] for row in rows] == ["unknown" if one["unknown"] else "ok" for one in answers]
    assert run(*arguments)[1].count("(none of the classes)") == strangers
    assert "(none" not in run(*arguments[:-1])[1]


def test_predict_refuses_what_it_cannot_do(refused, model, pictures):
    assert "no threshold" in refused("predict", model, pictures, "--unknown", "--engine", "reference")
    assert "text, json, jsonl, csv" in refused("predict", model, pictures, "--format", "xml")


def test_predict_prints_lines_with_tabs_into_a_pipe(run, model, pictures):
    path = pictures / CLASSES[0] / "0.png"
    status, output, _ = run("predict", model, path, "--top", 3, "--engine", "reference")
    assert status == 0
    lines = [line.split("\t") for line in output.splitlines()]
    assert {(line[0], line[1]) for line in lines} == {(str(path), name) for name in CLASSES}
    assert all(re.fullmatch(r"[0-9.]+ %", percent) for _, _, percent in lines)


def test_evaluate_a_packed_model_on_a_folder(run, model, pictures):
    status, output, _ = run("evaluate", model, "--data", pictures, "--json", "--engine", "reference")
    assert status == 0
    found = json.loads(output)
    assert list(found) == [*METRICS, "classes", *JUDGED]
    assert found["n"] == 6
    assert [list(one) for one in found["classes"]] == [["class", "n", "recall", "precision", "f1"]] * 3
    assert [(one["class"], one["n"]) for one in found["classes"]] == [(name, 2) for name in CLASSES]
    assert np.mean([one["recall"] for one in found["classes"]]) == pytest.approx(found["macro_recall"])
    predicted = json.loads(run("predict", model, pictures, "--top", 1, "--json", "--engine", "reference")[1])
    hits = sum(Path(one["path"]).parent.name == one["predictions"][0]["class"] for one in predicted)
    assert found["top1"] == pytest.approx(hits / 6)
    status, output, _ = run("evaluate", model, "--data", pictures, "--engine", "reference")
    assert status == 0 and "6 pictures of" in output and "F1" in output and "Classes, the worst first" in output


def test_native_and_reference_say_the_same(run, model, pictures):
    pytest.importorskip("gsb_vit._native")
    native = run("predict", model, pictures, "--json")
    assert native[0] == 0
    assert native == run("predict", model, pictures, "--json", "--engine", "reference")


def test_summary_prints_json_and_tables(run, model):
    status, output, _ = run("summary", model, "--json")
    assert status == 0
    values = json.loads(output)
    assert list(values) == ["name", "classes", "file_bytes", "bytes_by_kind", "total", "full_precision", "layers"]
    assert list(values["total"]) == ["parameters", "bytes", "flops", "bops", "ops"]
    assert values["file_bytes"] == model.stat().st_size and values["classes"] == list(CLASSES)
    status, output, _ = run("summary", model)
    assert status == 0
    assert "attn.values" in output and "times smaller" in output
    assert "3 classes: class 0, class 1, class 2" in output
    assert json.loads(run("summary", "gsb_vit_tiny_patch16_224", "--json")[1])["classes"] is None


def test_bench_prints_rows(run, model, monkeypatch):
    pytest.importorskip("gsb_vit._native")
    pytest.importorskip("timm")
    measured = []

    def short(*given, **options):
        """Two rounds instead of fifteen, and the same again later: what is printed is tested here, not the figures."""
        assert not measured or options["against"] == "torch:fp32"
        measured[:] = measured or benchmark(*given, **options, rounds=2, tries=1)
        return measured

    monkeypatch.setattr("gsb_vit.bench.compare.benchmark", short)
    status, output, _ = run("bench", model, "--json")
    assert status == 0
    own, twin = json.loads(output)
    keys = ["engine", "precision", "threads", "batch", "median_ms", "images_per_s", "file_mb", "peak_mb"]
    assert list(own)[: len(keys)] == list(twin)[: len(keys)] == keys
    assert (own["engine"], twin["engine"]) == ("gsb-vit", "torch")
    status, output, _ = run("bench", model, "--against", "torch:fp32")
    assert status == 0 and "median ms" in output and "gsb-vit" in output


def test_bad_models_are_refused(refused, tmp_path, model, pictures):
    missing, foreign, truncated = (tmp_path / name for name in ("missing", "foreign", "truncated"))
    foreign.write_bytes(b"\x10\0\0\0\0\0\0\0{not json at all")
    truncated.write_bytes(model.read_bytes()[:-100])
    for path in (missing, foreign, truncated):
        for arguments in (["predict", path, pictures], ["evaluate", path, "--data", pictures], ["summary", path]):
            assert path.name in refused(*arguments)
    assert "missing" in refused("bench", missing)


def test_where_no_path_leads_to_a_picture_nothing_is_done(refused, tmp_path, model):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing"):
        assert path.name in refused("predict", model, path, "--engine", "reference")


def test_bad_data_is_refused(refused, tmp_path, model, pictures):
    assert "no data" in refused("evaluate", model, "--data", tmp_path / "nothing", "--engine", "reference")
    for name in ("a", "b"):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "other" / name / "0.png")
    line = refused("evaluate", model, "--data", tmp_path / "other", "--engine", "reference")
    assert "2 classes" in line and "the model 3" in line
    (tmp_path / "other" / "c").mkdir()
    assert "zero pictures" in refused("evaluate", model, "--data", tmp_path / "other", "--engine", "reference")


def test_a_wrong_recipe_is_refused_before_anything_is_written(refused, tmp_path):
    pytest.importorskip("accelerate")
    out = tmp_path / "run"
    line = refused("train", "--data", "digits", "--out", out, "--set", "stage2.epoch=3")
    assert "stage2.epoch" in line and "epochs" in line
    assert "digits" in refused("train", "--data", "digit", "--out", out)
    assert "nothing.toml" in refused("train", "--data", "digits", "--out", out, "--recipe", tmp_path / "nothing.toml")
    assert not out.exists()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe of one epoch a stage."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe):
    """A run of one epoch a stage on the digits."""
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "digits", "--out", str(out), "--recipe", str(recipe), "--no-report"])
    assert stop.value.code == 0
    return out


def test_train_export_evaluate_predict(run, trained, tmp_path):
    path = tmp_path / "model.safetensors"
    status, output, _ = run("export", trained, "-o", path)
    assert status == 0 and "same answer" in output
    status, output, _ = run("export", trained, "-o", path, "--most", 7, "--engine", "reference")
    assert status == 0 and 1 < int(re.search(r"of (\d+) pictures", output)[1]) <= 7
    status, output, _ = run("evaluate", trained, "--data", "digits", "--json")
    assert status == 0
    from_run = json.loads(output)
    assert list(from_run) == [*METRICS, "false_alarm_rate", "classes", *JUDGED]
    assert from_run["n"] == pytest.approx(0.3 * 1797, abs=5)
    status, output, _ = run("evaluate", path, "--data", "digits", "--json", "--engine", "reference")
    assert status == 0
    packed = json.loads(output)
    # The packed model is evaluated on the very pictures that its training left out.
    assert packed["n"] == from_run["n"]
    assert packed["top1"] == pytest.approx(from_run["top1"], abs=2 / from_run["n"])
    assert packed["calibration_error"] == pytest.approx(from_run["calibration_error"], abs=0.02)
    assert run("summary", trained, "--json")[0] == 0


def test_a_run_becomes_a_packed_file_and_c_or_c_alone(run, trained, tmp_path):
    path, both, alone = tmp_path / "model.safetensors", tmp_path / "both", tmp_path / "alone"
    status, output, _ = run("export", trained, "-o", path, "--c", both, "--most", 5)
    assert status == 0 and "same answer" in output and f"{path}: " in output and "RAM" in output
    status, output, _ = run("export", trained, "--c", alone, "--most", 5)
    assert status == 0 and "same answer" in output and ".safetensors" not in output and "RAM" in output
    assert sorted(file.name for file in alone.iterdir()) == ["model.c", "model.h"]
    assert (alone / "model.c").read_bytes() == (both / "model.c").read_bytes()
    assert path.is_file() and len(list(tmp_path.iterdir())) == 3


def test_a_packed_file_and_c_are_both_written_or_none(run, trained, tmp_path, monkeypatch):
    from gsb_vit.export import c_source
    from gsb_vit.export import run as export_module

    def refused(*arguments, **options):
        raise InputError("not this one")

    path, folder = tmp_path / "model.safetensors", tmp_path / "c"
    for before in (None, b"of before"):
        if before:
            path.write_bytes(before)
        with monkeypatch.context() as patched:
            patched.setattr(c_source, "check_fits", refused)
            status, output, errors = run("export", trained, "-o", path, "--c", folder, "--most", 5)
        assert (status, output) == (2, "") and "not this one" in errors
        assert [file.name for file in tmp_path.iterdir()] == (["model.safetensors"] if before else [])
        assert before is None or path.read_bytes() == before
    # What can be known is refused before anything is packed.
    monkeypatch.setattr(export_module, "export_run", lambda *a, **b: pytest.fail("it was packed"))
    (tmp_path / "d" / "model.c").mkdir(parents=True)
    for options, says in (
        (("-o", path, "--c", path), "cannot be written (is no folder)"),
        (("-o", path, "--c", tmp_path / "d"), "cannot be written (model.c is a folder)"),
        (("-o", path, "--c", folder, "--c-name", "math"), "is one of C's library"),
        (("-o", tmp_path / "d" / "x.c", "--c", tmp_path / "d", "--c-name", "x"), "is named twice"),
        (("-o", tmp_path / "none" / "m.safetensors", "--c", folder), "give a file in a folder that exists"),
        (("-o", tmp_path / "d", "--c", folder), "it is a folder"),
        (
            (
                "--c",
                path,
            ),
            "cannot be written (is no folder)",
        ),
    ):
        status, output, errors = run("export", trained, *options)
        assert (status, output) == (2, "") and len(errors.splitlines()) == 1
        assert says in errors, errors
    assert path.read_bytes() == b"of before" and not folder.exists()


def test_a_run_ends_with_the_next_three_commands(run, trained, recipe):
    again = ("train", "--data", "digits", "--out", trained, "--recipe", recipe, "--resume", "--no-report")
    status, output, _ = run(*again)
    assert status == 0
    lines = output.splitlines()
    assert lines[-4:] == [
        "Next:",
        f"  gsb-vit export {trained} -o run.safetensors",
        f"  gsb-vit report {trained}",
        "  gsb-vit predict run.safetensors PHOTO.jpg --unknown",
    ]
    assert any(line.startswith("Right on ") for line in lines) and "Most frequent confusions" in lines
    assert "Classes, the worst first" in lines
    assert not (trained / "report.html").exists()


def test_a_run_ends_with_its_report_and_its_packed_model(run, trained, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(trained, copied)
    status, output, _ = run("train", "--resume", copied)
    assert status == 0
    lines, model = output.splitlines(), copied / "model.safetensors"
    assert lines[-6].startswith(f"packed model: {model}, ") and lines[-7] == f"report: {copied.as_uri()}/report.html"
    assert lines[-4:] == [
        "Next:",
        f"  gsb-vit predict {model} PHOTO.jpg --unknown",
        f"  gsb-vit app {model} -o app.html",
        f"  gsb-vit summary {model}",
    ]
    assert "Confusion" in (copied / "report.html").read_text()
    assert run("summary", model)[0] == 0
    status, output, _ = run("train", "--resume", copied, "--json")
    found = json.loads(output)
    assert status == 0 and found["report"] == f"{copied}/report.html" and found["model"] == str(model)


def test_export_refuses_what_is_not_ready(refused, trained, tmp_path):
    path = tmp_path / "model.safetensors"
    assert "stage" in refused("export", trained / "stage1", "-o", path)
    assert "holds no trained model" in refused("export", tmp_path, "-o", path)
    assert "written" in refused("export", trained, "-o", tmp_path / "no" / "folder" / "model.safetensors")
    assert "classes" in refused("evaluate", trained, "--data", two_classes(tmp_path))
    assert not path.exists()


def two_classes(folder):
    for split in ("train", "test"):
        for name in ("x", "y"):
            (folder / "two" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "two" / split / name / "0.png")
            Image.new("RGB", (8, 8)).save(folder / "two" / split / name / "1.png")
    return folder / "two"


def test_a_used_run_folder_is_refused(refused, trained, recipe):
    assert "--resume" in refused("train", "--data", "digits", "--out", trained, "--recipe", recipe)


def test_interrupting_leaves_no_traceback(tmp_path, recipe):
    pytest.importorskip("accelerate")
    out = tmp_path / "run"
    arguments = ["train", "--data", "digits", "--out", out, "--recipe", recipe, "--set", "teacher.epochs=1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gsb_vit", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A script's background jobs ignore interrupts and hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: (out / "metrics.jsonl").exists() or process.poll() is not None, "an epoch")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert (out / "metrics.jsonl").exists(), output
    assert process.returncode not in (0, 2)
    assert "Traceback" not in output
    assert f"go on with: gsb-vit train --resume {out}" in output


def test_train_needs_a_folder_alone_and_resumes_by_the_run_alone(run, refused, recipe, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        status, output, _ = run("train", "digits", "--recipe", recipe, "--epochs", 2)
        assert status == 0 and f"run: runs/digits-{number}\n" in output
    out = tmp_path / "runs" / "digits-1"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["stage"] == "stage2"] == [1, 2]
    before = (out / "stage2" / "last.safetensors").read_bytes()
    (out / "summary.json").unlink()
    assert run("train", "--resume", out)[0] == 0
    assert (out / "stage2" / "last.safetensors").read_bytes() == before and (out / "summary.json").is_file()
    assert "twice" in refused("train", "digits", "--data", "digits")
    assert "gsb-vit train FOLDER" in refused("train")
    assert "train --resume RUN" in refused("train", "--data", "digits", "--resume")
    assert "run.json" in refused("train", "--resume", tmp_path / "runs")
    assert "model.img_size" in refused("train", "digits", "--image-size", 0)
