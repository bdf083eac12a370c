"""What the quantization of each part costs: a bad part is found, noise is not, and on which pictures it is measured."""

import json
import shutil

import numpy as np
import pytest
import torch
from random_trained import random_trained
from small_runs import train_small, write_pictures

from gsb_vit.cli import main
from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.errors import InputError
from gsb_vit.models.parts import Part, plain_order, quantized_parts, without
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.models.trained import ModelInfo, TrainedModel
from gsb_vit.train.sensitivity import Change, PartCost, choose, paired_change, run_sensitivity, sensitivity


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    data = write_pictures(folder / "data", 24)
    train_small(data, folder / "run", "data.validation_fraction=0.5", "data.test_fraction=0.3")
    return folder / "run"


@pytest.fixture(scope="module", params=["mlp.fc2.weight", "attn.proj.weight"])
def bad(request):
    """A model in which one layer's latent weights are nothing like one bit, and pictures labelled by its better self.

    → The layer's part, and what was found.
    """
    model, preprocessing, pictures = random_trained(seed=1, depth=1, embed_dim=48)
    part = next(one for one in quantized_parts(model) if one.name == f"blocks.0.{request.param}")
    layer = model.get_submodule(part.name.removesuffix(".weight"))
    torch.manual_seed(0)
    with torch.no_grad():
        kept = torch.rand_like(layer.weight) < 0.04
        layer.weight.copy_(torch.where(kept, layer.weight * 60, layer.weight * 0.01))
        for head in (model.head, model.head_dist):
            head.weight *= 40
            head.weight_scale *= 40
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, pictures.shape[1:], dtype=np.uint8) for _ in range(64)]
    with torch.no_grad(), plain_order(model), without([part]):
        labels = model(normalize(np.stack(pictures), preprocessing)).argmax(1).numpy()
    info = ModelInfo("", {}, model.quantization, tuple("abcdef"), preprocessing, "stage2", {})
    trained = TrainedModel(model, info.class_names, preprocessing, info)
    return part, sensitivity(trained, LabelledPictures(tuple(pictures), labels), budget=part.bytes)


def test_a_layer_made_bad_is_found(bad):
    part, found = bad
    first = found.parts[0]
    assert first.part.name == part.name and first.significant and first.change.loss > 3 * first.change.loss_error
    assert first.change.top1 == pytest.approx(1 - found.top1)  # without it all answers are the labels
    assert [one.change.kl for one in found.parts] == sorted((one.change.kl for one in found.parts), reverse=True)


def test_a_budget_for_the_bad_layer_is_spent_on_it(bad):
    part, found = bad
    assert [one.name for one in found.choice.parts] == [part.name] and found.choice.change == found.parts[0].change
    assert found.choice.change.loss > 0
    assert part.name not in {one.part.name for one in choose(found.parts, part.bytes - 1)}


def test_paired_changes_and_their_errors_are_those_of_the_differences():
    quantized = np.log(np.array([[0.5, 0.5], [0.8, 0.2], [0.3, 0.7]]))
    whole = np.log(np.array([[0.6, 0.4], [0.4, 0.6], [0.3, 0.7]]))
    found = paired_change(quantized, whole, np.array([0, 1, 1]))
    losses = np.log([0.6 / 0.5, 0.6 / 0.2, 1.0])
    assert found.loss == pytest.approx(losses.mean())
    assert found.loss_error == pytest.approx(np.std(losses, ddof=1) / np.sqrt(3))
    assert found.top1 == pytest.approx(1 / 3) and found.top1_error == pytest.approx(1 / 3)
    first = 0.5 * np.log(0.5 / 0.6) + 0.5 * np.log(0.5 / 0.4)
    assert found.kl == pytest.approx((first + 0.8 * np.log(2) + 0.2 * np.log(1 / 3)) / 3)


def test_noise_is_not_significant():
    """Logits that differ by noise which the labels do not know: few of many tries are beyond their z, none by 4."""
    rng = np.random.default_rng(0)
    zs = []
    for _ in range(100):
        logits, labels = rng.normal(size=(80, 4)), rng.integers(0, 4, 80)
        change = paired_change(logits, logits[:, ::-1], labels)  # an exchangeable pair: the true change is 0
        zs.append(abs(change.loss) / change.loss_error)
    assert 1 < sum(z > 2 for z in zs) < 14 and max(zs) < 4


