"""Models of other families than transformers, in full precision: what they are built with, and enlarged pictures."""

import pytest
import torch

pytest.importorskip("timm")

from gsb_vit.errors import InputError
from gsb_vit.models.arguments import taken_arguments, takes_a_size
from gsb_vit.models.build import Enlarged, build_model
from gsb_vit.quantization import Quantization
from gsb_vit.train.recipe import ModelRecipe

FULL = Quantization.full_precision()


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("gsb_vit_tiny_patch16_224", True),
        ("deit_tiny_patch16_224", True),
        ("test_vit", True),
        ("mobilenetv2_035", False),
        ("lcnet_050", False),
        ("test_resnet", False),
    ],
)
def test_transformers_take_a_size_and_convolutional_networks_do_not(name, takes):
    assert takes_a_size(name) == takes
    args = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "drop_rate": 0.0, "drop_path_rate": 0.1}
    assert taken_arguments(name, args) == (args if takes else {"drop_path_rate": 0.1})


def test_an_unknown_architecture_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="lcnet_0"):
        taken_arguments("lcnet_05", {})


@pytest.mark.parametrize("name", ["mobilenetv2_035", "lcnet_035", "lcnet_050", "mobilenetv3_small_050", "test_resnet"])
def test_the_rivals_build_from_a_recipe_that_shapes_a_transformer(name):
    recipe = ModelRecipe(name, img_size=64, patch_size=8, embed_dim=128, depth=4, shown_size=96)
    assert recipe.arguments() == {"shown_size": 96, "drop_path_rate": 0.1}
    assert recipe.idle() == ["img_size", "patch_size", "embed_dim", "depth"]
    model = build_model(name, recipe.arguments(), 5, FULL).eval()
    assert isinstance(model, Enlarged) and model.size == 96
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_enlarged_pictures_are_what_the_model_inside_is_shown():
    torch.manual_seed(0)
    model = build_model("test_resnet", {"shown_size": 48}, 5, FULL).eval()
    x = torch.randn(2, 3, 16, 16)
    shown = torch.nn.functional.interpolate(x, (48, 48), mode="bilinear")
    torch.testing.assert_close(model(x), model.model(shown))
    assert {name.partition(".")[0] for name in model.state_dict()} == {"model"}


def test_enlarged_pictures_of_quantized_models_are_refused():
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "shown_size": 32}
    with pytest.raises(InputError, match="shown_size = 32"):
        build_model("gsb_vit_tiny_patch16_224", args, 5, Quantization())
    assert ModelRecipe().idle() == []
