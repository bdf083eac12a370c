"""What a GPU computes and trains, against the authors' tensors and against a CPU; skipped where there is none."""

import copy
import dataclasses
import io
import json

import pytest

pytest.importorskip("accelerate")

import numpy as np
import torch
from accelerate.state import AcceleratorState
from authors_models import NO_GRADIENT, loss_of, training
from goldens import assert_close, case, golden, relative_error
from needs import needs
from rich.console import Console
from small_models import ready

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.export.pack import export_model
from gsb_vit.models.authors import translate_keys
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.models.trained import load_model
from gsb_vit.runtime import packed_file as packed_files
from gsb_vit.runtime.reference import ReferenceModel
from gsb_vit.train.batches import TrainingPictures
from gsb_vit.train.recipe import AugmentRecipe
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.run import train

pytestmark = needs("CUDA", "a CUDA device", torch.cuda.is_available())
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def exact_convolutions():
    """float32 convolutions in float32, not in TF32, as products are by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def any_precision():
    """Accelerate keeps the precision of a process's first run: forget it before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def on_gpu(data: dict) -> dict:
    return {name: tensor.to(DEVICE) for name, tensor in data.items()}


@pytest.mark.parametrize("stage", [1, 2])
def test_training_reproduces_the_authors_logits_loss_and_gradients(stage):
    data, model = on_gpu(golden(f"model_stage{stage}")), training(stage).to(DEVICE)
    by_class, by_teacher = model(data["x"])
    assert_close(by_class.cpu(), data["logits_cls"].cpu())
    assert_close(by_teacher.cpu(), data["logits_dist"].cpu())
    loss = loss_of(model, data)
    assert_close(loss.cpu(), data["loss"].cpu())
    loss.backward()
    parameters = dict(model.named_parameters())
    for name, gradient in translate_keys(case(f"model_stage{stage}", "grad")).items():
        if name in NO_GRADIENT[stage]:
            assert parameters[name].grad.abs().max() < 1e-7
        else:
            assert_close(parameters[name].grad.cpu(), gradient, 1e-4)


def perturbed(model):
    """The model with every parameter moved a little: no shift is 0, where a sum that cancels lies on a threshold."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.1 * (noise + 0.1) * parameter.abs().mean().clamp(min=0.1))
    return model


def gradients(model, images) -> dict:
    model.train()
    outputs = model(images)
    torch.stack([output.float().square().mean() for output in outputs]).sum().backward()
    found = {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("quantization", ["stage1", "stage2", "authors_stage2"])
def test_double_precision_gradients_equal_the_processors(quantization):
    # In float64 no sum comes so near a threshold that its order decides a sign.
    model = perturbed(ready(quantization, depth=2).double())
    model.set_distilled_training(True)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = gradients(copy.deepcopy(model), images)
    for name, found in gradients(model.to(DEVICE), images.to(DEVICE)).items():
        scale = max(expected[name].abs().max().item(), 1e-12)
        assert (found - expected[name]).abs().max().item() <= 1e-6 * scale + 1e-12, name


def assert_most_agrees(found: dict, expected: dict) -> None:
    """A sum in another order may turn the sign of one activation on its threshold: most of every gradient is as is."""
    errors = {name: ((found[name] - e).norm() / e.norm().clamp(min=1e-12)).item() for name, e in expected.items()}
    assert sorted(errors.values())[len(errors) // 2] < 1e-3, errors


def test_functions_in_pytorch_give_the_gradients_of_the_modules(monkeypatch):
    model = perturbed(ready("stage2", depth=1)).to(DEVICE)
    model.set_distilled_training(True)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    results = []
    for switch in ("0", "torch"):
        monkeypatch.setenv("GSB_VIT_FUSED", switch)
        results.append(gradients(copy.deepcopy(model), images))
    assert_most_agrees(results[1], results[0])


def test_compiled_steps_give_the_gradients_of_eager_ones():
    torch._dynamo.reset()
    model = perturbed(ready("stage2", depth=1)).to(DEVICE)
    model.set_distilled_training(True)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    expected = gradients(copy.deepcopy(model), images)
    model.compile()
    found = gradients(model, images)
    assert_most_agrees(found, expected)


def test_pictures_vary_on_the_device_as_on_the_processor():
    generator = np.random.default_rng(0)
    pictures = tuple(generator.integers(0, 255, (20, 24, 3), dtype=np.uint8) for _ in range(8))
    source = LabelledPictures(pictures, np.arange(8, dtype=np.int64) % 2)
    recipe = dataclasses.replace(AugmentRecipe(), random_erasing=0.5, vertical_flip=0.5)
    batches = [
        next(TrainingPictures(source, Preprocessing(size=(16, 16)), recipe, device=device).epoch((1, 2), 8))
        for device in ("cpu", DEVICE)
    ]
    (images, labels), (on_device, device_labels) = batches
    assert on_device.device.type == DEVICE and torch.equal(labels, device_labels.cpu())
    assert torch.allclose(images, on_device.cpu(), atol=1e-3)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_trains_resumes_and_its_model_packs(precision, tmp_path, any_precision):
    settings = ["model.depth=1", "model.embed_dim=64", "model.num_heads=2", "data.shots=60"]
    epochs = [f"{stage}.epochs={n}" for stage, n in (("teacher", 30), ("stage1", 5), ("stage2", 10))]
    recipe = load_recipe("quickstart", [*settings, *epochs, f'mixed_precision="{precision}"'])
    console = Console(file=io.StringIO())
    summary = train(recipe, "digits", tmp_path / "run", console=console)
    assert summary.stages["teacher"]["test"]["top1"] > 0.5 and summary.test["top1"] > 0.25
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["machine"]["gpu"] == torch.cuda.get_device_name()
    # Stage 2 once more, from the middle of the run's files.
    for name in ("summary.json", "stage2/state.safetensors", "stage2/last.safetensors", "stage2/best.safetensors"):
        (tmp_path / "run" / name).unlink()
    again = train(recipe, "digits", tmp_path / "run", resume=True, console=console)
    assert again.stages["stage1"]["test"] == summary.stages["stage1"]["test"]
    trained = load_model(tmp_path / "run")
    packed = tmp_path / "model.safetensors"
    export_model(trained.model, packed, class_names=trained.class_names, preprocessing=trained.preprocessing)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = trained.model(normalize(pictures, trained.preprocessing))
    found = torch.from_numpy(ReferenceModel(packed_files.read(packed)).logits(pictures))
    assert relative_error(found, expected) < 1e-5
