import pytest
import torch
from goldens import assert_close, case
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.utils._python_dispatch import TorchDispatchMode

from gsb_vit.nn import quantize, superpose
from gsb_vit.nn.quantize import scale_ste
from gsb_vit.nn.superposition_quantizers import AttentionSuperposition, ValueSuperposition

MODULES = {"attention": AttentionSuperposition, "value": ValueSuperposition}


def authors_module(operator: str) -> torch.nn.Module:
    options = {"gradient": "authors"} if operator == "value" else {}
    return MODULES[operator](threshold_scope="batch", initial_scales="authors", **options)


def loaded(operator: str, data: dict) -> torch.nn.Module:
    module = authors_module(operator)
    scale = torch.stack([data[f"alpha{i}"] for i in range(3)])
    module.load_state_dict({"scale": scale, "initialized": torch.tensor(True)})
    return module


@pytest.mark.parametrize("form", ["superposed", "planes"])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("operator", ["attention", "value"])
def test_superposition_matches_the_authors(operator, index, form):
    data = case("operators", f"{operator}/{index}")
    module, x = loaded(operator, data), data["x"].clone().requires_grad_()
    if form == "superposed":
        y = module(x)
    else:
        planes, scale = module.quantize(x)
        y = sum(plane * s for plane, s in zip(planes, scale, strict=True))
    y.backward(data["grad_out"])
    assert_close(y, data["y"])
    assert_close(x.grad, data["grad_x"])
    for group in range(3):
        assert_close(module.scale.grad[group], data[f"grad_alpha{group}"])


@pytest.mark.parametrize("operator", ["attention", "value"])
def test_authors_initial_scales(operator):
    data = case("operators", f"init_{operator}")
    module = authors_module(operator)
    levels = torch.stack([data[f"alpha{i}"] for i in range(3)])
    assert_close(module(data["x"]), data["y_first_call"])
    assert_close(module.scale, levels)
    second = module(data["x"])
    assert (second - data["y_first_call"]).abs().max() > 0.1  # from now on the levels themselves add up


@pytest.mark.parametrize("operator", ["attention", "value"])
def test_increments_add_up_to_the_levels(operator):
    data = case("operators", f"init_{operator}")
    module = MODULES[operator](threshold_scope="batch")
    y = module(data["x"])
    levels = torch.stack([data[f"alpha{i}"] for i in range(3)])
    assert_close(module.scale.cumsum(0), levels)
    assert_close(y, data["y_first_call"])
    assert torch.equal(module(data["x"]), y)


