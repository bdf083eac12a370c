"""Does a packed file still say what the trained model says? Both ends are run on the same pictures and compared."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import Decision, calibrate
from gsb_vit.errors import InputError
from gsb_vit.files import staged
from gsb_vit.models.binarize import set_pixel_scaling
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.packed_file import PackedModel
from gsb_vit.runtime.reference import ReferenceModel, check_batch

from .pack import export_model

TOP1_AGREEMENT = 0.999
NEAR_TIE = 0.05
FEW_PICTURES = 100
TRACED_PICTURES = 16
_BATCH = 32

Bits = dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Parity:
    """How far a packed model and its trained model agree on ``n`` pictures.

    ``equal`` counts the pictures whose logits are the same to the bit, as all are where docs/numerics.md promises it.
    ``near_ties`` counts the disagreements in which the trained model gives the packed model's answer a probability
    within 0.05 of its own. ``flipped`` holds, by kind of bit tensor, the share of bits that differ, over all blocks
    and the first ``traced`` pictures; a flip changes what follows, so later kinds count its consequences too.
    """

    n: int
    top1_agreement: float
    disagreements: int
    near_ties: int
    equal: int
    max_logit_difference: float
    traced: int
    flipped: Mapping[str, float]

    @property
    def allowed(self) -> int:
        """The disagreements a sound export may have on ``n`` pictures.

        One in a thousand, but never less than one. There is none where the trained model's evaluation follows
        docs/numerics.md; where a norm or a model of its own adds in another order, a bit that lies on its threshold
        may flip, and with it a picture whose two best classes are nearly equal. On fewer than 100 pictures one
        disagreement is a lot; there it only counts as allowed if it is such a near tie.
        """
        if self.n < FEW_PICTURES:
            return min(1, self.near_ties)
        return max(1, int(self.n * (1 - TOP1_AGREEMENT) + 1e-9))

    @property
    def ok(self) -> bool:
        """Whether the packed model may stand for the trained one."""
        return self.disagreements <= self.allowed

    @property
    def logits_line(self) -> str:
        """How near the logits are, in words."""
        if self.equal == self.n:
            return "logits equal to the last bit"
        return f"logits equal on {self.equal} and within {self.max_logit_difference:.2g} on the others"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "flipped": dict(self.flipped), "ok": self.ok}


def compare(
    model: nn.Module,
    packed_path: packed_file.PathLike,
    pictures: NDArray[np.uint8],
    *,
    engine: str = "reference",
    traced: int = TRACED_PICTURES,
) -> Parity:
    """Run ``model`` (PyTorch, float32, CPU, evaluation mode) and the packed file on ``pictures`` uint8 (B, H, W, 3).

    ``engine`` is ``reference`` (NumPy) or ``native``. The bits are those of the NumPy reference, on the first
    ``traced`` pictures.

    Raises:
        InputError: for pictures that do not fit, none at all, or an engine that is unknown or not built.
    """
    return _compare(model, packed_path, pictures, engine, traced)[0]


def _compare(
    model: nn.Module, packed_path: packed_file.PathLike, pictures: NDArray[np.uint8], engine: str, traced: int
) -> tuple[Parity, NDArray[np.float32]]:
    """The comparison, and the packed model's logits."""
    packed_model = packed_file.read(packed_path)
    check_batch(pictures, packed_model.architecture.image_size)
    if len(pictures) == 0:
        raise InputError("there are no pictures to compare on; give at least one")
    reference = ReferenceModel(packed_model)
    if engine == "reference":
        found = reference.logits(pictures)
    else:
        from gsb_vit.runtime import classifier

        found = classifier.load(packed_path, engine=engine).logits(pictures)
    model = copy.deepcopy(model).cpu().float().eval()
    set_pixel_scaling(model, packed_model.preprocessing)
    images = normalize(pictures, packed_model.preprocessing)
    with torch.no_grad():
        expected = torch.cat([model(part) for part in images.split(_BATCH)]).numpy()
    wrong = found.argmax(axis=1) != expected.argmax(axis=1)
    traced = min(traced, len(pictures))
    parity = Parity(
        n=len(pictures),
        top1_agreement=float(1 - wrong.mean()),
        disagreements=int(wrong.sum()),
        near_ties=_near_ties(expected[wrong], found[wrong]),
        equal=int((found == expected).all(axis=1).sum()),
        max_logit_difference=float(np.abs(found - expected).max()),
        traced=traced,
        flipped=_flipped(model, reference, pictures[:traced], images[:traced]),
    )
    return parity, found


