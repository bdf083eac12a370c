"""Weights for a teacher: files of either kind, by name and by position, misfits, the hub, size and normalisation."""

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

pytest.importorskip("accelerate")

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.errors import InputError
from gsb_vit.models.trained import ModelInfo
from gsb_vit.quantization import Quantization
from gsb_vit.train import weights as weights_module
from gsb_vit.train.recipe import Recipe
from gsb_vit.train.recipe_io import load_recipe
from gsb_vit.train.teacher import HeadFirst, build_teacher, require_teacher, teacher_preprocessing
from gsb_vit.train.weights import fit_weights, read_weights

NAME = "test_efficientnet"
STUDENT = Preprocessing(size=(16, 16), crop_ratio=0.9)


@pytest.fixture(scope="module")
def source() -> nn.Module:
    """A model as another one trained it: 1,000 classes, no two tensors alike."""
    torch.manual_seed(1)
    model = timm.create_model(NAME)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model


def recipe_with(weights: Path | str, *overrides: str, name: str = NAME) -> Recipe:
    return load_recipe(None, [f"teacher.source=timm:{name}", f'teacher.weights="{weights}"', *overrides])


def info(classes: int = 5) -> ModelInfo:
    names = tuple(f"class {i}" for i in range(classes))
    return ModelInfo("x", {}, Quantization.full_precision(), names, STUDENT, "teacher", {})


def same_but_the_classifier(found: nn.Module, expected: nn.Module) -> bool:
    own, other = found.state_dict(), expected.state_dict()
    return all(torch.equal(own[n], other[n]) for n in other if not n.startswith("classifier"))


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested"])
def test_files_of_either_kind_and_a_new_classifier(source: nn.Module, tmp_path: Path, kind: str) -> None:
    tensors = source.state_dict()
    path = tmp_path / f"weights.{'pth' if kind == 'nested' else kind}"
    if kind == "safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(
            {"state_dict": {f"module.{n}": t for n, t in tensors.items()}} if kind == "nested" else tensors, path
        )
    said: list[str] = []
    model, about = build_teacher(recipe_with(path), info(), said.append)
    assert same_but_the_classifier(model, source) and model.classifier.out_features == 5
    assert "none is left over" in said[0] and "\n" not in said[0]
    assert about.provenance["weights"] == str(path) and about.preprocessing.size == (160, 160)