@pytest.mark.parametrize("aligned", [True, False])
def test_planes_and_superposition_have_the_same_gradients(aligned):
    torch.manual_seed(0)
    for count in (0, 1, 4):
        ratios = torch.linspace(0.3, 0.9, count)
        for kind in ("attention", "value"):
            x = torch.randn(2, 2, 5, 6, dtype=torch.float64)
            x = x.softmax(-1) if kind == "attention" else x
            extremes = torch.stack([x.amax((1, 2, 3), keepdim=True), x.amin((1, 2, 3), keepdim=True)])
            limits = ratios.view(-1, 1, 1, 1, 1, 1) * extremes
            scales = torch.rand(count + 1, dtype=torch.float64) + 0.2
            grad = torch.randn_like(x)
            results = []
            for form in ("planes", "sum"):
                a, s = x.clone().requires_grad_(), scales.clone().requires_grad_()
                if kind == "attention":
                    if form == "sum":
                        y = superpose.attention_superposition(a, s, limits[:, 0])
                    else:
                        factors = superpose.group_factors(superpose.attention_groups(x, limits[:, 0]), x)
                        used = scale_ste(s, factors)
                        planes = superpose.attention_planes(a, used[0], limits[:, 0])
                        y = sum(p * v for p, v in zip(planes, used, strict=True))
                elif form == "sum":
                    y = superpose.value_superposition(a, s, limits, aligned)
                else:
                    used = scale_ste(s, superpose.group_factors(superpose.value_groups(x, limits), x))
                    planes = superpose.value_planes(a, used, limits, aligned)
                    y = sum(p * v for p, v in zip(planes, used, strict=True))
                y.backward(grad)
                results.append((y.detach(), a.grad, s.grad))
            for first, second in zip(*results, strict=True):
                torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_aligned_value_gradient_is_that_of_the_smoothed_forward():
    """Finite differences of Σ s_g·T_g·clamp(V/s_g, -1, 1), the T_g held fixed as they are piecewise constant."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 2, 6, 8, generator=generator, dtype=torch.float64)
    extremes = torch.stack([x.amax((1, 2, 3), keepdim=True), x.amin((1, 2, 3), keepdim=True)])
    limits = torch.stack([0.4 * extremes, 0.8 * extremes])
    scales = torch.tensor([0.7, 1.3, 2.6], dtype=torch.float64)
    groups = [torch.ones_like(x), *(group.double() for group in superpose.value_groups(x, limits))]

    def smoothed(v: torch.Tensor) -> torch.Tensor:
        return sum(s * group * (v / s).clamp(-1, 1) for s, group in zip(scales, groups, strict=True))

    step = 1e-6
    slope = (smoothed(x + step) - smoothed(x - step)) / (2 * step)
    smooth = torch.stack([(x.abs() - s).abs() > 1e-4 for s in scales]).all(0)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    for aligned in (True, False):
        v = x.clone().requires_grad_()
        superpose.value_superposition(v, scales, limits, aligned).backward(grad)
        agrees = torch.isclose(v.grad, grad * slope, rtol=1e-6, atol=1e-8)[smooth]
        assert bool(agrees.all()) is aligned
    members = groups[1].bool() & (x.abs() > 0.7) & (x.abs() <= 1.3)
    assert members.any()  # the second group's own slope is exercised


def test_authors_value_gradient_reaches_three_times_the_aligned_one():
    x = torch.tensor([0.01, 0.02, 1.0, -1.0], dtype=torch.float64).view(1, 1, 1, 4).requires_grad_()
    limits = torch.tensor([[0.7, -0.7], [0.9, -0.9]], dtype=torch.float64).view(2, 2, 1, 1, 1, 1)
    scales = torch.full((3,), 0.5, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(superpose.value_superposition(x, scales, limits, aligned).sum(), x)[0].flatten().tolist()
        for aligned in (True, False)
    ]
    assert gradients == [[1, 1, 0, 0], [3, 3, 0, 0]]


def test_zero_and_ties():
    """An entry equal to its limit is outside; A = s/2 gives 0; the sign of 0 is +1 on plane 0."""
    limits = torch.tensor([0.5]).view(1, 1, 1, 1, 1)
    planes = superpose.attention_planes(torch.tensor([0.5, 0.6, 0.2]).view(1, 1, 1, 3), torch.tensor(1.0), limits)
    assert [plane.flatten().tolist() for plane in planes] == [[0, 1, 0], [0, 1, 0]]
    limits = torch.tensor([0.5, -0.5]).view(1, 2, 1, 1, 1, 1)
    x = torch.tensor([0.5, -0.5, 0.6, -0.6, 0.0, -0.0]).view(1, 1, 1, 6)
    planes = superpose.value_planes(x, torch.ones(2), limits)
    assert [plane.flatten().tolist() for plane in planes] == [[1, -1, 1, -1, 1, 1], [0, 0, 1, -1, 0, 0]]


@pytest.mark.parametrize("operator", ["attention", "value"])
@pytest.mark.parametrize("fill", [0.0, 0.25, -0.25])
@pytest.mark.parametrize("scope", ["sample", "batch", "fixed"])
@pytest.mark.parametrize("initial", ["increment", "mean", "authors"])
def test_empty_groups_are_finite_and_get_no_gradient(operator, fill, scope, initial):
    x = torch.full((2, 2, 3, 3), fill, requires_grad=True)
    module = MODULES[operator](threshold_scope=scope, initial_scales=initial)
    for _ in range(2):
        module(x).sum().backward()
    assert torch.isfinite(module.scale).all() and torch.isfinite(module.scale.grad).all()
    assert torch.isfinite(x.grad).all()
    limits = module._limits(x)
    groups = (
        superpose.attention_groups(x, limits[:, 0]) if operator == "attention" else superpose.value_groups(x, limits)
    )
    for group, grad in zip(groups, module.scale.grad[1:], strict=True):
        assert group.any() or grad == 0


def test_attention_levels_at_the_mean_of_their_bands():
    x = torch.tensor([0.01, 0.01, 0.02, 0.02, 0.72, 0.8, 0.92, 1.0]).view(1, 1, 2, 4)
    module = AttentionSuperposition(initial_scales="mean")
    module(x)
    base = 4 * x.mean().item()  # 1.75: above both bands, so what is added to it begins at the floor
    assert_close(module.scale, torch.tensor([base, 1e-5, 0.96 - 0.76]))
    flat = torch.cat([torch.full((92,), 0.01), x.flatten()]).view(1, 1, 10, 10)
    module = AttentionSuperposition(initial_scales="mean")
    module(flat)
    base = 4 * flat.mean().item()
    assert_close(module.scale, torch.tensor([base, 0.76 - base, 0.96 - 0.76]))


def test_an_empty_band_starts_at_the_level_before_it():
    x = torch.tensor([0.1, 0.1, 0.1, 1.0]).view(1, 1, 2, 2)  # nothing between 0.7 and 0.9
    module = AttentionSuperposition(threshold_scope="sample", initial_scales="authors")
    module(x)
    assert_close(module.scale, torch.tensor([1.3, 1.3, 4.0]))
    module = ValueSuperposition(threshold_scope="sample", initial_scales="authors")
    module(x)
    assert_close(module.scale, torch.tensor([0.2, 0.2, 2.0]))


@pytest.mark.parametrize("operator", ["attention", "value"])
def test_scope_decides_whether_neighbours_matter(operator):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 5, 5, generator=generator)
    x[1] *= 4
    for scope, independent in (("sample", True), ("batch", False), ("fixed", True)):
        module = MODULES[operator](threshold_scope=scope).eval()
        together = module(x)
        alone = torch.cat([module(x[i : i + 1]) for i in range(3)])
        assert torch.equal(together, alone) is independent


def test_fixed_extremes_follow_the_batches_in_training_only():
    module = ValueSuperposition(threshold_scope="fixed")
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    mean = torch.stack([x.amax((1, 2, 3)).mean(), x.amin((1, 2, 3)).mean()])
    module(x)
    assert_close(module.running_extremes, mean)
    module(2 * x)
    assert_close(module.running_extremes, 1.1 * mean)
    module.eval()
    module(5 * x)
    assert_close(module.running_extremes, 1.1 * mean)
    assert_close(module.fixed_limits(), torch.stack([0.77 * mean, 0.99 * mean]))
    copy = ValueSuperposition(threshold_scope="fixed").eval()
    copy.load_state_dict(module.state_dict())
    assert torch.equal(copy(x), module(x))


@given(arrays("float32", (1, 1, 3, 4), elements=st.floats(-10, 10, width=32)), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_every_output_is_a_sum_of_scales(x, count):
    x = torch.from_numpy(x)
    ratios = tuple((index + 1) / (count + 1) for index in range(count))
    value = ValueSuperposition(ratios)
    y, scales = value(x), value.scale.detach()
    allowed = torch.tensor([scales[0].item()])
    for scale in scales[1:]:
        allowed = torch.cat([allowed, allowed + scale])
    assert bool((y.abs().flatten()[:, None] - allowed).abs().amin(1).le(1e-4).all())
    assert bool(((y >= 0) == (x >= 0)).all())
    planes, used = value.quantize(x)
    torch.testing.assert_close(sum(p * s for p, s in zip(planes, used, strict=True)), y)


def test_a_single_group_never_begins_with_nothing_in():
    generator = torch.Generator().manual_seed(4)
    flat, peaked = (torch.softmax(f * torch.randn(2, 2, 20, 20, generator=generator), -1) for f in (0.01, 3.0))
    for matrix, expected in ((flat, flat.max()), (peaked, 4 * peaked.mean())):
        module = AttentionSuperposition(())
        (plane,), scale = module.quantize(matrix)
        assert_close(scale, expected.view(1))
        assert plane.sum() > 0
    groups = AttentionSuperposition()
    groups.initialize(flat)
    assert_close(groups.scale[0], 4 * flat.mean())


class _InPlace(TorchDispatchMode):
    """Lists the operations that change a tensor in place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.is_mutable:
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def _forward_functions():
    x, w = torch.randn(2, 1, 4, 6), torch.randn(5, 6)
    s, scales = torch.tensor(0.7), torch.tensor([0.5, 0.3, 0.2])
    limits = torch.tensor([[0.8, -0.8], [1.2, -1.2]]).view(2, 2, 1, 1, 1, 1)
    return {
        "scale_ste": lambda: quantize.scale_ste(s, 0.1),
        "elastic_sign": lambda: quantize.elastic_sign(x, s),
        "elastic_step": lambda: quantize.elastic_step(x, s),
        "elastic_integer": lambda: quantize.elastic_integer(x, s, -8, 7),
        "lsq": lambda: quantize.lsq(x, s, -8, 7, 0.1),
        "unit_sign": lambda: quantize.unit_sign(x),
        "unit_step": lambda: quantize.unit_step(x, 0.0),
        "binary_weight": lambda: quantize.binary_weight(w, True),
        "ternary_weight": lambda: quantize.ternary_weight(w, True),
        "attention_planes": lambda: superpose.attention_planes(x, s, limits[:, 0]),
        "attention_superposition": lambda: superpose.attention_superposition(x, scales, limits[:, 0]),
        "value_planes": lambda: superpose.value_planes(x, scales, limits),
        "value_superposition": lambda: superpose.value_superposition(x, scales, limits),
    }


@pytest.mark.parametrize("name", _forward_functions())
def test_no_forward_pass_works_in_place_in_a_compiled_graph(name, monkeypatch):
    # PyTorch 2.11 gives such a Function the gradient 0, without a word.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with _InPlace() as operations:
        _forward_functions()[name]()
    assert not operations.found
