"""Random packed files with pictures and the reference's logits, as the native test programs read them."""

from random_packed import SHAPES, random_pictures, write_random_packed

from gsb_vit.runtime.reference import ReferenceModel


def write_models(folder, names=tuple(SHAPES), pictures=4):
    """Write each model, raw pictures and raw logits; return the paths (model, pictures, logits) by name."""
    written = {}
    for seed, name in enumerate(names):
        files = tuple(folder / f"{name}.{ending}" for ending in ("safetensors", "pixels", "logits"))
        model = write_random_packed(files[0], seed=seed, **SHAPES[name])
        batch = random_pictures(model.architecture, pictures, seed=1)
        batch.tofile(files[1])
        ReferenceModel(model).logits(batch).tofile(files[2])
        written[name] = files
    return written
