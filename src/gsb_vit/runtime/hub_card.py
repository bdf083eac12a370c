"""The model card of a packed model on the hub: Markdown behind a head of YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gsb_vit.metrics import METRIC_NAMES
from gsb_vit.terminal import printable

from .add_class import added_classes
from .packed_file import PackedModel

_MOST_CLASSES = 200


def model_card(
    packed: PackedModel,
    size: int,
    repository: str,
    *,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Return the card of a packed file of ``size`` bytes. It holds what the file says, and ``metrics`` if given."""
    lines = [*_head(license), *_network(packed, size, repository), *_usage(repository), *_training(packed, metrics)]
    return "\n".join([*lines, *_trust(packed), *_classes(packed)]) + "\n"


def _head(license: str | None) -> Iterator[str]:
    yield "---"
    yield "library_name: gsb-vit"
    yield "pipeline_tag: image-classification"
    yield "tags: [one-bit, binary-neural-network, vision-transformer]"
    if license is not None:
        yield f"license: {json.dumps(license)}"
    yield "---"


def _network(packed: PackedModel, size: int, repository: str) -> Iterator[str]:
    a = packed.architecture
    height, width = a.image_size
    yield f"\n# {repository.partition('/')[2]}\n"
    yield "A vision transformer with one-bit weights and one-bit activations, packed by gsb-vit."
    yield "It runs on packed bits; PyTorch is not needed.\n"
    yield "| | |\n|---|---|"
    yield f"| network | {_cell(a.name)}: {a.depth} blocks of width {a.embed_dim}, {a.num_heads} heads |"
    yield f"| pictures | {height} × {width} pixels |"
    yield f"| classes | {a.num_classes} |"
    yield f"| file | {size / 1e6:.3f} MB |"


def _usage(repository: str) -> Iterator[str]:
    yield "\n## Use\n"
    yield "```python\nimport gsb_vit\n"
    yield f'model = gsb_vit.load("hf:{repository}")'
    yield 'for answer in model.predict("photo.jpg", top=3):\n    print(answer.name, answer.probability)\n```'


def _training(packed: PackedModel, metrics: Mapping[str, float] | None) -> Iterator[str]:
    provenance = packed.provenance
    facts: dict[str, Any] = {
        "data": provenance.get("data"),
        "training pictures": provenance.get("training_pictures"),
        "stage": provenance.get("stage"),
        "gsb-vit": provenance.get("gsb_vit"),
    }
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    if rows:
        yield "\n## Training\n\n| | |\n|---|---|"
        yield from rows
    for one in added_classes(provenance):
        yield f"\nThe class {_cell(one['class'])} was added from {one['pictures']} pictures, without training."
    if "seen" in provenance:
        yield "\nThe file holds digests of the pictures seen in training: who has one can tell that it was used."
    if metrics is not None:
        yield "\n## Test\n\n| metric | percent |\n|---|---|"
        for key, name in METRIC_NAMES.items():
            if key in metrics:
                yield f"| {name if key.startswith('top') else f'{name} (macro)'} | {100 * metrics[key]:.2f} |"


def _trust(packed: PackedModel) -> Iterator[str]:
    unknown = packed.decision.unknown
    yield "\n## Limits\n"
    if packed.decision.temperature != 1:
        yield f"Probabilities are calibrated on validation pictures (temperature {packed.decision.temperature:.3g})."
    else:
        yield "Probabilities are not calibrated."
    if unknown is not None:
        yield f"A threshold calls {unknown.false_alarm_rate:.1%} of pictures of known classes unknown."
        yield "It is a weak filter: many pictures of other things are given a class all the same."
    else:
        yield "Every picture is given one of the classes, whatever it shows."


def _classes(packed: PackedModel) -> Iterator[str]:
    names = [_cell(name) for name in packed.class_names]
    rest = len(names) - _MOST_CLASSES
    yield f"\n## Classes\n\n{', '.join(names[:_MOST_CLASSES])}" + (f" and {rest:,} more" if rest > 0 else "")


def _cell(value: Any) -> str:
    """Text in a table or a line of Markdown that no name can break."""
    text = printable(str(value))
    return "".join(f"\\{one}" if one in "\\`*_[]<>|#" else one for one in text)
