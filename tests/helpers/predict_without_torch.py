"""What every wheel must do before it is published: predict with both engines, without PyTorch. Run as a script."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np

import gsb_vit

sys.path.insert(0, str(Path(__file__).parent))
from random_packed import write_random_packed

SHAPE = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_hidden": 40}


def main() -> None:
    """Exit with an error where an engine is missing, engines differ, or something loaded PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        write_random_packed(path, seed=1, num_classes=3, **SHAPE)
        native, reference = gsb_vit.load(path), gsb_vit.load(path, engine="reference")
        pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
        assert np.array_equal(native.logits(pixels), reference.logits(pixels))
        (best,) = native.predict(pixels[0], top=1)
    assert "torch" not in sys.modules
    said = "installed, not used" if importlib.util.find_spec("torch") else "not installed"
    print(f"{native.backend}: {best.name} {best.probability:.3f}; PyTorch {said}")


if __name__ == "__main__":
    main()
