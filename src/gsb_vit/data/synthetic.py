"""Pictures drawn from a seed, where any will do."""

import numpy as np
from numpy.typing import NDArray


def smooth_pictures(count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return random pictures (count, H, W, 3) of soft blobs, always the same: 7×7 noise, enlarged."""
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    enlarged = [Image.fromarray(one).resize(size[::-1], Image.Resampling.BICUBIC) for one in noise]
    return np.stack([np.asarray(one) for one in enlarged])
