"""Training from Python: fit, and what a run offers."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("accelerate")

import gsb_vit
from gsb_vit.data.digests import digest
from gsb_vit.data.splits import load_data
from gsb_vit.decision import Decision
from gsb_vit.errors import InputError
from gsb_vit.metrics import softmax
from gsb_vit.models.trained import load_model
from gsb_vit.runs import Run, fit
from gsb_vit.runtime.packed_file import read
from gsb_vit.train.batches import EvaluationPictures
from gsb_vit.train.evaluate import evaluate_run, model_logits, run_data_options

SMALL = {
    "model.depth": 1,
    "model.embed_dim": 32,
    "model.num_heads": 2,
    "data.shots": 20,
    "threads": 1,
    **{f"{stage}.epochs": 2 for stage in ("teacher", "stage1", "stage2")},
}
QUIET = Console(quiet=True)
ENGINE = "reference"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "digits"
    return gsb_vit.fit("digits", out=out, recipe="quickstart", settings=SMALL, console=QUIET)


def test_fit_trains_what_the_settings_say(run):
    assert isinstance(run, gsb_vit.Run) and run.class_names == tuple("0123456789")
    recipe = json.loads((run.out / "run.json").read_text())
    assert recipe["data"] == "digits" and recipe["status"] == "finished"
    trained = load_model(run.out)
    assert trained.info.model_args["depth"] == 1 and trained.info.stage == "stage2"
    assert list(run.stages) == ["teacher", "stage1", "stage2"]
    found = evaluate_run(run.out, "digits")
    # Twenty shots a class were used; evaluation judges on all pictures that were not.
    assert (found["n_given"], found["n_seen"], found["n"]) == (1797, 200, 1597)


def test_the_model_of_a_run_gives_the_trained_models_answers(run):
    model = run.model(engine=ENGINE)
    assert (run.out / "model.safetensors").is_file() and model.class_names == run.class_names
    test = load_data("digits", run_data_options(run.out)).test
    trained = load_model(run.out)
    expected = model_logits(trained.model, EvaluationPictures(test, trained.preprocessing))
    decision = Decision.from_json(json.loads((run.out / "summary.json").read_text())["decision"])
    assert model.decision == decision and decision.temperature != 1 and decision.unknown is not None
    tempered = softmax(np.asarray(expected) / decision.temperature)
    assert model.predict_proba(list(test.sources)) == pytest.approx(tempered, abs=1e-5)


def test_a_model_is_exported_again_only_where_the_run_went_on(run, tmp_path):
    run.model(engine=ENGINE)
    packed = run.out / "model.safetensors"
    before = packed.stat().st_mtime_ns
    run.model(engine=ENGINE)
    assert packed.stat().st_mtime_ns == before
    for clock in (before - 10**15, before + 10**15):  # which has jumped: the model is still the same
        os.utime(run.out / "summary.json", ns=(clock, clock))
        run.model(engine=ENGINE)
    assert packed.stat().st_mtime_ns == before
    other = shutil.copytree(run.out, tmp_path / "other")
    shutil.copy(other / "stage2" / "last.safetensors", other / "stage2" / "best.safetensors")
    Run(other).model(engine=ENGINE)
    assert read(other / "model.safetensors").provenance["trained"] == digest(other / "stage2" / "best.safetensors")
    shutil.rmtree(other / "stage2")  # on a device: what is packed is there, the rest is not
    (other / "model.safetensors").write_bytes(packed.read_bytes())
    Run(other).model(engine=ENGINE)
    assert (other / "model.safetensors").read_bytes() == packed.read_bytes()
    elsewhere = run.export(tmp_path / "other.safetensors", engine=ENGINE)
    assert elsewhere == tmp_path / "other.safetensors"
    one, other = read(elsewhere), read(packed)  # the order of the metadata's keys differs from file to file
    assert one.provenance == other.provenance
    assert all(np.array_equal(one[name], other[name]) for name in one.tensors)


def test_the_report_of_a_run(run):
    page = run.report(engine=ENGINE)
    assert page == run.out / "report.html" and "<html" in page.read_text()


def test_a_run_is_opened_by_its_folder(run, tmp_path):
    again = Run(str(run.out))
    assert again == run and again.test == run.test
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="holds no finished run"):
            Run(folder)


def test_a_run_says_what_it_is(run):
    right = f"{run.test['top1']:.1%}"
    assert repr(run).startswith(f"<Run {run.out}: 10 classes of digits; {right} of ") and "\n" not in repr(run)
    assert right in run._repr_html_() and run._repr_html_().count("<tr>") == 3


def test_fit_takes_the_first_free_folder_and_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits-1").mkdir(parents=True)
    settings = {**SMALL, "teacher.epochs": 0, "teacher.source": "none", "stage1.epochs": 0, "stage2.epochs": 1}
    console = Console(file=io.StringIO())
    first = fit("digits", recipe="quickstart", settings=settings, console=console)
    assert first.out.as_posix() == "runs/digits-2" and "training" in console.file.getvalue()
    written = (first.out / "metrics.jsonl").read_text()
    again = fit("digits", out=first.out, recipe="quickstart", settings=settings, resume=True, console=QUIET)
    assert again == first and (first.out / "metrics.jsonl").read_text() == written


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (dict(data=np.zeros((3, 8, 8))), "data is a ndarray; give a folder of class folders, or use GSBClassifier"),
        (dict(data="no such folder"), "no data 'no such folder'"),
        (dict(data="digits", recipe="nothing"), "nothing"),
        (dict(data="digits", settings={"stage2.epoch": 1}), "stage2.epochs"),
        (dict(data="digits", settings={"stage2.epochs": "many"}), "stage2.epochs"),
        (dict(data="digits", settings=["stage2.epochs=1"]), "settings is a list; give a dictionary"),
        (dict(data="digits", resume=True, out=None), "resume needs the folder"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_fit_refuses_in_one_line(tmp_path, arguments, what):
    with pytest.raises(InputError, match=what) as error:
        fit(**{"out": tmp_path / "run", "console": QUIET, **arguments})
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
