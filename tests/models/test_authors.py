import pytest
import torch
from authors_models import NO_GRADIENT, SIZES, imported, loss_of, training
from goldens import assert_close, case, golden

from gsb_vit.errors import InputError
from gsb_vit.models.authors import import_authors_checkpoint, translate_keys


@pytest.mark.parametrize("stage", [1, 2])
def test_evaluation_reproduces_the_authors_logits(stage):
    data, model = golden(f"model_stage{stage}"), imported(stage)
    assert not model.training
    with torch.no_grad():
        assert_close(model(data["x"]), data["logits_eval"])
        assert_close(model(data["x"][:1]), data["logits_eval_first_image_alone"])


@pytest.mark.parametrize("stage", [1, 2])
def test_training_reproduces_logits_loss_and_every_gradient(stage):
    data, model = golden(f"model_stage{stage}"), training(stage)
    by_class, by_teacher = model(data["x"])
    assert_close(by_class, data["logits_cls"])
    assert_close(by_teacher, data["logits_dist"])
    loss = loss_of(model, data)
    assert_close(loss, data["loss"])
    loss.backward()
    expected = translate_keys(case(f"model_stage{stage}", "grad"))
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(expected)
    for name, gradient in expected.items():
        if name in NO_GRADIENT[stage]:
            assert gradient.abs().max() < 1e-7 and parameters[name].grad.abs().max() < 1e-7
        else:
            assert_close(parameters[name].grad, gradient, 1e-4)


@pytest.mark.parametrize("stage", [1, 2])
def test_five_adamw_steps_reproduce_the_losses(stage):
    data, model = golden(f"model_stage{stage}"), training(stage)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of(model, data)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert_close(torch.stack(losses), data["losses_5_adamw_steps"])


def test_scope_sample_makes_predictions_independent_of_the_batch():
    model, x = imported(2, threshold_scope="sample"), golden("model_stage2")["x"]
    with torch.no_grad():
        together = model(x)
        assert_close(model(x[:1]), together[:1])
        batchwise = imported(2)
        assert (batchwise(x[:1]) - batchwise(x)[:1]).abs().max() > 1e-3


def test_aligned_gradients_change_gradients_only():
    data = golden("model_stage2")
    models = [imported(2, aligned_gradients=aligned).train() for aligned in (False, True)]
    outputs = [model(data["x"]) for model in models]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    first, second = (model.blocks[0].attn.v_shift.grad for model in models)
    assert (first - second).abs().max() > 1e-6


def test_data_parallel_prefix_is_understood():
    state = {f"module.{key}": tensor for key, tensor in case("model_stage2", "state").items()}
    data = golden("model_stage2")
    with torch.no_grad():
        assert_close(import_authors_checkpoint(state, **SIZES)(data["x"]), data["logits_eval"])


def test_foreign_and_damaged_checkpoints_are_refused():
    with pytest.raises(InputError, match=r"cls_token, dist_token.*missing"):
        import_authors_checkpoint({"weight": torch.zeros(1)}, **SIZES)
    state = case("model_stage2", "state")
    with pytest.raises(InputError, match=r"lacks blocks\.1\.norm2\.bias"):
        import_authors_checkpoint({k: v for k, v in state.items() if k != "blocks.1.norm2.bias"}, **SIZES)
    with pytest.raises(InputError, match="has extra"):
        import_authors_checkpoint({**state, "extra": torch.zeros(1)}, **SIZES)
    with pytest.raises(InputError, match="check image_size"):
        import_authors_checkpoint(state, **{**SIZES, "image_size": 64})
    with pytest.raises(InputError, match="check image_size, patch_size and num_heads"):
        import_authors_checkpoint(state, **{**SIZES, "num_heads": 4})
    with pytest.raises(InputError, match="not divisible"):
        import_authors_checkpoint(state, **{**SIZES, "num_heads": 3})