def test_position_order_is_asked_for_and_never_guessed(source: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "other_names.pth"
    torch.save({f"tensor_{i}": t for i, t in enumerate(source.state_dict().values())}, path)
    with pytest.raises(InputError, match=r'0 of its .*teacher.weights_order = "position"'):
        build_teacher(recipe_with(path), info(), print)
    model, _ = build_teacher(recipe_with(path, "teacher.weights_order=position"), info(), lambda text: None)
    assert same_but_the_classifier(model, source)
    counters = {f"t{i}": t for i, (n, t) in enumerate(source.state_dict().items()) if "num_batches" not in n}
    torch.save(counters, path)
    model, _ = build_teacher(recipe_with(path, "teacher.weights_order=position"), info(), lambda text: None)
    assert torch.equal(model.bn1.running_var, source.bn1.running_var)


def test_positions_that_do_not_fit_are_named(source: nn.Module) -> None:
    tensors = dict(source.state_dict())
    names = list(tensors)
    with pytest.raises(InputError, match=f"{len(names) - 1} tensors and the model has {len(names)}"):
        fit_weights(source, {n: tensors[n] for n in names[1:]}, "position", "FILE")
    tensors[names[0]] = torch.zeros(2, 3)
    with pytest.raises(InputError, match=rf"FILE do not fit the model by position: {names[0]} \(2×3\) → {names[0]}"):
        fit_weights(source, tensors, "position", "FILE")


def test_tensors_that_do_not_fit_are_named_in_one_line(source: nn.Module) -> None:
    tensors = dict(source.state_dict())
    first = next(iter(tensors))
    tensors[first] = torch.zeros(7)
    del tensors["bn1.weight"]
    tensors["extra.weight"] = torch.zeros(1)
    fit = fit_weights(source, tensors, "name", "FILE")
    assert "bn1.weight (not in the file)" in fit.misfits and "extra.weight (not in the model)" in fit.misfits
    assert any(text.startswith(f"{first} (7 in the file, ") for text in fit.misfits) and len(fit.misfits) == 3
    assert "\n" not in str(fit) and "these do not" in str(fit)


def test_weights_of_another_model_are_an_error(source: nn.Module) -> None:
    other = timm.create_model("test_resnet").state_dict()
    with pytest.raises(InputError, match="are not those of this model") as caught:
        fit_weights(source, other, "name", "FILE")
    assert "position" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_a_pickled_object_is_not_read(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(2, 2)}, tmp_path / "code.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_weights(str(tmp_path / "code.pth"))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_missing_and_damaged_files(tmp_path: Path, ending: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_weights(str(tmp_path / f"none.{ending}"))
    (tmp_path / f"bad.{ending}").write_bytes(b"PK\x03\x04 no weights")
    with pytest.raises(InputError, match=r"bad\."):
        read_weights(str(tmp_path / f"bad.{ending}"))


def test_a_hub_name_goes_through_timms_loader(source: nn.Module, tmp_path: Path, monkeypatch) -> None:
    """huggingface_hub's download is replaced by a folder; the code around it is timm's own."""
    from timm.models import _hub

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    asked: list[tuple] = []

    def download(repo_id: str, filename: str, **options: object) -> str:
        asked.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    model, _ = build_teacher(recipe_with(f"timm/{NAME}.r160_in1k"), info(), lambda text: None)
    assert same_but_the_classifier(model, source) and asked == [(f"timm/{NAME}.r160_in1k", "model.safetensors")]

    def unreachable(*arguments: object, **options: object) -> str:
        raise OSError("we are offline")

    monkeypatch.setattr(_hub, "hf_hub_download", unreachable)
    with pytest.raises(InputError, match=r"timm/nothing.*we are offline"):
        read_weights("timm/nothing")


def test_positions_of_a_vision_transformer_are_resized_to_the_teachers_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    recipe = recipe_with(tmp_path / "vit.pth", "teacher.img_size=96", name="test_vit")
    said: list[str] = []
    model, _ = build_teacher(recipe, info(), said.append)
    assert model.pos_embed.shape[1] == 1 + 36 and "none is left over" in said[0]


@pytest.mark.parametrize(
    "name", ["vgg11", "test_convnext", "test_byobnet", "mixer_s32_224", "test_vit", "poolformer_s12"]
)
def test_a_teacher_may_be_of_any_family(name: str) -> None:
    recipe = load_recipe(None, [f"teacher.source=timm:{name}", "teacher.img_size=64"])
    model, about = build_teacher(recipe, info(), print)
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert about.preprocessing == dataclasses.replace(STUDENT, size=(64, 64))


def test_size_and_normalisation_come_from_the_weights_unless_given() -> None:
    lite = load_recipe(None, ["teacher.source=timm:tf_efficientnet_lite0", "teacher.weights=a.pth"])
    student = dataclasses.replace(STUDENT, mean=(0.1, 0.2, 0.3))
    expected = dataclasses.replace(student, size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert teacher_preprocessing(lite, student) == expected
    given = dataclasses.replace(lite.teacher, img_size=128, std=(0.2, 0.2, 0.2))
    found = teacher_preprocessing(dataclasses.replace(lite, teacher=given), student)
    assert found == dataclasses.replace(expected, size=(128, 128), std=(0.2, 0.2, 0.2))
    assert teacher_preprocessing(load_recipe(None, ["teacher.source=timm:resnet18"]), student) == student


def test_weights_are_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    recipe = recipe_with(tmp_path / "none.pth")
    with pytest.raises(InputError, match="no such file"):
        require_teacher(recipe, 5, STUDENT)
    require_teacher(recipe, 5, STUDENT, weights=False)


def test_head_epochs_move_the_classifier_alone() -> None:
    recipe = load_recipe(None, ["teacher.epochs=4", "teacher.head_epochs=2", "teacher.head_learning_rate=0.1"]).teacher
    model = timm.create_model(NAME, num_classes=5)
    first = HeadFirst(model, recipe)
    images = torch.rand(4, 3, 32, 32)
    for alone in (True, False):
        for epoch in (1, 2):
            model.train().zero_grad()
            first.prepare(epoch, alone)
            model(images).sum().backward()
            first.drop_gradients(epoch)
            moved = {name for name, p in model.named_parameters() if p.grad is not None}
            assert (moved == {"classifier.weight", "classifier.bias"}) == (epoch < 2)
            assert model.bn1.training == (epoch >= 2)
    assert first.learning_rate(0.0) == pytest.approx(0.1) and first.learning_rate(1.0) == pytest.approx(1e-6)


def test_the_hubs_loader_is_timms() -> None:
    assert weights_module.load_state_dict_from_hf.__module__.startswith("timm.")
