"""The architecture of a packed model: read off a trained one, or found by a file or a name."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gsb_vit.errors import InputError
from gsb_vit.files import as_path, open_regular
from gsb_vit.quantization import Quantization
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.schema import Architecture, LevelFormat
from gsb_vit.runtime.shipped import locate_model

NUM_CLASSES = 1000  # of an architecture that is only named


def architecture_of(model: Any) -> Architecture:
    """Return the shape of a binarized model as a packed file states it. Raises InputError for values out of range."""
    from gsb_vit.models.packable import final_norm

    attention, mlp = model.blocks[0].attn, model.blocks[0].mlp
    q, levels = model.quantization, getattr(model.patch_embed.proj, "level_bits", ())
    return Architecture(
        name=(getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__,
        image_size=tuple(model.patch_embed.img_size),
        patch_size=tuple(model.patch_embed.patch_size),
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=attention.num_heads,
        mlp_hidden=mlp.fc1.out_features,
        prefix_tokens=model.num_prefix_tokens,
        num_heads_out=len(heads_of(model)),
        num_classes=model.head.out_features,
        layer_norm_eps=float(final_norm(model).eps),
        attention_thresholds=q.attention_thresholds,
        value_thresholds=q.value_thresholds,
        threshold_scope=q.threshold_scope,
        attention_bias=q.attention_bias,
        global_pool=model.global_pool,
        pool_norm="before" if model.global_pool == "avg" and final_norm(model) is model.norm else "after",
        tokenizer_channels=tuple(getattr(model.patch_embed.proj, "channels", ())[:-1]),
        tokenizer_formats=tuple(LevelFormat(bits, signed=False) for bits in levels) if 1 in levels else (),
    )


def heads_of(model: Any) -> list[Any]:
    """Return the classifiers of a timm vision transformer, that of the class token first."""
    return [model.head, model.head_dist] if hasattr(model, "head_dist") else [model.head]


def find_architecture(target: str) -> tuple[Architecture, int | None, tuple[str, ...] | None]:
    """Return the architecture, the packed file's bytes and the class names of a model, or of an architecture's name.

    ``target`` is a packed file, the name of one that comes with the package, a run, a trained model file, or the name
    of an architecture. Only packed files have bytes, and architectures have no classes.

    A name is that of a timm vision transformer, built with the default quantization; that, and a trained model, need
    PyTorch.

    Raises:
        InputError: neither a file nor a known architecture, or an architecture that cannot be packed.
    """
    path = locate_model(as_path(target, "a model file, a run or the name of an architecture"))
    if path.is_file() and not is_trained_model(path):
        packed = read(path)
        return packed.architecture, path.stat().st_size, packed.class_names
    if not path.exists() and (path.suffix == ".safetensors" or len(path.parts) > 1):
        raise InputError(f"{target}: no such file; give a packed model, or the name of an architecture")
    if find_spec("timm") is None:
        raise InputError(
            f"{target} needs PyTorch to be summed up: pip install 'gsb-vit[train]', or give a packed model"
        )
    from gsb_vit.models.build import build_model
    from gsb_vit.models.trained import load_model

    from .checks import check_exportable

    if path.exists():
        trained = load_model(path)
        check_exportable(trained.model)
        return architecture_of(trained.model), None, tuple(trained.class_names)
    return architecture_of(build_model(target, {}, NUM_CLASSES, Quantization())), None, None


def planned_architecture(
    name: str | None = None,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    image_size: int | None = None,
    num_classes: int = NUM_CLASSES,
) -> Architecture:
    """Return the architecture that a recipe would train, or that has a name; nothing is trained or written.

    ``recipe`` is a recipe's file or the name of a shipped one, changed by ``settings`` as in ``model.depth=4``. Without
    one, ``name`` is that of a timm vision transformer, with its default quantization. ``image_size`` replaces the side
    of the pictures (pixels).

    Raises:
        InputError: PyTorch is missing, an unknown name or key, or a model that cannot be packed.
    """
    if find_spec("timm") is None:
        raise InputError("the shape of what is not trained yet needs PyTorch: pip install 'gsb-vit[train]'")
    from gsb_vit.models.build import build_model
    from gsb_vit.models.packable import check_packable
    from gsb_vit.train.recipe_io import load_recipe

    arguments: dict[str, Any] = {}
    quantization = Quantization()
    if name is None:
        size = [] if image_size is None else [f"model.img_size={image_size}"]
        chosen = load_recipe(recipe, [*settings, *size])
        name, arguments, quantization = chosen.model.architecture, chosen.model.arguments(), chosen.stage2.quantization
    elif image_size is not None:
        arguments["img_size"] = image_size
    model = build_model(name, arguments, num_classes, quantization)
    check_packable(model)
    return architecture_of(model)


def is_trained_model(path: Path) -> bool:
    """Return whether a file is a trained model of the training side (rather than packed, or something else)."""
    try:
        open_regular(path, "a model file").close()  # a pipe would wait for a writer
        with safe_open(path, "numpy") as file:
            return "gsb_vit" in (file.metadata() or {})
    except (SafetensorError, InputError, OSError):
        return False
