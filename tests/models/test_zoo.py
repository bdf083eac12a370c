import copy
import io

import pytest
import timm
import torch
import torch.distributed as dist
from goldens import images
from small_models import gradients, ready, small
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gsb_vit.models  # noqa: F401 (registers the models)
from gsb_vit.errors import InputError
from gsb_vit.nn.edges import QuantizedLinear
from gsb_vit.quantization import PRESETS, Quantization

NAMES = timm.list_models("gsb_vit_*")
WIDTHS = {"gsb_vit_tiny_patch16_224": 192, "gsb_vit_small_patch16_224": 384, "gsb_vit_base_patch16_224": 768}


def test_all_three_sizes_are_registered():
    assert set(NAMES) == set(WIDTHS)


@pytest.mark.parametrize("name", NAMES)
def test_registered_models_run_forward_and_backward(name):
    model = timm.create_model(name, img_size=32, patch_size=16, num_classes=3).train()
    assert model.embed_dim == WIDTHS[name] and len(model.blocks) == 12 and model.norm.eps == 1e-12
    assert model.quantization == Quantization.stage2()
    model.set_distilled_training(True)
    by_class, by_teacher = model(images())
    assert by_class.shape == by_teacher.shape == (2, 3)
    (by_class.sum() + by_teacher.sum()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.eval()(images()).shape == (2, 3)


@pytest.mark.parametrize("quantization", [*PRESETS, {"threshold_scope": "fixed"}])
class TestEveryPreset:
    def test_trains_under_autocast(self, quantization):
        model = ready(quantization)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = gradients(model)
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        assert any(gradient.abs().max() > 0 for gradient in found.values())

    def test_survives_copies_and_state_dicts(self, quantization):
        model = ready(quantization)
        gradients(model)
        model.eval()
        stored = io.BytesIO()
        torch.save(model.state_dict(), stored)
        stored.seek(0)
        restored = small(quantization).eval()
        restored.load_state_dict(torch.load(stored, weights_only=True))
        with torch.inference_mode():
            expected = model(images())
            for twin in (copy.deepcopy(model), restored):
                assert torch.equal(twin(images()), expected)

    def test_data_parallel_gives_the_same_gradients(self, quantization, tmp_path):
        model = ready(quantization)
        expected = gradients(copy.deepcopy(model))
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        try:
            found = gradients(model, DistributedDataParallel(model))
        finally:
            dist.destroy_process_group()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("quantization", ["stage1", "stage2"])
def test_training_and_evaluation_compile_to_one_graph(quantization, monkeypatch):
    # Compiled graphs take PyTorch's path; tests/test_fused.py compares it with the fused kernels.
    monkeypatch.setenv("GSB_VIT_FUSED", "0")
    torch._dynamo.reset()
    model = ready(quantization, depth=1)
    eager = gradients(copy.deepcopy(model))
    compiled = gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"))
    for name, gradient in eager.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-5, atol=1e-6)
    model.eval()
    with torch.no_grad():
        output = torch.compile(model, fullgraph=True, backend="eager")(images())
        torch.testing.assert_close(output, model(images()))


def test_the_twin_is_the_same_architecture():
    student, twin = small(), small("full_precision")
    own = dict(student.named_parameters())
    assert all(own[name].shape == parameter.shape for name, parameter in twin.named_parameters())


def test_predictions_do_not_depend_on_neighbours():
    model = ready().eval()
    x = images(4, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(4)]), model(x))


def test_fresh_classifiers_stay_quantized():
    model = ready()
    model.reset_classifier(7)
    assert isinstance(model.head, QuantizedLinear) and isinstance(model.head_dist, QuantizedLinear)
    assert model(images())[0].shape == (2, 7)
    model = small("stage1")
    model.reset_classifier(7)
    assert type(model.head) is nn.Linear
    assert model(images()).shape == (2, 7)


def test_heads_average_unless_distilling():
    model = ready()
    by_class, by_teacher = model(images())
    model.set_distilled_training(False)
    torch.testing.assert_close(model(images()), (by_class + by_teacher) / 2)


def test_a_quantized_model_keeps_its_input_size():
    with pytest.raises(InputError, match="img_size"):
        small().set_input_size(img_size=(64, 64))
    model = small("full_precision")
    model.set_input_size(img_size=(64, 64))
    assert model(images(size=64)).shape == (2, 5)


def test_training_moves_every_learned_scale():
    model = ready()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("scale")}
    gradients(model)
    optimizer.step()
    assert len(before) == 2 * 8 + 5
    moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert set(moved) == set(before)