def export_and_verify(
    trained_model: nn.Module,
    path: packed_file.PathLike,
    pictures: NDArray[np.uint8],
    *,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    provenance: Mapping[str, Any] | None = None,
    engine: str = "reference",
    labels: NDArray[np.integer] | None = None,
    decision: Decision | None = None,
) -> tuple[PackedModel, Parity]:
    """Export to ``path`` only if the packed model agrees with the trained one on ``pictures`` (:attr:`Parity.ok`).

    The packed file gets ``decision``, its temperature and threshold. With ``labels`` of the pictures instead, which
    were then not trained on, it gets what :func:`gsb_vit.decision.calibrate` finds on them.

    The file appears under its name after the comparison; a refusal leaves ``path`` as it was.

    Raises:
        InputError: with the figures, where the two disagree; and as ``export_model`` and :func:`compare`.
    """
    path = Path(path)
    packed_file.refuse_other_model(path)
    try:
        with staged(path) as candidate:
            model = export_model(
                trained_model, candidate, class_names=class_names, preprocessing=preprocessing, provenance=provenance
            )
            parity, logits = _compare(trained_model, candidate, pictures, engine, TRACED_PICTURES)
            if not parity.ok:
                raise InputError(_refusal(path, parity))
            if decision is None:
                decision = Decision() if labels is None else calibrate(logits, labels)
            model = replace(packed_file.read(candidate), decision=decision)
            packed_file.write(candidate, model)
        return model, parity
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}); give a file in a folder that exists") from error


def _refusal(path: Path, parity: Parity) -> str:
    worst = max(parity.flipped, key=lambda kind: parity.flipped[kind], default="none")
    return (
        f"{path} was not written: the packed model disagrees with the trained one on {parity.disagreements} of "
        f"{parity.n} pictures ({parity.allowed} allowed), logits differ by up to {parity.max_logit_difference:.3g}, "
        f"most flipped bits in {worst} ({parity.flipped.get(worst, 0):.2%}); train longer so that the answers have a "
        "margin, use attention_bias = relative, or report this"
    )


@torch.no_grad()
def torch_bits(model: Any, images: Tensor) -> Bits:
    """Run a binarized model in evaluation mode and return its bits under the names of ``ReferenceModel.trace``.

    Every array has the pictures as its first axis: (B, N, C) and the like.
    """
    bits: Bits = {}
    hooks = []
    for index, block in enumerate(model.blocks):
        prefix, attention = f"blocks.{index}", block.attn
        layers = {"attn.qkv": attention.qkv, "attn.proj": attention.proj, "mlp.fc1": block.mlp.fc1}
        for name, layer in {**layers, "mlp.fc2": block.mlp.fc2}.items():
            hooks.append(layer.register_forward_pre_hook(_keep_input(bits, f"{prefix}.{name}.input")))
        hooks.append(attention.register_forward_pre_hook(_keep_attention(bits, f"{prefix}.attn")))
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return bits


def _keep_input(bits: Bits, name: str) -> Any:
    def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        (x,) = inputs
        if layer.clip is not None:
            x = x.clamp(-layer.clip, layer.clip)
        (plane,), _ = layer.input_quantizer.quantize(x + layer.shift)
        bits[name] = (plane > 0).numpy()

    return hook


def _keep_attention(bits: Bits, name: str) -> Any:
    def hook(attention: Any, inputs: tuple[Tensor, ...]) -> None:
        query, key, value = attention.project(inputs[0])
        for kind, quantizer, x in (
            ("query", attention.query_quantizer, query),
            ("key", attention.key_quantizer, key),
        ):
            (plane,), _ = quantizer.quantize(x)
            bits[f"{name}.{kind}.bits"] = (plane > 0).numpy()
        planes, _ = attention.attention_quantizer.quantize(attention.attention_matrix(query, key))
        bits[f"{name}.attention_masks"] = torch.stack(planes, dim=1).numpy() > 0
        planes, _ = attention.value_quantizer.quantize(value)
        bits[f"{name}.value.bits"] = (planes[0] > 0).numpy()
        bits[f"{name}.value_masks"] = torch.stack(planes, dim=1).numpy() != 0

    return hook


def _flipped(model: Any, reference: ReferenceModel, pictures: NDArray[np.uint8], images: Tensor) -> dict[str, float]:
    flips: dict[str, int] = {}
    totals: dict[str, int] = {}
    for picture, image in zip(pictures, images, strict=True):
        trace = reference.trace(picture)
        for name, expected in torch_bits(model, image[None]).items():
            kind = name.split(".", 2)[2]
            flips[kind] = flips.get(kind, 0) + int((trace[name] != expected[0]).sum())
            totals[kind] = totals.get(kind, 0) + expected.size
    return {kind: flips[kind] / totals[kind] for kind in flips}


def _near_ties(expected: NDArray[np.float32], found: NDArray[np.float32]) -> int:
    """Count rows whose two answers have nearly the same probability in ``expected``."""
    if not len(expected):
        return 0
    probability = torch.from_numpy(expected).softmax(-1).numpy()
    rows = np.arange(len(expected))
    return int((probability.max(axis=1) - probability[rows, found.argmax(axis=1)] <= NEAR_TIE).sum())
