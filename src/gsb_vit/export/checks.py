"""What a trained model must be for export: packable, with its scales set, and finite."""

import torch
from torch import nn

from gsb_vit.errors import InputError
from gsb_vit.models.packable import check_packable
from gsb_vit.nn.input_quantizers import InitializedOnce


def check_exportable(model: nn.Module) -> None:
    """Check that ``model`` can be exported.

    Raises:
        InputError: for the first thing a packed file cannot hold, with the way out.
    """
    check_packable(model)
    for name, module in model.named_modules():
        if isinstance(module, InitializedOnce) and not module.is_ready:
            raise InputError(f"the scale of {name} was never set; train the model, or call initialize_scales")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{name} holds numbers that are not finite: training diverged; export an earlier checkpoint"
            )
