"""Evaluation in PyTorch follows docs/numerics.md: every float, every bit and every logit is the reference's."""

import copy
import io

import numpy as np
import pytest
import timm
import torch
from random_trained import random_trained
from timm.layers import LayerNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.export.pack import _folded, pack_model
from gsb_vit.export.parity import torch_bits
from gsb_vit.models.binarize import binarize, initialize_scales, set_pixel_scaling
from gsb_vit.models.pixel_inputs import PixelInputs, normalize
from gsb_vit.nn import exact
from gsb_vit.quantization import Quantization
from gsb_vit.runtime import reference
from gsb_vit.runtime.reference import ReferenceModel

IMAGENET = Preprocessing(size=(32, 32))
WIDE = {"embed_dim": 100, "num_heads": 5, "depth": 3}
CASES = {
    "default": {},
    "fixed, full bias": {"switches": {"threshold_scope": "fixed", "attention_bias": "full"}, **WIDE},
    "no bias, layer scales": {"switches": {"attention_bias": "none", "weight_scale": "layer"}, "plain": True},
    "learned scales": {"switches": {"weight_scale": "learned_row"}, **WIDE},
    "bit": {"switches": {"scheme": "bit", "attention_bias": "full"}},
    "one and four groups": {"switches": {"attention_thresholds": (), "value_thresholds": (0.2, 0.5, 0.8)}, **WIDE},
    "no position for the class": {"plain": True, "no_embed_class": True, "qkv_bias": False, "num_heads": 2},
    "sums above 2^24": {"img_size": 96, "patch_size": 48},
    "oblong": {"img_size": (24, 48), "patch_size": (8, 12), "switches": {"threshold_scope": "fixed"}},
    "17 tokens, norm of torch": {"plain": True, "norm_layer": nn.LayerNorm},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def plain(monkeypatch):
    """Call the result to have evaluation run in PyTorch's own order from then on."""
    return lambda: monkeypatch.setattr(exact, "applies", lambda x: False)


def packed(model, preprocessing):
    names = [f"class {number}" for number in range(6)]
    return pack_model(model, class_names=names, preprocessing=preprocessing, provenance={})


def floats(model, images):
    """The floats between the integers, under the names of ``ReferenceModel.trace``, pictures first; and the logits."""
    found, hooks = {}, []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: found.update(tokens=inputs[0]))

    def keep(prefix):
        def hook(attention, inputs):
            q, k, v = attention.project(inputs[0])
            found[f"{prefix}.attention"], found[f"{prefix}.value"] = attention.attention_matrix(q, k), v

        return hook

    for index, block in enumerate(model.blocks):
        hooks.append(block.attn.register_forward_pre_hook(keep(f"blocks.{index}.attn")))
        name = f"blocks.{index}.output"
        hooks.append(block.register_forward_hook(lambda block, inputs, output, name=name: found.update({name: output})))
    found["logits"] = model(images)
    for hook in hooks:
        hook.remove()
    return {name: value.detach().numpy() for name, value in found.items()}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_every_float_and_bit_is_the_references(options, plain):
    model, preprocessing, pictures = random_trained(seed=5, **options)
    oracle = ReferenceModel(packed(model, preprocessing))
    images = normalize(pictures, preprocessing)
    with torch.no_grad():
        found = {**floats(model, images), **torch_bits(model, images)}
        plain()
        usual = floats(model, images)
    for number, picture in enumerate(pictures):
        trace = oracle.trace(picture)
        for name, values in found.items():
            assert np.array_equal(values[number], trace[name]), (name, number)
    # The comparison is no matter of course: in PyTorch's order most tokens differ.
    differing = [name for name, values in usual.items() if not np.array_equal(values, found[name])]
    assert {"tokens", "blocks.0.attn.attention", "blocks.0.output"} <= set(differing)


@pytest.mark.parametrize("switches", [{}, {"attention_bias": "full", "threshold_scope": "fixed"}])
def test_gradients_recorded_in_evaluation_are_pytorchs_and_values_are_not(switches, plain):
    model, preprocessing, pictures = random_trained(seed=2, switches=switches)
    images = normalize(pictures[:4], preprocessing)
    with torch.no_grad():
        expected = model(images)
    found = []
    for _ in range(2):
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        found.append((logits.detach(), {name: p.grad for name, p in model.named_parameters()}))
        plain()
    assert torch.equal(found[0][0], expected)
    for name, gradient in found[1][1].items():
        assert gradient is not None, name
        tolerance = 1e-3 * float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(found[0][1][name], gradient, rtol=0, atol=tolerance, msg=name)


def test_training_and_first_scales_do_not_change(plain):
    results = []
    for _ in range(2):
        model, preprocessing, pictures = random_trained(seed=3)
        images = normalize(pictures, preprocessing)
        initialize_scales(model, images, force=True)
        model.train()
        logits = model(images)
        logits.square().sum().backward()
        state = [*model.state_dict().values(), logits.detach(), *(p.grad for p in model.parameters())]
        results.append(state)
        plain()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_does_not_follow_runs_as_ever(plain):
    """bfloat16 autocast, float64 and compiled graphs: PyTorch's order, whatever the model knows of its pixels."""
    model, preprocessing, pictures = random_trained(seed=4, depth=1)
    images = normalize(pictures[:3], preprocessing)
    runs = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16)(model)(images),
        "float64": lambda: copy.deepcopy(model).double()(images.double()),
        "compiled": lambda: torch.compile(model, fullgraph=True, backend="eager")(images),
        "exported": lambda: torch.export.export(model, (images,)).module()(images),
    }
    with torch.no_grad():
        found = {name: run() for name, run in runs.items()}
        plain()
        for name, run in (("autocast", runs["autocast"]), ("float64", runs["float64"])):
            assert torch.equal(found[name], run()), name
        expected = model(images)
    for name in ("compiled", "exported"):
        assert torch.equal(found[name], expected), name
    assert found["float64"].dtype == torch.float64


