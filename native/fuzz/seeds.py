"""Write the fuzzer's first inputs: small random packed files of every kind, in each version of the format.

PYTHONPATH=src python native/fuzz/seeds.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "helpers"))

from bad_packed import base_files, version_1
from random_packed import write_random_packed

SMALL = dict(image_size=8, patch_size=4, embed_dim=12, depth=1, num_heads=1, mlp_hidden=9, num_classes=2)
SHAPES = {
    "small": SMALL,
    "two_blocks": dict(SMALL, depth=2, num_heads=2, attention_bias="none", prefix_tokens=1),
    "many_groups": dict(SMALL, attention_thresholds=(0.02, 0.1, 0.5), value_thresholds=(0.2, 0.5, 0.8)),
    "oblong": dict(SMALL, image_size=(8, 20), patch_size=(2, 5), attention_bias="full", value_thresholds=()),
    "more_tokens": dict(SMALL, image_size=32, patch_size=4, attention_thresholds=(0.1,), threshold_scope="fixed"),
    "convolutions": dict(SMALL, tokenizer_channels=(3,), global_pool="avg", prefix_tokens=0),
    "one_bit_convolutions": dict(
        SMALL,
        image_size=16,
        patch_size=8,
        tokenizer_channels=(3, 33),
        level_bits=(1, 1),
        global_pool="avg",
        prefix_tokens=0,
    ),
    "bits_and_bytes": dict(
        SMALL, image_size=16, patch_size=8, tokenizer_channels=(40, 4), level_bits=(1, 8), prefix_tokens=1
    ),
    "wide": dict(SMALL, embed_dim=72, num_heads=2, mlp_hidden=66, prefix_tokens=1),
}


def main() -> None:
    """Write to the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    base_files(folder)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        write_random_packed(folder / name, seed=seed, **shape)
    for path in [path for path in folder.iterdir() if not path.name.endswith("_1")]:
        path.with_name(f"{path.name}_1").write_bytes(version_1(path.read_bytes()))


if __name__ == "__main__":
    main()
