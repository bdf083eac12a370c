"""A packed model that nobody trained, to time an architecture before training it."""

from importlib.util import find_spec
from pathlib import Path

from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.errors import InputError


def pack_untrained(architecture: str, path: Path) -> None:
    """Write a packed model of a registered architecture with random weights, scales set on smooth random pictures.

    Its speed tells what to expect of a trained one up to the densities of the upper groups; its answers mean nothing.

    Raises:
        InputError: PyTorch is missing, or no architecture of this package has the name.
    """
    missing = [package for package in ("torch", "timm") if find_spec(package) is None]
    if missing:
        raise InputError(f"--arch builds the model with {', '.join(missing)}: pip install 'gsb-vit[train]'")
    import timm
    import torch

    import gsb_vit.models  # noqa: F401 - registers the architectures
    from gsb_vit.data.preprocess import Preprocessing
    from gsb_vit.export.architecture import architecture_of
    from gsb_vit.export.pack import export_model
    from gsb_vit.models.binarize import initialize_scales
    from gsb_vit.models.pixel_inputs import normalize

    names = timm.list_models("gsb_vit_*")
    if architecture not in names:
        raise InputError(f"unknown architecture {architecture!r}; --arch takes {', '.join(names)}")
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=1000).eval()
    preprocessing = Preprocessing(size=architecture_of(model).image_size)
    initialize_scales(model, normalize(smooth_pictures(8, preprocessing.size), preprocessing))
    export_model(
        model,
        path,
        class_names=[f"class {index}" for index in range(1000)],
        preprocessing=preprocessing,
        provenance={"untrained": True},
    )
