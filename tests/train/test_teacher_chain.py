"""A chain in one recipe on digits: a tiny CNN from a file teaches the twin, which begins the one-bit student."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from paths import HELPERS, SOURCE
from rich.console import Console

pytest.importorskip("accelerate")

from gsb_vit.errors import InputError
from gsb_vit.models.trained import load_model
from gsb_vit.train import loop
from gsb_vit.train.log import RunLog
from gsb_vit.train.recipe import Recipe
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import RunSummary, train

STAGES = ("teacher", "twin", "stage2")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNN's tensors under names of their own; what BatchNorm knows differs from what training would find."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet")
    path = tmp_path_factory.mktemp("weights") / "cnn.pth"
    torch.save({f"t{i}": tensor for i, tensor in enumerate(model.state_dict().values())}, path)
    return path


def chain(weights: Path, *overrides: str) -> Recipe:
    settings = [
        *("model.depth=1", "model.embed_dim=32", "model.num_heads=2", "data.shots=12", "threads=1"),
        *("teacher.source=timm:test_efficientnet", f'teacher.weights="{weights}"', "teacher.weights_order=position"),
        *("teacher.img_size=32", "teacher.head_epochs=1", "teacher.cache_views=2", "distillation.kind=match"),
        *("stage1.epochs=0", "stage2.mixup=1.0", "stage2.cutmix=1.0", "validate_every=1"),
        *(f"{stage}.{setting}" for stage in STAGES for setting in ("epochs=3", "batch_size=20")),
    ]
    return load_recipe("quickstart", [*settings, *overrides])


@pytest.fixture(scope="module")
def console() -> Console:
    return Console(file=io.StringIO(), width=250)


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory, console: Console) -> RunSummary:
    recipe = chain(weights, "twin.epochs=4")
    return train(recipe, "digits", tmp_path_factory.mktemp("chain") / "run", console=console)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_chain_trains_its_stages_in_order(run: RunSummary, console: Console) -> None:
    assert list(run.stages) == list(STAGES) and run.final_stage == "stage2"
    assert all({"train_loss", "images_per_s"} <= line.keys() for line in lines(run.out))
    taught = [line for line in lines(run.out) if line["stage"] != "teacher"]
    assert all(0 <= line["teacher_wait"] <= 1 for line in taught) and len(taught) == 7
    text = console.file.getvalue()
    assert "twin: random weights, as teacher is another network" in text
    assert "tensors from twin" in text and "stage2 epoch 3/3, 0:00:" in text
    assert [line["stage"] for line in lines(run.out)] == ["teacher"] * 3 + ["twin"] * 4 + ["stage2"] * 3


def test_the_teacher_reads_its_own_pictures_and_says_so_in_its_file(run: RunSummary) -> None:
    teacher, student = load_model(run.out / "teacher"), load_model(run.out)
    assert teacher.preprocessing.size == (32, 32) and student.preprocessing.size == (16, 16)
    assert teacher.preprocessing.mean == (0.485, 0.456, 0.406)
    assert load_model(run.out / "twin").info.stage == "twin"


def test_frozen_batch_norm_keeps_its_statistics(run: RunSummary, weights: Path, tmp_path: Path, console) -> None:
    given = timm.create_model("test_efficientnet", num_classes=10).state_dict()
    loaded = torch.load(weights, weights_only=True)
    before = {name: loaded[f"t{i}"] for i, name in enumerate(given)}
    after = load_model(run.out / "teacher").model.state_dict()
    statistics = [name for name in given if "running" in name or "num_batches" in name]
    assert statistics and all(torch.equal(after[name], before[name]) for name in statistics)
    assert not torch.equal(after["conv_stem.weight"], before["conv_stem.weight"])
    recipe = chain(weights, "teacher.freeze_batch_norm=false", "twin.epochs=0", "stage2.epochs=0", "teacher.epochs=2")
    train(recipe, "digits", tmp_path / "run", console=console)
    trained = load_model(tmp_path / "run" / "teacher").model.state_dict()
    assert not torch.equal(trained["bn1.running_mean"], before["bn1.running_mean"])


def test_the_head_alone_moves_in_head_epochs(weights: Path, tmp_path: Path, console: Console) -> None:
    recipe = chain(weights, "teacher.head_epochs=3", "twin.epochs=0", "stage2.epochs=0")
    train(recipe, "digits", tmp_path / "run", console=console)
    loaded = torch.load(weights, weights_only=True)
    after = load_model(tmp_path / "run" / "teacher").model.state_dict()
    assert all(torch.equal(after[n], loaded[f"t{i}"]) for i, n in enumerate(after) if not n.startswith("classifier"))
    rates = [line["learning_rate"] for line in lines(tmp_path / "run")]
    assert rates == sorted(rates, reverse=True) and rates[0] < 1e-3


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stage, epoch", [("teacher", 1), ("twin", 2), ("stage2", 1)])
def test_a_run_with_cached_views_that_is_stopped_ends_with_the_same_weights(
    run: RunSummary, weights: Path, tmp_path: Path, console: Console, monkeypatch, stage: str, epoch: int
) -> None:
    """Stopped between a line of the log and its state; the twin's second view is lost, too."""
    log_epoch, recipe = RunLog.epoch, chain(weights, "twin.epochs=4")
    folder, moved = tmp_path / "run", weights.with_suffix(".moved")

    def stops(self: RunLog, line: dict, bar: object) -> None:
        log_epoch(self, line, bar)
        if (line["stage"], line["epoch"]) == (stage, epoch):
            raise StoppedError

    monkeypatch.setattr(loop, "SAVING_SHARE", float("inf"))
    monkeypatch.setattr(RunLog, "epoch", stops)
    with pytest.raises(StoppedError):
        train(recipe, "digits", folder, console=console)
    monkeypatch.setattr(RunLog, "epoch", log_epoch)
    if stage == "twin":
        (folder / "views" / "teacher-0-0-001.safetensors").unlink()
    if stage != "teacher":
        shutil.move(weights, moved)  # a teacher that is trained needs its first weights no more
    try:
        train(recipe, "digits", folder, resume=True, console=console)
    finally:
        if moved.exists():
            shutil.move(moved, weights)
    for name in STAGES:
        assert (folder / name / "last.safetensors").read_bytes() == (run.out / name / "last.safetensors").read_bytes()
    views = sorted(p.name for p in (run.out / "views").iterdir())
    assert views == [f"teacher-{mix}-00{v}.safetensors" for mix in ("0-0", "1-1") for v in (0, 1)]
    assert all((folder / "views" / n).read_bytes() == (run.out / "views" / n).read_bytes() for n in views)