def test_pictures_that_are_not_of_whole_pixels_are_convolved(plain):
    model, preprocessing, pictures = random_trained(seed=4, depth=1)
    images = normalize(pictures[:3], preprocessing)
    images[1, 0, 5, 5] += 0.3 / 255 / preprocessing.std[0]
    with torch.no_grad():
        sums = model.patch_embed(images)
        assert sums.dtype == torch.float32
        model.patch_embed.proj.pixel_scaling = None
        assert torch.equal(model.patch_embed(images), sums)
        embedded = model.patch_embed(normalize(pictures[:1], preprocessing))
        set_pixel_scaling(model, preprocessing)
        exact = model.patch_embed(normalize(pictures[:1], preprocessing))
    assert (exact.dtype, embedded.dtype) == (torch.float64, torch.float32)


@pytest.mark.parametrize("scaling", [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.0,) * 3, (1.0,) * 3)])
def test_grey_levels_are_found_again(scaling):
    levels = torch.arange(256.0).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in scaling)
    for x in ((levels / 255 - mean) / std, (levels - 255 * mean) * (1 / (255 * std))):
        assert torch.equal(exact.grey_levels(x, scaling), levels)
    for outside in (-1.0, 256.0, 3.01):
        other = levels.clone()
        other[1, 2, 3, 4] = outside
        assert exact.grey_levels((other / 255 - mean) / std, scaling) is None


@pytest.mark.parametrize("count", [1, 5, 16, 17, 31, 197, 384])
def test_sums_norms_and_softmax_are_the_references(count):
    rng = np.random.default_rng(count)
    x = rng.normal(0, 3, (7, count)).astype(np.float32)
    x[0, :] = -0.0
    assert exact.sum16(torch.from_numpy(x)).numpy().tobytes() == reference.sum16(x).tobytes()
    weight, bias = rng.normal(0, 1, (2, count)).astype(np.float32)
    found = exact.layer_norm(*map(torch.from_numpy, (x, weight, bias)), 1e-6).numpy()
    assert found.tobytes() == reference.layer_norm(x, weight, bias, 1e-6).tobytes()
    dots = rng.integers(-8, 9, (7, count)) * 2
    table = exact.exp_table(torch.tensor(0.3), 16)
    steps = (dots.max(axis=1, keepdims=True) - dots) // 2
    weights = table.numpy()[steps]
    expected = weights * (np.float32(1) / reference.sum16(weights))
    assert np.array_equal(exact.softmax(torch.from_numpy(dots).float(), table).numpy(), expected)


def test_the_folded_shift_decides_as_two_additions_do():
    generator = torch.Generator().manual_seed(0)
    bias, shift = torch.randn(2, 4000, generator=generator)
    shift[:1000] = -bias[:1000] + 1e-6 * shift[:1000]  # cancellation: far more than one step from the rounded sum
    shift[1000:2000] *= 1e-7
    bias[2000:2100], shift[2050:2150] = 0, 0
    found = _folded(bias, shift)
    nearest = -found
    around = [nearest, *(torch.nextafter(nearest, torch.full_like(nearest, far)) for far in (-9.0, 9.0))]
    for t in [*around, torch.randn(4000, generator=generator), bias + shift, -bias - shift, -bias, -shift]:
        assert torch.equal(t + found >= 0, (t + bias) + shift >= 0)
    assert 100 < (found != bias + shift).sum() < 4000


def test_which_models_follow():
    def vit(**options):
        torch.manual_seed(0)
        shape = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 6}
        return VisionTransformer(**{**shape, **options})

    model = binarize(vit())
    assert isinstance(model, PixelInputs) and isinstance(model.norm, exact.OrderedNorm)
    assert isinstance(model.blocks[0].norm1, LayerNorm) and model.blocks[0].attn.ordered
    for switches in ("full_precision", "stage1", "authors_stage2", {"scheme": "xnor"}, {"weight_bits": 2}):
        model = binarize(vit(), switches)
        assert not any(isinstance(part, PixelInputs | exact.OrderedNorm) for part in model.modules())
        set_pixel_scaling(model, IMAGENET)
        assert getattr(model.patch_embed.proj, "pixel_scaling", None) is None
    model = binarize(timm.create_model("deit_tiny_distilled_patch16_224", depth=1))
    assert isinstance(model, VisionTransformerDistilled) and isinstance(model, PixelInputs)

    class Own(VisionTransformer):
        pass

    model = binarize(Own(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2), Quantization())
    set_pixel_scaling(model, IMAGENET)
    assert type(model) is Own and model.patch_embed.proj.pixel_scaling is None


def test_a_model_that_follows_can_be_copied_and_stored():
    model, preprocessing, pictures = random_trained(seed=6)
    images = normalize(pictures[:2], preprocessing)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    with torch.no_grad():
        for twin in (copy.deepcopy(model), torch.load(stored, weights_only=False)):
            assert torch.equal(twin(images), model(images))
            assert twin.blocks[0].norm1.follows == (twin.blocks[0].attn.qkv,)
    model.reset_classifier(3)
    assert model.norm.follows == (model.head, model.head_dist)
