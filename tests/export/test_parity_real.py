"""PyTorch and the packed file on real pictures, on a model whose answers have a margin."""

import numpy as np
import pytest
import timm
import torch
from needs import needs_flowers
from paths import FLOWERS

import gsb_vit.models  # noqa: F401 (registers the models)
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.export.parity import export_and_verify
from gsb_vit.models.binarize import initialize_scales
from gsb_vit.models.pixel_inputs import normalize


@torch.no_grad()
def fit(pictures, labels, preprocessing, *, patch_size):
    """Return a one-bit model with a random body and heads fitted to the labels by ridge regression: quick, and apt."""
    torch.manual_seed(0)
    model = timm.create_model(
        "gsb_vit_tiny_patch16_224",
        img_size=preprocessing.size,
        patch_size=patch_size,
        embed_dim=160,
        depth=3,
        num_heads=4,
        num_classes=int(labels.max()) + 1,
    ).eval()
    images = normalize(pictures, preprocessing)
    initialize_scales(model, images[:64])
    features = torch.cat([model.forward_features(part) for part in images.split(64)]).double()
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64))).double()
    for token, head in enumerate((model.head, model.head_dist)):
        x, mean = features[:, token], features[:, token].mean(0)
        x = x - mean
        weight = torch.linalg.solve(x.T @ x + 1e-4 * len(x) * torch.eye(x.shape[1]), x.T @ targets)
        # Ten times one-hot: probabilities as sure as a trained model's.
        head.weight.copy_(10 * weight.T)
        head.bias.copy_(10 * (targets.mean(0) - mean @ weight))
        head.initialize()
    return model


def assert_contract(model, pictures, labels, preprocessing, classes, path):
    """The same logits to the last bit, and no flipped bit."""
    names = [f"class {number}" for number in range(classes)]
    _, found = export_and_verify(model, path, pictures, class_names=names, preprocessing=preprocessing)
    assert found.n == len(pictures) and path.is_file()
    assert found.equal == found.n and not any(found.flipped.values())
    with torch.no_grad():
        answers = model(normalize(pictures, preprocessing)).argmax(1)
    assert (answers.numpy() == labels).mean() > 2 / classes


def test_digits(tmp_path):
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pictures = np.round(digits.images * 255 / 16).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    pictures = np.repeat(pictures[..., None], 3, axis=3)
    preprocessing = Preprocessing(size=(16, 16))
    pictures, labels = pictures[:300], digits.target[:300]
    model = fit(pictures, labels, preprocessing, patch_size=4)
    assert_contract(model, pictures, labels, preprocessing, 10, tmp_path / "digits.safetensors")


@needs_flowers
def test_flowers(tmp_path):
    labels = pytest.importorskip("scipy.io").loadmat(FLOWERS / "imagelabels.mat")["labels"][0]
    chosen = [np.flatnonzero(labels == number)[:30] for number in (51, 77, 46, 73)]
    preprocessing = Preprocessing(size=(48, 48), mean=(0.43, 0.38, 0.3), std=(0.29, 0.25, 0.27))
    pictures = np.stack(
        [preprocessing(FLOWERS / "jpg" / f"image_{number + 1:05d}.jpg") for number in np.concatenate(chosen)]
    )
    targets = np.repeat(np.arange(4), [len(part) for part in chosen])
    model = fit(pictures, targets, preprocessing, patch_size=8)
    assert_contract(model, pictures, targets, preprocessing, 4, tmp_path / "flowers.safetensors")
