"""Studies on digits: what is shared is trained once, nothing is trained twice, a killed study goes on."""

import csv
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("accelerate")

from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.study import command, jobs
from gsb_vit.study.command import make_executor, measure_size, parse_options, run_study
from gsb_vit.study.jobs import LocalExecutor, SubmititExecutor
from gsb_vit.study.plan import is_finished, load_study, plan, run_folder
from gsb_vit.train import checkpoint
from gsb_vit.train.build import build_model, model_args
from gsb_vit.train.recipe_io import dump_recipe, load_recipe
from gsb_vit.train.run import train

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
STUDY = """
title = "Tiny"
data = "digits"
recipe = "quickstart"
reference = "gsb"

[set]
"model.depth" = 1
model.embed_dim = 32
data.shots = 8
threads = 1
teacher.epochs = EPOCHS
stage1.epochs = EPOCHS
stage2.epochs = EPOCHS

[variants.gsb]
title = "GSB"

[variants.bit]
stage2.quantization.scheme = "bit"

[variants.authors]
stage1.quantization.preset = "authors_stage1"
stage2.quantization.preset = "authors_stage2"
"""


class InThisProcess:
    """Runs a job's command where the test is, and counts."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def start(self, command, environment, log):
        options = dict(zip(command[4::2], command[5::2], strict=False))
        assert command[1:4] == ["-m", "gsb_vit.cli", "train"] and environment["OMP_NUM_THREADS"] == "1"
        self.started.append(Path(options["--out"]).name)
        try:
            train(load_recipe(options["--recipe"]), options["--data"], options["--out"], resume=True, console=quiet())
        except Exception as error:
            return Ended(str(error))
        return Ended("")


class Ended:
    """A job that is over."""

    def __init__(self, error: str) -> None:
        self.error = error

    def poll(self):
        return self.error

    def stop(self):
        pass


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def write_study(folder: Path, text: str = STUDY, epochs: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.toml").write_text(text.replace("EPOCHS", str(epochs)), encoding="utf-8")
    return folder / "tiny.toml"


def run_here(monkeypatch, file: Path, out: Path, **options) -> tuple[dict[str, str], list[str]]:
    here = InThisProcess()
    monkeypatch.setattr(command, "make_executor", lambda *_: here)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    return run_study(file, out, **{"jobs": 2, "console": quiet(), **options}), here.started


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished study: its file, its folder and the runs it started."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as monkeypatch:
        file = write_study(folder)
        errors, started = run_here(monkeypatch, file, folder / "out")
    assert errors == {}
    return file, folder / "out", started


def test_what_variants_share_is_trained_once(done) -> None:
    file, out, started = done
    kinds = [name.split("-")[0] for name in started]
    assert sorted(kinds) == ["authors", "bit", "gsb", "stage1", "stage1", "teacher"]
    assert len(set(started)) == len(started)
    planned = plan(load_study(file), out)
    needs = {job.name: job.needs for job in planned.jobs}
    assert needs["gsb-s0"] == needs["bit-s0"] != needs["authors-s0"]
    assert needs[needs["gsb-s0"]] == needs[needs["authors-s0"]]


def test_a_student_that_shares_ends_as_one_that_trains_all_itself(done, tmp_path: Path) -> None:
    file, out, _ = done
    (cell,) = (cell for cell in load_study(file).cells if cell.variant == "bit")
    alone = train(cell.recipe, "digits", tmp_path / "alone", console=quiet())
    shared = checkpoint.load_model(run_folder(out, "bit-s0")).model.state_dict()
    own = checkpoint.load_model(tmp_path / "alone").model.state_dict()
    assert all(torch.equal(shared[name], tensor) for name, tensor in own.items())
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    found = {row["stage"]: float(row["top1"]) for row in rows if row["variant"] == "bit"}
    assert found == {stage: result["test"]["top1"] for stage, result in alone.stages.items()}


def test_rows_say_where_they_come_from(done) -> None:
    _, out, _ = done
    rows = list(csv.DictReader((out / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 9
    for row in rows:
        assert row["threads"] == "1" and row["cpu"] and row["commit"] and row["data"] == "digits"
        assert row["command"].startswith("gsb-vit study") and str(out.parent) not in row["command"]
    sizes = {row["variant"]: row for row in rows if row["final"] == "1"}
    assert int(sizes["gsb"]["packed_bytes"]) > 0 and sizes["authors"]["packed_bytes"] == ""
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "minus gsb" in table and str(out) not in table
    assert (out / "plot.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_what_is_finished_is_not_run_again(done, monkeypatch) -> None:
    file, out, _ = done
    document = out / "doc.md"
    document.write_text("before\n<!-- study tiny -->\nold\n<!-- /study tiny -->\nafter\n", encoding="utf-8")
    assert run_here(monkeypatch, file, out, document=document) == ({}, [])
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text and "| GSB |" in text
    assert (out / "images" / "study-tiny.svg").is_file()


def test_recorded_rows_outlive_the_runs_as_long_as_the_recipe_is_theirs(done, tmp_path: Path, monkeypatch) -> None:
    file, out, _ = done
    document = tmp_path / "doc.md"
    document.write_text("<!-- study tiny -->\n<!-- /study tiny -->\n", encoding="utf-8")
    assert run_here(monkeypatch, file, out, jobs=0, document=document) == ({}, [])
    first, kept = document.read_text(encoding="utf-8"), tmp_path / "studies" / "tiny.json"
    recorded = kept.read_text(encoding="utf-8")
    assert run_here(monkeypatch, file, tmp_path / "nothing", document=document) == ({}, [])
    assert document.read_text(encoding="utf-8") == first and kept.read_text(encoding="utf-8") == recorded
    assert (tmp_path / "nothing" / "results.csv").read_bytes() == (out / "results.csv").read_bytes()

    changed = write_study(tmp_path, STUDY.replace('scheme = "bit"', 'scheme = "xnor"'))
    said = quiet()
    errors, started = run_here(monkeypatch, changed, tmp_path / "new", document=document, console=said)
    assert "tiny.json: the rows of bit-s0 will go: they are of another recipe" in said.file.getvalue().replace(
        "\n", " "
    )
    assert errors == {} and sorted(name.split("-")[0] for name in started) == ["bit", "stage1", "teacher"]
    assert '"scheme": "xnor"' not in recorded and '"stage2.quantization.scheme": "xnor"' in kept.read_text("utf-8")

    kept.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot read the rows in .*tiny\.json .*; restore that file, or delete it"):
        run_here(monkeypatch, file, out, document=document)


def test_a_moved_study_stays_finished_and_a_changed_one_is_refused(done, tmp_path: Path, monkeypatch) -> None:
    file, out, _ = done
    out.rename(tmp_path / "moved")
    try:
        assert run_here(monkeypatch, file, tmp_path / "moved") == ({}, [])
        changed = write_study(tmp_path, STUDY.replace("stage2.epochs = EPOCHS", "stage2.epochs = 3"))
        with pytest.raises(InputError, match=r"gsb-s0 holds a run with stage2\.epochs = 1, the study says 3; delete"):
            run_here(monkeypatch, changed, tmp_path / "moved")
    finally:
        (tmp_path / "moved").rename(out)


def test_a_run_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, monkeypatch) -> None:
    text = STUDY.replace('stage2.quantization.scheme = "bit"', "stage1.learning_rate = 1e30")
    text = text.replace('stage1.quantization.preset = "authors_stage1"\n', "")
    errors, started = run_here(monkeypatch, write_study(tmp_path, text, 2), tmp_path / "out")
    (broken,) = (name for name in errors if name.startswith("stage1-"))
    assert "stage1, epoch" in errors[broken]
    assert errors["bit-s0"] == f"not run: {broken} failed" and len(errors) == 2
    assert {"gsb-s0", "authors-s0"} <= set(started) and "bit-s0" not in started
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| GSB |" in table and "| bit |" not in table


def test_no_two_studies_fill_one_folder(done, monkeypatch) -> None:
    file, out, _ = done
    with jobs.locked(out), pytest.raises(InputError, match="another gsb-vit study is at work"):
        run_here(monkeypatch, file, out)


def alive(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc; children follow their parent on Linux")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_study_leaves_no_process_and_goes_on(kind, tmp_path: Path, monkeypatch) -> None:
    text = STUDY[: STUDY.index("[variants.bit]")]
    file, out = write_study(tmp_path, text, 6), tmp_path / "out"
    command = [sys.executable, "-m", "gsb_vit.cli", "study", str(file), "--out", str(out), "--jobs", "1"]
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(SOURCE)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not list(out.glob("runs/teacher-*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(kind)
    assert process.wait(60) != 0
    while alive(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(out) == []
    (teacher,) = out.glob("runs/teacher-*")
    assert not (teacher / "summary.json").exists(), "the study ended before it was killed"
    errors, _ = run_here(monkeypatch, file, out)
    assert errors == {}
    (cell,) = load_study(file).cells
    alone = train(cell.recipe, "digits", tmp_path / "alone", console=quiet())
    own = checkpoint.load_model(tmp_path / "alone").model.state_dict()
    found = checkpoint.load_model(run_folder(out, cell.name)).model.state_dict()
    assert alone.final_stage == "stage2" and all(torch.equal(found[name], tensor) for name, tensor in own.items())


def wait(handle) -> str:
    deadline = time.monotonic() + 240
    while (error := handle.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return error


def test_a_child_says_what_went_wrong_and_can_be_stopped(tmp_path: Path) -> None:
    executor, log = LocalExecutor(), tmp_path / "log"
    assert wait(executor.start([sys.executable, "-c", "pass"], {}, log)) == ""
    failing = [sys.executable, "-c", "import os, sys; sys.exit('gsb-vit: ' + os.environ['WORDS'])"]
    assert wait(executor.start(failing, {"WORDS": "no such class"}, log)) == "no such class"
    sleeping = executor.start([sys.executable, "-c", "import time; time.sleep(60)"], {}, log)
    assert sleeping.poll() is None
    sleeping.stop()
    assert wait(sleeping) == "ended by signal SIGTERM"


def test_the_same_jobs_through_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    executor = SubmititExecutor(tmp_path / "submitit", "local", {"timeout_min": 5})
    log = tmp_path / "log"
    writing = [sys.executable, "-c", f"import os; open({str(tmp_path / 'out')!r}, 'w').write(os.environ['WORDS'])"]
    assert wait(executor.start(writing, {"WORDS": "two words"}, log)) == ""
    assert (tmp_path / "out").read_text() == "two words"
    assert "no such class" in wait(executor.start([sys.executable, "-c", "raise SystemExit('no such class')"], {}, log))
    with pytest.raises(InputError, match="--cluster-set"):
        SubmititExecutor(tmp_path / "submitit", "local", {"timeout_mim": 5})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[set]", "sedes = [1]\n[set]", ["sedes", "seeds"]),
        ("threads = 1", "treads = 1", ["variant gsb", "treads", "threads"]),
        ('scheme = "bit"', 'sheme = "bit"', ["variant bit", "stage2.quantization.sheme", "quantization.scheme"]),
        ('scheme = "bit"', 'scheme = "bti"', ["variant bit", "bti", "bit"]),
        ("data.shots = 8", "data = 8", ["data", "table"]),
        ('reference = "gsb"', 'reference = "gbs"', ["gbs", "gsb"]),
        ("[variants.bit]", '[variants."a b"]', ["a b", "letters"]),
        ("[set]", "seeds = []\n[set]", ["seeds", "[]"]),
        ("[set]", "seeds = [1, 1]\n[set]", ["seeds", "twice"]),
        ("[set]", "[grid]\ndata.shots = 3\n[set]", ["grid.data.shots", "list"]),
        ("[set]", '[plot]\nx = "data.shots"\n[set]', ["plot.x", "data.shots"]),
        ("[set]", '[plot]\nkind = "bar"\n[set]', ["plot.kind", "plot."]),
        ('"quickstart"', '"quickstrat"', ["quickstrat", "quickstart"]),
        ('"quickstart"', '"none.toml"', ["none.toml"]),
        ("data.shots = 8", "data.shots = 800", ["gsb-s0", "data.shots = 800"]),
        ("model.embed_dim = 32", "model.embed_dim = 33", ["gsb-s0", "33"]),
        ('data = "digits"', "", ["--data"]),
        ('data = "digits"', 'data = "digit"', ["digit", "digits"]),
        ("[set]", "[set", ["TOML"]),
    ],
)
def test_a_bad_study_is_refused_in_one_line_before_anything_runs(old, new, words, tmp_path: Path, capsys) -> None:
    assert old in STUDY
    file = write_study(tmp_path, STUDY.replace(old, new, 1))
    with pytest.raises(SystemExit) as stop:
        main(["study", str(file), "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("\n") == 1
    assert all(word in errors for word in words), errors
    assert not (tmp_path / "out").exists()


def test_executors_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for name, options in (("slurm", {}), ("local", {"timeout_min": 3}), ("submitit:", {})):
        with pytest.raises(InputError, match="--executor"):
            make_executor(name, tmp_path, options)
    assert parse_options(["timeout_min=5", "slurm_partition=gpu"]) == {
        "timeout_min": 5,
        "slurm_partition": "gpu",
    }


def test_a_preset_replaces_the_switches_of_the_base(tmp_path: Path) -> None:
    text = STUDY.replace("[set]", '[set]\nstage2.quantization.weight_scale = "learned_row"')
    cells = {cell.variant: cell.recipe for cell in load_study(write_study(tmp_path, text)).cells}
    assert cells["gsb"].stage2.quantization.weight_scale == "learned_row"
    assert cells["authors"].stage2.quantization == type(cells["gsb"].stage2.quantization).authors_stage2()


def test_a_grid_multiplies_and_seeds_reach_every_seeded_key(tmp_path: Path) -> None:
    text = STUDY.replace(
        "[set]", 'seeds = [3, 4]\nseeded = ["seed", "data.split_seed"]\n[grid]\ndata.shots = [2, 5]\n[set]'
    )
    study = load_study(write_study(tmp_path, text))
    assert [cell.name for cell in study.cells[:4]] == [
        "gsb-shots=2-s3",
        "bit-shots=2-s3",
        "authors-shots=2-s3",
        "gsb-shots=5-s3",
    ]
    assert len(study.cells) == 12
    for cell in study.cells:
        assert cell.recipe.seed == cell.recipe.data.split_seed == cell.seed
        assert cell.recipe.data.shots == dict(cell.point)["data.shots"]
    assert len({job.name for job in plan(study, tmp_path).jobs if job.kind == "teacher"}) == 4


def test_equal_recipes_under_two_names_are_one_run(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, STUDY.replace('scheme = "bit"', 'scheme = "gsb"')))
    planned = plan(study, tmp_path)
    assert planned.of_cell["bit-s0"] == planned.of_cell["gsb-s0"]
    assert [job.name for job in planned.jobs if job.kind == "student"] == ["gsb-s0", "authors-s0"]


STUDIES = sorted((ROOT / "recipes" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_shipped_studies_share_and_build(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    planned = plan(study, tmp_path)
    assert study.seeds == (0, 1, 2)
    points = {cell.point for cell in study.cells}
    teachers = [job for job in planned.jobs if job.kind == "teacher"]
    kinds = {(cell.point, cell.recipe.teacher) for cell in study.cells}  # only the choices try several teachers
    assert len(teachers) == 3 * len(kinds) and (len(kinds) == len(points) or path.stem == "choices")
    budgets = {sum(getattr(cell.recipe, stage).epochs for stage in ("stage1", "stage2")) for cell in study.cells}
    assert len(budgets) == 1
    assert not any(is_finished(job, tmp_path) for job in planned.jobs)
    with torch.device("meta"):
        for cell in study.cells[:: len(study.seeds) * len(points)]:
            for stage in (cell.recipe.stage1, cell.recipe.stage2):
                build_model(cell.recipe.model.architecture, model_args(cell.recipe.model), 20, stage.quantization)
    assert path.name in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["cifar100", "flowers102_224", "chaoyang", "flowers102_112"])
def test_the_recipes_of_the_paper_build(name: str) -> None:
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    with torch.device("meta"):
        for stage in (recipe.teacher, recipe.stage1, recipe.stage2):
            model = build_model(recipe.model.architecture, model_args(recipe.model), 100, stage.quantization)
            assert model.embed_dim == 384 and len(model.blocks) == 12
            tokens = model.patch_embed.num_patches + 2
            assert tokens == 198
    if name != "flowers102_112":
        authors = load_recipe("authors")
        assert recipe.teacher.source == authors.teacher.source and recipe.augment == dataclasses.replace(
            authors.augment, workers=recipe.augment.workers
        )
        assert (recipe.stage1.epochs, recipe.stage2.epochs) == (authors.stage1.epochs, authors.stage2.epochs)
        assert recipe.stage2.peak_learning_rate() == authors.stage2.peak_learning_rate()


def test_shots_and_label_noise_of_train_are_recorded(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text(dump_recipe(load_study(write_study(tmp_path / "s")).cells[0].recipe), encoding="utf-8")
    options = ["--shots", "3", "--label-noise", "0.25", "--set", "stage2.epochs=0", "--set", "stage1.epochs=0"]
    options += ["--set", "data.validation_fraction=0", "--set", "teacher.select=last"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "digits", "--recipe", str(base), "--out", str(tmp_path / "run"), *options])
    assert stop.value.code in (0, None)
    recipe = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (recipe.data.shots, recipe.data.label_noise) == (3, 0.25)
    measure_size(tmp_path / "run")
    assert '"not_packed"' in (tmp_path / "run" / "size.json").read_text()