def _cost(name, kl, size, heard=True):
    return PartCost(Part(name, "weights", 1, 8, size, 0, ()), Change(-1, 0.1, 0, 0, kl, 0.1), False, heard)


def test_choosing_takes_most_divergence_a_byte_that_fits():
    costs = [_cost("dear", 1.0, 100), _cost("cheap", 0.5, 10), _cost("small", 0.01, 5), _cost("noise", 9.0, 1, False)]
    costs += [_cost("no bytes", 5.0, 0)]
    names = {budget: [one.part.name for one in choose(costs, budget)] for budget in (0, 10, 20, 110, 10**6)}
    assert names == {
        0: [], 10: ["cheap"], 20: ["cheap", "small"], 110: ["cheap", "dear"], 10**6: ["cheap", "dear", "small"]
    }  # fmt: skip


def test_a_run_is_measured_on_its_validation_pictures(run):
    said = []
    found = run_sensitivity(run, say=said.append)
    held = json.loads((run / "split.json").read_text())["validation"]
    assert found.n == len(held["labels"]) and said == [f"measured on {found.n} pictures: the run's validation pictures"]
    assert len(found.parts) == 16 and found.choice is None
    assert [kind for kind, _, _ in found.kinds] == [
        "weights",
        "inputs",
        "queries and keys",
        "attention",
        "Value",
        "edges",
    ]


def test_of_many_pictures_so_many_are_taken(run):
    assert run_sensitivity(run, most=20).n == 20


def test_other_data_is_rid_of_what_was_trained_on(run):
    held = json.loads((run / "split.json").read_text())
    found = run_sensitivity(run, str(run.parent / "data"))
    assert found.n == len(held["test"]["labels"])
    assert "seen in training" in found.pictures


def test_without_validation_pictures_the_test_is_taken_and_said(run, tmp_path):
    stored = json.loads((run / "split.json").read_text())
    copied = shutil.copytree(run, tmp_path / "run")
    stored["validation"] = {"digests": [], "labels": [], "names": []}
    (copied / "split.json").write_text(json.dumps(stored))
    found = run_sensitivity(copied)
    assert found.n == len(stored["test"]["labels"]) and "has no validation pictures" in found.pictures


def test_a_test_on_training_pictures_is_refused(run, tmp_path):
    stored = json.loads((run / "split.json").read_text())
    copied = shutil.copytree(run, tmp_path / "run")
    stored["validation"] = {"digests": [], "labels": [], "names": []}
    stored["test"] = stored["train"]
    (copied / "split.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="no pictures that it has not seen; give some with --data"):
        run_sensitivity(copied)


@pytest.mark.parametrize(
    "options, pattern",
    [({"budget": -1}, "budget of -1 bytes is below 0"), ({"most": 3}, "3 pictures tell signal from noise badly")],
)
def test_options_that_make_no_sense_are_refused(run, options, pattern):
    with pytest.raises(InputError, match=pattern):
        run_sensitivity(run, **options)


def test_a_teacher_is_refused(run):
    with pytest.raises(InputError, match=r"nothing in the teacher of .* is quantized"):
        run_sensitivity(run / "teacher")


def test_a_model_file_outside_a_run_asks_for_data(run, tmp_path):
    path = shutil.copy(next((run / "stage2").glob("[bl]*st.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="give it as --data SPEC"):
        run_sensitivity(path)


def test_the_command_fits_80_columns_and_says_what_it_is_for(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sensitivity", str(run), "--budget", "500"])
    output, errors = capsys.readouterr()
    assert stop.value.code == 0 and "validation pictures" in errors
    assert max(map(len, output.splitlines())) <= 92
    assert "blocks.0.attn.attention" in output and "For 500 more bytes" in output
    assert "Only one-bit weights and activations have a runtime today" in output


def test_the_command_prints_json(run, capsys):
    with pytest.raises(SystemExit):
        main(["sensitivity", str(run), "--budget", "0", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["budget"] == {"budget": 0, "bytes": 0, "parts": {}}
    assert {"part", "kind", "bits", "bytes", "loss", "loss_error", "kl", "significant"} <= set(found["parts"][0])
