"""Random packed files with pictures and the reference's logits, as the native test programs read them."""

from random_packed import random_pictures, write_random_packed

from gsb_vit.reference import ReferenceModel

SHAPES = {
    "two_heads": dict(
        image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=128, num_classes=7,
    ),
    "oblong_full_bias": dict(
        image_size=(24, 40), patch_size=(6, 5), embed_dim=96, depth=3, num_heads=2, mlp_hidden=200, num_classes=11,
        attention_bias="full",
    ),
    "fixed_limits": dict(
        image_size=48, patch_size=6, embed_dim=128, depth=2, num_heads=2, mlp_hidden=512, num_classes=20,
        threshold_scope="fixed",
    ),
    "head_80": dict(
        image_size=32, patch_size=4, embed_dim=160, depth=2, num_heads=2, mlp_hidden=333, num_classes=5,
        attention_thresholds=(0.5,), value_thresholds=(0.3, 0.6, 0.8),
    ),
    "one_group": dict(
        image_size=32, patch_size=16, embed_dim=52, depth=2, num_heads=4, mlp_hidden=70, num_classes=3,
        attention_bias="none", attention_thresholds=(), value_thresholds=(), prefix_tokens=1,
    ),
    "dense_groups": dict(
        image_size=64, patch_size=4, embed_dim=100, depth=2, num_heads=1, mlp_hidden=128, num_classes=3,
        attention_thresholds=(0.02, 0.1, 0.5), value_thresholds=(0.2,),
    ),
    "head_256": dict(
        image_size=16, patch_size=8, embed_dim=256, depth=2, num_heads=1, mlp_hidden=64, num_classes=2,
        prefix_tokens=1, attention_bias="none", attention_thresholds=(0.001, 0.3),
    ),
    "deit_rows": dict(
        image_size=112, patch_size=8, embed_dim=192, depth=2, num_heads=3, mlp_hidden=768, num_classes=10,
    ),
}  # fmt: skip


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
