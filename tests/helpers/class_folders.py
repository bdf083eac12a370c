"""Folders of small pictures that all differ."""

import os
from pathlib import Path

import numpy as np
from PIL import Image


def fill(folder: Path, count: int, suffix: str = ".png", start: int = 0) -> Path:
    """Pictures that differ from each other and from those of other folders, in the format of the suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        rng = np.random.default_rng([i, *os.fsencode(folder)])
        image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        image.save(folder / f"{i:03}{suffix}", format={".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix))
    return folder
