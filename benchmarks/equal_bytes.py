"""At equal bytes: a packed model beside full-precision and int8 twins made so narrow that their files are no larger.

    python benchmarks/equal_bytes.py MODEL [--peers onnxruntime:int8-static,openvino:int8+bf16,openvino:fp32,torch:bf16]
                                [--threads 1] [--batch 1] [--files DIR] [--json]

A twin has the packed model's pictures, patches, depth and number of classes; its width is the largest multiple of 16 at
which the file that its engine loads is not larger than the packed file, its MLP four times as wide, its heads have
about 56 channels, a multiple of 8. All take turns in one run, as in `gsb-vit bench`. Twins are
untrained, so this says what a call costs, not how good it is. Needs gsb-vit[bench].
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from gsb_vit.bench.peers.engines import Engine, choose
from gsb_vit.bench.peers.prepare import CHECK_PICTURES, prepare
from gsb_vit.bench.peers.timing import measure
from gsb_vit.bench.peers.twin import Twin
from gsb_vit.bench.peers.worker import Setting
from gsb_vit.data.synthetic import smooth_pictures
from gsb_vit.runtime.packed_file import read

PEERS = "onnxruntime:int8-dynamic,onnxruntime:int8-static,openvino:int8+bf16,openvino:fp32,onnxruntime:fp32,torch:bf16"


def at_width(twin: Twin, width: int) -> Twin:
    """Return the twin at a width that is a multiple of 16."""
    heads = min((h for h in range(1, width // 8 + 1) if width % (8 * h) == 0), key=lambda h: abs(width / h - 56))
    return replace(twin, embed_dim=width, num_heads=heads, mlp_hidden=4 * width)


def weights(twin: Twin) -> int:
    """Return about how many weights a twin has."""
    patch = 3 * twin.patch_size[0] * twin.patch_size[1]
    tokens = twin.prefix_tokens + twin.image_size[0] * twin.image_size[1] * 3 // patch
    width = twin.embed_dim
    return width * (twin.depth * (12 * width + 13) + patch + tokens + twin.num_heads_out * twin.num_classes)


def converted(twin: Twin, pair: tuple[str, str], folder: Path) -> list[Engine]:
    """Return the twin's engine, from the folder's files where they are there already."""
    note = folder / "engine.json"
    if note.exists():
        return [Engine(*pair, folder / json.loads(note.read_text()))]
    engines = prepare(twin, [pair], folder).engines
    note.write_text(json.dumps(engines[0].path.name))
    return engines


def fitting(twin: Twin, pair: tuple[str, str], most_mb: float, folder: Path) -> tuple[Twin, Engine]:
    """Return the widest twin whose file has at most ``most_mb``, and its engine; guessed, then tried downwards."""
    bytes_a_weight = {"fp32": 4, "bf16": 4 if pair[0] == "openvino" else 2}.get(pair[1], 1)
    width = 16
    while weights(at_width(twin, width)) * bytes_a_weight < 1.02 * most_mb * 1e6:
        width += 16
    while width > 0:
        narrow = at_width(twin, width)
        (engine,) = converted(narrow, pair, folder / f"{pair[0]}-{pair[1]}-{width}")
        if engine.file_mb <= most_mb:
            return narrow, engine
        width -= 16
    raise SystemExit(f"{pair[0]} {pair[1]}: no width fits into {most_mb:.3f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", default=PEERS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--files", type=Path, help="keep the twins' files in this folder, and use those there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    packed = read(options.model)
    own = Engine("gsb-vit", "1-bit", options.model)
    twin = Twin.of(packed.architecture, packed.preprocessing)
    with tempfile.TemporaryDirectory() as name:
        folder = options.files or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        found = [fitting(twin, pair, own.file_mb, folder) for pair in choose(options.peers)]
        np.save(folder / "pictures.npy", smooth_pictures(CHECK_PICTURES, packed.architecture.image_size))
        # Each has another twin: there is nothing to compare logits with here (prepare's own test covers conversion).
        engines = [own, *(replace(engine, error_limit=None) for _, engine in found)]
        setting = Setting(options.threads, options.batch)
        rows = measure(engines, setting, folder / "pictures.npy", rounds=options.rounds, tries=options.tries)
    widths = [packed.architecture.embed_dim, *(narrow.embed_dim for narrow, _ in found)]
    if options.json:
        print(json.dumps([{**row.row(), "width": width} for row, width in zip(rows, widths, strict=True)], indent=2))
        return
    print("| engine | precision | width | file MB | median ms | times slower |")
    print("|---|---|---|---|---|---|")
    base = rows[0].median_ms
    for row, width in zip(rows, widths, strict=True):
        ms = "–" if row.median_ms is None else f"{row.median_ms:.2f}"
        ratio = "–" if row.median_ms is None or base is None else f"{row.median_ms / base:.1f}"
        print(f"| {row.engine} | {row.precision} | {width} | {row.file_mb:.2f} | {ms} | {ratio} |")
    for row in rows:
        if row.problem is not None:
            print(f"\n{row.engine} {row.precision}: {row.problem}")


if __name__ == "__main__":
    main()
