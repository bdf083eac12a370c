"""Whole runs on digits: what is carried between stages, guards, and the evaluation of a finished run."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import f1_score, top_k_accuracy_score

pytest.importorskip("accelerate")

from gsb_vit.data.splits import load_data
from gsb_vit.errors import InputError
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.models.trained import load_model, read_tensors, write_tensors
from gsb_vit.train import loop
from gsb_vit.train.batches import EvaluationPictures
from gsb_vit.train.checkpoint import STATE
from gsb_vit.train.evaluate import evaluate_run, model_logits
from gsb_vit.train.folder import sensible_threads
from gsb_vit.train.guards import TrainingError, check_loss
from gsb_vit.train.loop import StageRun
from gsb_vit.train.precision import bfloat16_cost
from gsb_vit.train.recipe import Recipe
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import RunSummary, train

SETTINGS = [
    "model.depth=1",
    "model.embed_dim=32",
    "model.num_heads=2",
    "model.tokenizer_channels=[]",
    "model.global_pool=token",
    "data.shots=20",
    "threads=1",
    *(f"{stage}.{setting}" for stage in ("teacher", "stage1", "stage2") for setting in ("epochs=4", "batch_size=32")),
]


def quick(*overrides: str) -> Recipe:
    return load_recipe("quickstart", [*SETTINGS, *overrides])


@pytest.fixture(scope="module")
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, console: Console) -> RunSummary:
    recipe = quick("data.shots=60", "teacher.epochs=25", "stage1.epochs=5", "stage2.epochs=8")
    return train(recipe, "digits", tmp_path_factory.mktemp("run"), console=console)


def test_a_run_learns_in_every_stage(run: RunSummary) -> None:
    assert run.final_stage == "stage2" and list(run.stages) == ["teacher", "stage1", "stage2"]
    assert run.stages["teacher"]["test"]["top1"] > 0.5
    assert run.test["top1"] > 0.25


def test_metrics_lines_and_console(run: RunSummary, console: Console) -> None:
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["stage"] == "stage2"] == list(range(1, 9))
    assert {"train_loss", "train_top1", "learning_rate", "images_per_s", "data_wait", "seconds"} <= set(lines[0])
    assert all(math.isfinite(line["train_loss"]) for line in lines)
    text = console.file.getvalue()
    assert "tensors from teacher" in text and "tensors from stage1" in text and "precision" in text
    summary = json.loads((run.out / "summary.json").read_text())
    hits = sum(row[k] for k, row in enumerate(summary["confusion_matrix"]))
    assert f"Right on {hits} of {summary['test']['n']} test pictures: {summary['test']['top1']:.1%}" in text
    assert summary["decision"]["temperature"] > 0 and summary["calibration"]["pictures"] > 0
    before, after = (summary["calibration"][f"test_error_{when}"] for when in ("before", "after"))
    assert f"{before:.1%} before, {after:.1%} after" in text
    assert run.packable


@pytest.mark.parametrize(("cost", "said"), [(9.8, True), (1.7, True), (1.05, False), (0.5, False)])
def test_slow_bfloat16_is_said(tmp_path: Path, monkeypatch, cost: float, said: bool) -> None:
    monkeypatch.setattr("gsb_vit.train.run.bfloat16_cost", lambda device: cost)
    console = Console(file=io.StringIO(), width=200)
    recipe = quick("mixed_precision=bf16", "teacher.epochs=1", "stage1.epochs=1", "stage2.epochs=0")
    train(recipe, "digits", tmp_path / "run", console=console)
    assert ("--set mixed_precision=no" in console.file.getvalue()) == said
    assert (f"bfloat16 take {cost} times as long" in " ".join(console.file.getvalue().split())) == said


def test_the_cost_of_bfloat16_is_measured_on_a_cpu_alone() -> None:
    assert bfloat16_cost(torch.device("cpu")) > 0
    assert bfloat16_cost(torch.device("cuda")) == bfloat16_cost(torch.device("meta")) == 0


def test_the_chosen_epoch_is_the_best_on_validation(run: RunSummary) -> None:
    lines = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    for stage, result in run.stages.items():
        own = [
            (n["validation_top1"], -n["validation_loss"], -n["epoch"])
            for n in lines
            if n["stage"] == stage and "validation_top1" in n
        ]
        assert result["chosen_epoch"] == -max(own)[2]
        assert result["validation_top1"] == max(own)[0]


def test_evaluating_the_run_gives_its_test_metrics(run: RunSummary) -> None:
    found = evaluate_run(run.out, "digits")
    # Sixty shots a class were used; evaluation judges on all the others, not on the run's test part alone.
    assert (found["n_given"], found["n_seen"], found["n"]) == (1797, 600, 1197)
    trained = load_model(run.out)
    test = load_data("digits", load_recipe(run.out / "recipe.toml").data).test
    logits = model_logits(trained.model, EvaluationPictures(test, trained.preprocessing))
    assert run.test["macro_f1"] == pytest.approx(f1_score(test.labels, logits.argmax(1), average="macro"))
    assert run.test["top5"] == pytest.approx(top_k_accuracy_score(test.labels, logits, k=5))
    matrix = np.array(json.loads((run.out / "summary.json").read_text())["confusion_matrix"])
    assert matrix.trace() / matrix.sum() == pytest.approx(run.test["top1"])


def test_evaluating_on_other_classes_is_refused(run: RunSummary, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (8, 8)).save(tmp_path / split / name / f"{i}.png")
    with pytest.raises(InputError, match="2 classes, the model 10"):
        evaluate_run(run.out, str(tmp_path))


def test_a_student_of_a_trained_teacher_starts_from_it(run: RunSummary, tmp_path: Path, console: Console) -> None:
    recipe = quick(f"teacher.source={run.out / 'teacher'}", "stage1.epochs=0", "stage2.epochs=1")
    recipe = dataclasses.replace(
        recipe, stage2=dataclasses.replace(recipe.stage2, learning_rate=1e-9, min_learning_rate=1e-10)
    )
    summary = train(recipe, "digits", tmp_path / "run", console=console)
    assert list(summary.stages) == ["stage2"]
    teacher = load_model(run.out / "teacher").model
    student = load_model(tmp_path / "run").model
    assert torch.allclose(student.blocks[0].mlp.fc1.weight, teacher.blocks[0].mlp.fc1.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.validation_fraction=0"], "validation_fraction"),
        (["teacher.source=none", "stage1.initialize=teacher"], "no teacher"),
        (["teacher.source=/nothing"], "/nothing"),
        (["model.architecture=gsb_vit_tny_patch16_224"], "gsb_vit_tiny_patch16_224"),
        (["model.num_heads=5"], "num_heads"),
        (["teacher.source=timm:deit_tny_patch16_224"], "deit_tiny_patch16_224"),
    ],
)
def test_recipes_that_cannot_run_are_refused(
    overrides: list[str], words: str, tmp_path: Path, console: Console
) -> None:
    with pytest.raises(InputError) as caught:
        train(quick(*overrides), "digits", tmp_path / "run", console=console)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def small_model(recipe: Recipe) -> torch.nn.Module:
    model = build_model(recipe.model.architecture, recipe.model.arguments(), 10, recipe.stage2.quantization)
    initialize_scales(model, torch.randn(8, 3, 16, 16))
    return model


def test_a_loss_that_is_not_finite_names_the_first_layer_at_fault() -> None:
    model, images = small_model(quick("model.depth=2")), torch.randn(4, 3, 16, 16)
    check_loss(torch.tensor(1.0), model, images, "stage2, epoch 3")
    hook = model.blocks[1].mlp.fc1.register_forward_hook(lambda m, i, out: out / 0)
    with pytest.raises(TrainingError, match=r"stage2, epoch 3: the loss is nan.*blocks\.1\.mlp"):
        check_loss(torch.tensor(float("nan")), model, images, "stage2, epoch 3")
    hook.remove()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"blocks\.0\.attn\.proj\.weight"):
        check_loss(torch.tensor(float("inf")), model, images, "stage2")


def test_a_run_that_breaks_stops_with_its_last_checkpoint_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    epoch = StageRun._epoch

    def breaking(self: StageRun, task: object, optimizer: object, number: int, bar: object) -> dict[str, float]:
        record = epoch(self, task, optimizer, number, bar)
        if self.setting.name == "teacher" and number == 2:
            with torch.no_grad():
                self.model.head.weight[0, 0] = float("nan")
        return record

    monkeypatch.setattr(StageRun, "_epoch", breaking)
    monkeypatch.setattr(loop, "SAVING_SHARE", math.inf)
    with pytest.raises(TrainingError, match=r"teacher, epoch 3: head\.weight is not finite"):
        train(quick(), "digits", tmp_path / "run", console=console)
    last = load_model(tmp_path / "run" / "teacher" / "last.safetensors")
    assert last.info.provenance["epoch"] == 2
    assert all(bool(torch.isfinite(t).all()) for t in last.model.state_dict().values())


def test_threads_follow_the_environment_and_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert sensible_threads(quick(), 1) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("gsb_vit.train.folder.os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert sensible_threads(quick(), 1) == 1
    assert sensible_threads(load_recipe("authors"), 1) == 8
    assert sensible_threads(load_recipe("authors"), 4) == 2


def test_the_running_average_of_the_weights_is_what_is_kept(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An own average over the weights after every step, against the model file; two epochs so that it goes on."""
    expected: list[torch.Tensor] = []

    def largest(optimizer: torch.optim.Optimizer) -> torch.Tensor:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return max(parameters, key=lambda p: p.numel()).detach().clone()

    step = torch.optim.AdamW.step

    def averaging_step(self: torch.optim.AdamW, *arguments: object, **options: object) -> object:
        expected[:] = expected or [largest(self)]
        result = step(self, *arguments, **options)
        expected[0] = 0.8 * expected[0] + 0.2 * largest(self)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", averaging_step)
    settings = ("teacher.epochs=2", "stage1.epochs=0", "stage2.epochs=0", "teacher.ema_decay=0.8")
    train(quick(*settings, "teacher.select=last"), "digits", tmp_path / "run", console=console)
    kept = read_tensors(tmp_path / "run" / "teacher" / "last.safetensors")[0]
    raw = read_tensors(tmp_path / "run" / "teacher" / "state.safetensors")[0]
    name = max(kept, key=lambda n: kept[n].numel())
    assert torch.allclose(kept[name], expected[0], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(raw[f"model.{name}"], kept[name], rtol=1e-5, atol=1e-7)


def test_short_epochs_are_not_saved_one_by_one(tmp_path: Path, console: Console, monkeypatch) -> None:
    """Where saving may take no time the last epoch alone is saved, and the run ends as one that saves every epoch."""
    written: list[Path] = []
    write = write_tensors

    def listing_write(path: Path, *rest: object) -> None:
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(loop, "write_tensors", listing_write)
    for share in (0.0, math.inf):
        monkeypatch.setattr(loop, "SAVING_SHARE", share)
        settings = ("teacher.epochs=3", "stage1.epochs=0", "stage2.epochs=0", "teacher.select=last")
        train(quick(*settings), "digits", tmp_path / str(share), console=console)
    states = [(path.parts[-3], path.name) for path in written if path.name == STATE]
    assert states == [("0.0", STATE), *[("inf", STATE)] * 3]
    ends = [(tmp_path / str(share) / "teacher" / "last.safetensors").read_bytes() for share in (0.0, math.inf)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("architecture", ["vit_base_patch16_clip_224", "vit_base_patch14_reg4_dinov2"])
def test_what_cannot_be_packed_trains_and_says_so_first(tmp_path, architecture):
    switches = [f'model.architecture="{architecture}"', "model.patch_size=8", 'distillation.kind="none"']
    epochs = [f"{stage}.epochs=1" for stage in ("teacher", "stage1", "stage2")]
    said = io.StringIO()
    summary = train(quick(*switches, *epochs), "digits", tmp_path / "run", console=Console(file=said, width=200))
    assert set(summary.stages) == {"teacher", "stage1", "stage2"} and not summary.packable
    text = " ".join(said.getvalue().split())
    assert text.index("`gsb-vit export` will refuse it: a packed model cannot have") < text.index("teacher")


@pytest.mark.parametrize("bits", [8, 1])
def test_a_tokenizer_mean_pooling_and_registers_train_and_export_with_equal_logits(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("gsb_vit._native")
    from gsb_vit.export.run import export_run

    network = ("model.tokenizer_channels=[12]", "model.global_pool=avg", "model.reg_tokens=2")
    quantization = f"stage2.quantization.tokenizer_bits={bits}"
    found = train(quick(*network, quantization, "stage2.ema_decay=0.9"), "digits", tmp_path / "run")
    model = load_model(found.out).model
    plain = load_model(found.out / "teacher").model
    assert (model.num_prefix_tokens, model.patch_embed.proj.channels) == (2, (12, 32))
    assert set(plain.state_dict()) < set(model.state_dict()), "each stage starts from all that the one before it has"
    packed, parity = export_run(found.out, tmp_path / "model.safetensors")
    assert parity.equal == parity.n == 30 and not any(parity.flipped.values())
    a = packed.architecture
    assert (a.tokenizer_channels, a.global_pool, a.prefix_tokens, len(a.heads)) == ((12,), "avg", 2, 1)
    assert a.level_bits == (bits,)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.tokenizer_channels=[8,16]", r"3 convolutions .* 8 × 8 pixels, not patch_size = 4; give patch_size = 8"),
        ("model.tokenizer_channels=[0]", "tokenizer_channels = .* must be a list of at most 5, each a whole number"),
        ("model.tokenizer_channels=[1,1,1,1,1,1]", "tokenizer_channels = .* must be a list of at most 5"),
        ("model.tokenizer_channels=8", "model.tokenizer_channels = 8 has the wrong type"),
        ("model.global_pool=max", 'model.global_pool = .* use "token", "avg"'),
        ("model.reg_tokens=2", "takes reg_tokens with global_pool = 'avg' only"),
        (
            "stage2.quantization.tokenizer_bits=1",
            "has patches; give model.tokenizer_channels, or leave tokenizer_bits at 8",
        ),
        ("stage1.quantization.tokenizer_bits=1", "tokenizer_bits = 1 goes with edge_bits = 8"),
        ("stage2.quantization.tokenizer_bits=2", "tokenizer_bits = 2"),
        ("model.reg_tokens=-1", "reg_tokens = -1 must be a whole number"),
    ],
)
def test_networks_that_cannot_be_are_refused_in_one_line(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train(quick(setting), "digits", tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