def test_a_twin_that_teaches_and_a_finished_teacher_of_another_size(
    run: RunSummary, weights: Path, tmp_path: Path, console: Console
) -> None:
    settings = ("teacher.source=twin", "teacher.epochs=0", "teacher.cache_views=0", "twin.teaches=true")
    recipe = chain(weights, "stage2.epochs=1", "twin.epochs=1")
    source = dataclasses.replace(
        recipe.teacher, source=str(run.out / "teacher"), weights=None, img_size=None, cache_views=0
    )
    recipe = dataclasses.replace(recipe, teacher=source, twin=dataclasses.replace(recipe.twin, teaches=True))
    summary = train(recipe, "digits", tmp_path / "run", console=console)
    assert list(summary.stages) == ["twin", "stage2"]
    assert recipe.learns_from("twin") == "teacher" and recipe.learns_from("stage2") == "twin"
    alone = load_recipe(None, [*settings, "twin.epochs=1", "twin.distillation.kind=none"])
    assert alone.learns_from("twin") is None and alone.learns_from("stage1") == "twin"
    with pytest.raises(InputError, match=r"twin\.distillation\.kind = .match. learns from a teacher alone"):
        load_recipe(None, [*settings[:2], "twin.epochs=1"])


KILLED = """
import sys
from pathlib import Path
import resume_script
resume_script.load_recipe = lambda name, settings: load_recipe(sys.argv[4])
from gsb_vit.train.recipe_io import load_recipe
resume_script.main(Path(sys.argv[1]), sys.argv[2] == "resume", sys.argv[3])
"""


def test_a_chain_that_is_killed_again_and_again_ends_with_the_same_weights(run: RunSummary, tmp_path: Path) -> None:
    """With a signal it cannot handle: in a head epoch, before a view has its name, after it, and in a student."""
    folder = tmp_path / "run"
    path = os.pathsep.join([str(SOURCE), str(HELPERS)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    for number, event in enumerate(["step:3", "replace:8", "replaced:3", "log:3", "never"]):
        mode = "resume" if number else "start"
        command = [sys.executable, "-c", KILLED, str(folder), mode, event, str(run.out / "recipe.toml")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == (0 if event == "never" else -signal.SIGKILL), (event, done.stderr[-3000:])
    for file in (f"{name}/last.safetensors" for name in STAGES):
        assert (folder / file).read_bytes() == (run.out / file).read_bytes(), file
    assert (
        json.loads((folder / "summary.json").read_text())["test"]
        == json.loads((run.out / "summary.json").read_text())["test"]
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.weights=a.pth"], 'teacher.source = "timm:NAME"'),
        (["teacher.source=timm:resnet18", "teacher.weights=a.pth", "teacher.epochs=0"], "above 0"),
        (["teacher.source=timm:resnet18", "teacher.weights=a.pth", "teacher.pretrained=true"], "drop one"),
        (["teacher.head_epochs=-1"], "teacher.head_epochs"),
        (["teacher.cache_views=2", "augment.policy=timm"], "augment.policy"),
        (["teacher.cache_views=0", "teacher.views=kept"], "cache_views above 0"),
        (["teacher.cache_views=2", "distillation.feature_weight=1"], "feature_weight"),
        (["distillation.kind=match", "teacher.source=none"], "learns from a teacher alone"),
        (["twin.distillation.tau=0"], "twin.distillation.tau"),
        (["stage1.initialize=twn"], "twin"),
    ],
)
def test_settings_that_do_not_go_together_are_named(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(None, overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_student_cannot_start_from_a_twin_that_is_not_there(tmp_path: Path, console: Console) -> None:
    recipe = load_recipe("quickstart", ["stage1.initialize=twin"])
    with pytest.raises(InputError, match="the recipe has no twin"):
        train(recipe, "digits", tmp_path / "run", console=console)


def test_runs_share_views_where_all_that_decides_them_is_equal(weights: Path, tmp_path: Path) -> None:
    def kept(name: str, *overrides: str) -> dict[str, int]:
        settings = ("twin.epochs=0", "teacher.epochs=1", "stage2.epochs=2", f'teacher.views="{tmp_path / "views"}"')
        train(chain(weights, *settings, *overrides), "digits", tmp_path / name)
        assert not (tmp_path / name / "views").exists()
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "views").iterdir()}

    first = kept("first")
    assert len(first) == 2
    assert kept("wider", "model.embed_dim=48", "stage2.learning_rate=1e-4") == first
    changed = ("stage2.mixup=0.5", "augment.rotation=5.0", "data.shots=11", "seed=1", "model.img_size=12")
    for count, setting in enumerate(changed, start=2):
        found = kept(str(count), setting)
        assert len(found) == 2 * count and first.items() <= found.items(), setting
