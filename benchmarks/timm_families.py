"""Which of timm's vision transformers train in one bit, and which can be packed: the table of docs/timm-models.md.

    python benchmarks/timm_families.py [--write docs/timm-models.md]

Every registered VisionTransformer is built tiny (64 × 64 pixels, width 32, depth 2). Those with the same modules,
pooling and tokens are one family. A family is built, trained for two steps and evaluated with the parts that
``gsb-vit train`` uses.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import gsb_vit.models  # noqa: F401 - registers the architectures
from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.errors import InputError
from gsb_vit.export.pack import pack_model
from gsb_vit.files import write_atomically
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.build import build_model
from gsb_vit.models.packable import obstacles
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.quantization import Quantization
from gsb_vit.runtime.reference import ReferenceModel
from gsb_vit.train.batches import EvaluationPictures
from gsb_vit.train.evaluate import model_logits

CLASSES, PICTURES = 3, 4
SIDES = (64, 56)  # the second one for patches of 14 × 14
TINY = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SHALLOW = {"depth": 2}
BEGIN, END = "<!-- families -->", "<!-- end of families -->"


@dataclass(frozen=True)
class Family:
    """Architectures that are alike but for their size, and what becomes of them in one bit.

    ``refused`` says why ``binarize`` or ``build_model`` refuses; ``obstacle`` why one that trains cannot be packed.
    """

    names: tuple[str, ...]
    arguments: dict[str, int]
    refused: str | None
    obstacle: str | None


def families() -> Iterator[Family]:
    """Build, train and evaluate one tiny model of each family of VisionTransformers that timm registers."""
    alike: dict[str, list[str]] = {}
    arguments: dict[str, dict[str, int]] = {}
    for name in timm.list_models():
        if not _may_be_one(name):
            continue
        model, found = _tiny(name)
        if model is not None:
            signature = _signature(model)
            alike.setdefault(signature, []).append(name)
            arguments.setdefault(signature, found)
    for signature, names in alike.items():
        refused, obstacle = try_out(names[0], arguments[signature])
        yield Family(tuple(names), arguments[signature], refused, obstacle)


def _may_be_one(name: str) -> bool:
    """Whether the module that registers the name knows timm's VisionTransformer at all."""
    module = sys.modules[timm.models.model_entrypoint(name).__module__]
    return any(isinstance(one, type) and issubclass(one, VisionTransformer) for one in vars(module).values())


def _tiny(name: str) -> tuple[nn.Module | None, dict[str, int]]:
    """The architecture built tiny, with the arguments it took; None where it is no VisionTransformer."""
    for side, shape in product(SIDES, (TINY, SHALLOW)):
        arguments = {"img_size": side, **shape}
        try:
            model = timm.create_model(name, num_classes=CLASSES, **arguments)
        except (TypeError, AssertionError, RuntimeError):
            continue
        if not isinstance(model, VisionTransformer):
            return None, {}
        if side % model.patch_embed.patch_size[0] == 0 or side == SIDES[-1]:
            return model, arguments
    return None, {}


def _signature(model: VisionTransformer) -> str:
    switches = (model.global_pool, model.num_prefix_tokens, model.has_class_token, model.no_embed_class)
    return f"{type(model).__name__} {switches} {model.pos_embed is not None} {model.dynamic_img_size} {model}"


def try_out(name: str, arguments: dict[str, int]) -> tuple[str | None, str | None]:
    """Train the architecture for two steps in one bit and evaluate it; return why it is refused, and the obstacle.

    One without an obstacle is packed, too, and has the trained model's logits to the last bit.
    """
    torch.manual_seed(0)
    try:
        model = build_model(name, dict(arguments), CLASSES, Quantization())
    except InputError as error:
        return str(error), None
    size = (arguments["img_size"], arguments["img_size"])
    pictures, preprocessing = smooth_pictures(PICTURES, size), Preprocessing(size=size)
    images, labels = normalize(pictures, preprocessing), torch.arange(PICTURES) % CLASSES
    initialize_scales(model, images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = EvaluationPictures(LabelledPictures(tuple(pictures), labels.numpy()), preprocessing)
    logits = model_logits(model, held_out)
    if logits.shape != (PICTURES, CLASSES) or not np.isfinite(logits).all():
        raise RuntimeError(f"{name}: logits {logits.shape} are not finite")
    obstacle = next(obstacles(model), None)
    if obstacle is None:
        names = [f"class {index}" for index in range(CLASSES)]
        packed = pack_model(model, class_names=names, preprocessing=preprocessing, provenance={})
        if not np.array_equal(ReferenceModel(packed).logits(pictures), logits):
            raise RuntimeError(f"{name}: the packed model has other logits than the trained one")
    return None, obstacle


def table(found: list[Family]) -> str:
    """Return what becomes of timm's architectures as Markdown, a row a verdict, those that can be packed first."""
    verdicts: dict[tuple[int, str], list[str]] = {}
    for family in found:
        verdicts.setdefault(_verdict(family), []).extend(family.names)
    rows = ["| in one bit | architectures |", "|---|---|"]
    for (_, verdict), names in sorted(verdicts.items()):
        rows.append(f"| {verdict} | {len(names)}, such as `{min(names, key=len)}` |")
    return "\n".join(rows)


def _verdict(family: Family) -> tuple[int, str]:
    if family.refused is not None:
        return 2, f"refused: {family.refused}"
    if family.obstacle is not None:
        return 1, f"trains; export refuses: {family.obstacle}"
    return 0, "trains, exports, runs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="a Markdown file with the two markers, between which the table goes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    text = table(list(families()))
    if options.write is None:
        print(text)
        return
    before, _, rest = options.write.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    write_atomically(options.write, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())


if __name__ == "__main__":
    main()
