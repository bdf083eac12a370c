from dataclasses import replace

import numpy as np
import pytest
import torch
from bit_products import mask_dot, popcount, sign_dot, xor_popcount
from random_trained import random_trained

from gsb_vit.decision import Decision, Unknown, calibrate
from gsb_vit.errors import InputError
from gsb_vit.export import parity
from gsb_vit.export.pack import export_model
from gsb_vit.export.parity import Parity, compare, export_and_verify, torch_bits
from gsb_vit.models.pixel_inputs import normalize
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.bits import pack
from gsb_vit.runtime.reference import ReferenceModel

NAMES = [f"class {number}" for number in range(6)]
CASES = {
    "distilled": {},
    "plain": {"plain": True},
    "no qkv bias": {"plain": True, "qkv_bias": False},
    "one group, no bias": {
        "switches": {"attention_thresholds": (), "value_thresholds": (), "attention_bias": "none"},
        "num_heads": 2,
    },
    "two and four groups": {
        "switches": {"attention_thresholds": (0.5,), "value_thresholds": (0.3, 0.6, 0.9)},
        "embed_dim": 100,
        "num_heads": 5,
    },
    "fixed, full bias": {"switches": {"threshold_scope": "fixed", "attention_bias": "full"}, "embed_dim": 96},
    "layer scales, oblong": {
        "switches": {"weight_scale": "layer", "threshold_scope": "fixed", "value_thresholds": (0.8,)},
        "img_size": (24, 48),
        "patch_size": (8, 12),
        "embed_dim": 130,
        "num_heads": 2,
    },
    "mean of the patches": {"global_pool": "avg"},
    "timm's mean of the patches": {"plain": True, "global_pool": "avg", "img_size": (24, 40)},
    "mean of norms": {"plain": True, "global_pool": "avg", "fc_norm": False},
    "registers": {"plain": True, "reg_tokens": 4},
    "registers, mean": {"global_pool": "avg", "reg_tokens": 2, "switches": {"attention_bias": "full"}},
    "norm behind the class token": {"plain": True, "fc_norm": True},
    "convolutions": {"tokenizer_channels": (9, 20), "img_size": (40, 56)},
    "convolutions, mean": {"tokenizer_channels": (6,), "patch_size": 4, "global_pool": "avg"},
    "convolutions, plain": {"tokenizer_channels": (180, 8), "plain": True, "switches": {"attention_bias": "full"}},
    "one-bit convolutions": {
        "tokenizer_channels": (32, 40),
        "img_size": (40, 56),
        "global_pool": "avg",
        "switches": {"tokenizer_bits": 1},
    },
    "one one-bit convolution": {
        "tokenizer_channels": (9,),
        "patch_size": 4,
        "plain": True,
        "switches": {"tokenizer_bits": 1, "attention_bias": "none"},
    },
    "four and one group": {
        "switches": {"attention_thresholds": (0.3, 0.5, 0.8), "value_thresholds": (), "attention_bias": "full"},
        "plain": True,
        "embed_dim": 64,
        "num_heads": 1,
        "depth": 3,
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=CASES.values(), ids=CASES)
def exported(request, tmp_path):
    model, preprocessing, pictures = random_trained(seed=7, **request.param)
    path = tmp_path / "model.safetensors"
    export_model(model, path, class_names=NAMES, preprocessing=preprocessing)
    return model, preprocessing, pictures, path


def heads_first(words):
    """(h, N, d) → (h, d, N)."""
    return np.swapaxes(words, -1, -2)


@torch.no_grad()
def test_equal_input_bits_give_equal_integers_and_bits_everywhere(exported):
    """Each product is fed with PyTorch's own bits; what follows in integers must be PyTorch's own, exactly."""
    model, preprocessing, pictures, path = exported
    found = packed_file.read(path)
    a = found.architecture
    images = normalize(pictures[:2], preprocessing)
    bits = torch_bits(model, images)
    for index, torch_block in enumerate(model.blocks):
        block, attention = found.block(index), torch_block.attn
        for picture in range(2):
            own = {n.split(".", 2)[2]: v[picture] for n, v in bits.items() if n.startswith(f"blocks.{index}.")}
            popcount = xor_popcount(pack(own["attn.qkv.input"]), block["attn.qkv.weight"])
            signs, _ = attention.qkv.binary_weight()
            plane = torch.from_numpy(2.0 * own["attn.qkv.input"] - 1).float()
            assert np.array_equal(a.embed_dim - 2 * popcount, (plane @ signs.T).numpy())
            qkv = popcount <= block["attn.qkv.threshold"]
            by_head = qkv.reshape(a.num_tokens, 3, a.num_heads, a.head_dim).transpose(1, 2, 0, 3)
            for kind, expected in zip(("query", "key", "value"), by_head, strict=True):
                assert np.array_equal(own[f"attn.{kind}.bits"], expected), kind
            assert_products(found, own, block, attention)
            popcount = xor_popcount(pack(own["mlp.fc1.input"]), block["mlp.fc1.weight"])
            low, high = block["mlp.fc1.zero_interval"].T
            assert np.array_equal(own["mlp.fc2.input"], ~((low <= popcount) & (popcount <= high)))
            dot = mask_dot(pack(own["mlp.fc2.input"]), block["mlp.fc2.weight"])
            signs, _ = torch_block.mlp.fc2.binary_weight()
            expected = torch.from_numpy(own["mlp.fc2.input"]).float() @ signs.T
            assert np.array_equal(dot, expected.numpy())


def assert_products(found, own, block, attention):
    """I_ab by popcount, the combination with the scales, the proj bits and the proj product."""
    a = found.architecture
    planes = own["attn.value_masks"] * (2.0 * own["attn.value.bits"] - 1)
    total = None
    for i, j in np.ndindex(a.attention_groups, a.value_groups):
        mask = pack(own["attn.attention_masks"][i])
        signs = own["attn.value.bits"]
        inside = own["attn.value_masks"][j]
        up, down = (pack(heads_first(part)) for part in (inside & signs, inside & ~signs))
        # {0,1} · {0,1} from two {0,1} · ±1 products would be longer: count the AND.
        count = popcount(mask[:, :, None] & up[:, None]).sum(-1, dtype=np.int32)
        count -= popcount(mask[:, :, None] & down[:, None]).sum(-1, dtype=np.int32)
        assert np.array_equal(count, own["attn.attention_masks"][i].astype(np.float32) @ planes[j].astype(np.float32))
        term = count.astype(np.float32) * block["attn.product_scale"][i, j]
        total = term if total is None else total + term
    y = total.transpose(1, 0, 2).reshape(a.num_tokens, a.embed_dim)
    assert np.array_equal(own["attn.proj.input"], y + block["attn.proj.shift"] >= 0)
    dot = sign_dot(pack(own["attn.proj.input"]), block["attn.proj.weight"], a.embed_dim)
    signs, _ = attention.proj.binary_weight()
    plane = torch.from_numpy(2.0 * own["attn.proj.input"] - 1).float()
    assert np.array_equal(dot, (plane @ signs.T).numpy())


def test_the_whole_model_agrees(exported):
    model, _, pictures, path = exported
    found = compare(model, path, pictures, traced=4)
    assert found.n == found.equal == 24 and found.ok
    assert (found.top1_agreement, found.max_logit_difference) == (1, 0)
    assert not any(found.flipped.values())
    assert set(found.flipped) == {
        "attn.qkv.input",
        "attn.query.bits",
        "attn.key.bits",
        "attn.attention_masks",
        "attn.value.bits",
        "attn.value_masks",
        "attn.proj.input",
        "mlp.fc1.input",
        "mlp.fc2.input",
    }


def test_logits_do_not_depend_on_batch_mates_on_either_side(exported):
    model, preprocessing, pictures, path = exported
    reference = ReferenceModel(packed_file.read(path))
    together = reference.logits(pictures[:6])
    for index in range(6):
        assert reference.logits(pictures[index : index + 1]).tobytes() == together[index].tobytes()
    images = normalize(pictures[:6], preprocessing)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        assert (alone.argmax(1) == model(images).argmax(1)).all()


def test_the_native_engine_is_compared_too(tmp_path):
    pytest.importorskip("gsb_vit._native")
    model, preprocessing, pictures = random_trained(seed=1)
    path = tmp_path / "model.safetensors"
    export_model(model, path, class_names=NAMES, preprocessing=preprocessing)
    native, reference = (compare(model, path, pictures, engine=engine) for engine in ("native", "reference"))
    assert native == reference and native.equal == 24


def test_wrong_pictures_are_refused(tmp_path):
    model, preprocessing, pictures = random_trained()
    path = tmp_path / "model.safetensors"
    export_model(model, path, class_names=NAMES, preprocessing=preprocessing)
    with pytest.raises(InputError, match="no pictures"):
        compare(model, path, pictures[:0])
    with pytest.raises(InputError, match="give uint8"):
        compare(model, path, pictures[:, :16])


def test_export_and_verify_writes_what_agrees(tmp_path):
    model, preprocessing, pictures = random_trained()
    path = tmp_path / "model.safetensors"
    written, found = export_and_verify(model, path, pictures, class_names=NAMES, preprocessing=preprocessing)
    assert found.ok and [item.name for item in tmp_path.iterdir()] == ["model.safetensors"]
    assert packed_file.read(path).architecture == written.architecture


def test_an_exported_file_is_calibrated_on_the_pictures_of_known_labels(tmp_path):
    model, preprocessing, pictures = random_trained()
    path, labels = tmp_path / "model.safetensors", np.arange(len(pictures)) % len(NAMES)
    options = {"class_names": NAMES, "preprocessing": preprocessing}
    written, _ = export_and_verify(model, path, pictures, labels=labels, **options)
    logits = ReferenceModel(written).logits(pictures)
    assert packed_file.read(path).decision == written.decision == calibrate(logits, labels)
    given = Decision(3.0, Unknown("energy", 1.0, 0.1))
    export_and_verify(model, path, pictures, labels=labels, decision=given, **options)
    assert packed_file.read(path).decision == given
    export_and_verify(model, path, pictures, **options)
    assert packed_file.read(path).decision == Decision()


def sabotage(monkeypatch):
    """Make the export write heads of the opposite sign."""
    export = parity.export_model

    def wrong(model, path, **options):
        found = export(model, path, **options)
        tensors = {n: -np.maximum(t, -127) if ".weight" in n and "heads" in n else t for n, t in found.tensors.items()}
        packed_file.write(path, replace(found, tensors=tensors))
        return found

    monkeypatch.setattr(parity, "export_model", wrong)


@pytest.mark.parametrize("count", [2, 24])
def test_export_and_verify_refuses_a_disagreement_and_leaves_nothing(tmp_path, monkeypatch, count):
    model, preprocessing, pictures = random_trained()
    path = tmp_path / "model.safetensors"
    export_model(model, path, class_names=NAMES, preprocessing=preprocessing)
    before = path.read_bytes()
    sabotage(monkeypatch)
    with pytest.raises(InputError, match=rf"disagrees with the trained one on \d+ of {count} pictures") as caught:
        export_and_verify(model, path, pictures[:count], class_names=NAMES, preprocessing=preprocessing)
    assert "\n" not in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["model.safetensors"]
    assert path.read_bytes() == before


def test_flips_are_counted(tmp_path):
    """Another threshold in one channel changes the query bits, and nothing before them."""
    model, preprocessing, pictures = random_trained(depth=1)
    path = tmp_path / "model.safetensors"
    written = export_model(model, path, class_names=NAMES, preprocessing=preprocessing)
    tensors = dict(written.tensors)
    own = torch_bits(model, normalize(pictures[:2], preprocessing))["blocks.0.attn.query.bits"]
    tensors["blocks.0.attn.qkv.threshold"] = tensors["blocks.0.attn.qkv.threshold"].copy()
    tensors["blocks.0.attn.qkv.threshold"][0] = -1
    packed_file.write(path, replace(written, tensors=tensors))
    flipped = compare(model, path, pictures, traced=2).flipped
    assert flipped["attn.query.bits"] == pytest.approx(own[:, 0, :, 0].sum() / own.size) and own[:, 0, :, 0].any()
    assert flipped["attn.qkv.input"] == flipped["attn.key.bits"] == flipped["attn.value.bits"] == 0


@pytest.mark.parametrize(
    ("n", "disagreements", "near_ties", "ok"),
    [
        (10, 0, 0, True),
        (10, 1, 1, True),
        (10, 1, 0, False),
        (10, 2, 2, False),
        (300, 1, 0, True),
        (300, 2, 2, False),
        (1999, 1, 0, True),
        (1999, 2, 0, False),
        (2000, 2, 0, True),
        (6149, 6, 0, True),
        (6149, 7, 7, False),
    ],
)
def test_how_many_disagreements_are_allowed(n, disagreements, near_ties, ok):
    found = Parity(n, 1 - disagreements / n, disagreements, near_ties, n, 0.0, 0, {})
    assert found.ok == ok
    assert found.to_json()["ok"] == ok


def test_a_near_tie_is_one_in_probability():
    expected = np.array([[1.0, 0.99, 0.0], [3.0, 0.0, 0.0]], dtype=np.float32)
    found = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=np.float32)
    assert parity._near_ties(expected, found) == 1
