"""A class from a few pictures: its row and bias, equal logits on every engine, and what the file says afterwards."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image
from random_packed import random_packed

import gsb_vit
from gsb_vit.cli import main
from gsb_vit.data.digests import digest, pack_seen, unpack_seen
from gsb_vit.decision import Decision, Unknown, calibrate
from gsb_vit.errors import InputError
from gsb_vit.metrics import softmax
from gsb_vit.runtime.add_class import HeldOut, refit, with_class
from gsb_vit.runtime.hub_card import model_card
from gsb_vit.runtime.packed_file import read, write

SHAPE = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_hidden": 40}
KINDS = {
    "two heads": {"prefix_tokens": 2, "num_heads_out": 2},
    "one head": {"prefix_tokens": 1, "num_heads_out": 1},
    "mean": {"prefix_tokens": 0, "num_heads_out": 1, "global_pool": "avg"},
}


def packed_of(**shape):
    return random_packed(seed=4, **{**SHAPE, "num_classes": 3, **shape})


def stripes(count, seed=0):
    """Pictures of a kind of its own."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 16, 16, 3), np.uint8)
    pictures[:, ::2, :, 0] = 250
    return pictures + rng.integers(0, 6, pictures.shape, dtype=np.uint8)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, packed_of())
    return path


def engines():
    _native = pytest.importorskip("gsb_vit._native")
    return [{"engine": "reference"}, *({"backend": name} for name in _native.backends())]


@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_gives_equal_logits_and_the_old_ones_stay(kind, tmp_path):
    write(tmp_path / "old", packed_of(**KINDS[kind]))
    pictures = np.concatenate([stripes(2, 1), np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)])
    before = gsb_vit.load(tmp_path / "old", engine="reference").logits(pictures)
    made = gsb_vit.load(tmp_path / "old", engine="reference").add_class("stripes", list(stripes(5)), tmp_path / "new")
    assert made.class_names == ("class 0", "class 1", "class 2", "stripes") and made.backend == "reference"
    wanted = made.logits(pictures)
    assert np.array_equal(wanted[:, :3], before)
    for options in engines():
        assert np.array_equal(gsb_vit.load(tmp_path / "new", **options).logits(pictures), wanted), options


def same(one, other):
    """Whether two packed files hold the same; safetensors writes metadata in an order of chance."""
    a, b = read(one), read(other)
    equal = all(np.array_equal(a[name], b[name]) for name in {*a.tensors, *b.tensors})
    return equal and (a.class_names, a.provenance, a.decision) == (b.class_names, b.provenance, b.decision)


def test_both_engines_write_the_same_file(model, tmp_path):
    for engine in ("native", "reference"):
        gsb_vit.load(model, engine=engine).add_class("stripes", list(stripes(5)), tmp_path / engine)
    assert same(tmp_path / "native", tmp_path / "reference")


def float_logits(packed, features):
    """Of one head, without the rounding of its inputs."""
    weight, scale = packed["heads.0.weight"], packed["heads.0.scale"] / packed["heads.0.input_scale"]
    return (features + packed["heads.0.shift"]) @ (weight * scale[:, None]).T + packed["heads.0.bias"]


def test_features_of_its_kind_are_told_from_others():
    packed, rng = packed_of(**KINDS["one head"]), np.random.default_rng(5)
    kind = 3 * rng.normal(size=24)
    draws = [kind + rng.normal(size=(200, 24)) for _ in range(2)] + [rng.normal(size=(200, 24))]
    made = with_class(packed, "new", draws[0][:5], float_logits(packed, draws[0][:5]))
    own, others = (float_logits(made, one).argmax(1) == 3 for one in draws[1:])
    assert own.mean() > others.mean() + 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_row_and_bias_are_those_of_the_formula(kind):
    packed = packed_of(**KINDS[kind])
    heads, width = len(packed.architecture.heads), 24
    rng = np.random.default_rng(3)
    features, logits = rng.normal(size=(4, heads * width)) + 0.5, rng.normal(size=(4, 3))
    made = with_class(packed, "new", features, logits)
    left_out = np.zeros((heads, 4))
    for j in range(heads):
        old, new = (
            {n: m[f"heads.{j}.{n}"] for n in ("shift", "input_scale", "weight", "scale")} for m in (packed, made)
        )
        rows = old["weight"] * (old["scale"] / old["input_scale"])[:, None].astype(np.float64)
        x = features[:, j * width : (j + 1) * width] + old["shift"]
        length = np.mean([np.linalg.norm(row - rows.mean(0)) for row in rows])
        row = rows.mean(0) + length * x.mean(0) / np.linalg.norm(x.mean(0))
        written = new["weight"][3] * (new["scale"][3] / new["input_scale"])
        assert np.abs(written - row).max() <= np.abs(row).max() / 127 / 2 * 1.001
        assert np.abs(new["weight"][3]).max() == 127
        for n in range(4):
            mean = np.delete(x, n, axis=0).mean(0)
            left_out[j, n] = x[n] @ (rows.mean(0) + length * mean / np.linalg.norm(mean))
    wanted = np.mean(logits.max(1) - left_out.mean(0))
    assert [made[f"heads.{j}.bias"][3] for j in range(heads)] == pytest.approx([wanted] * heads, rel=1e-5)


def draws(seed, sizes=(60, 60, 60, 8), classes=3):
    """Logits of old classes, those of a new one, and labels: each picture favours its class a little."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    logits = rng.normal(size=(len(labels), classes + 1)) * 2
    logits[np.arange(len(labels)), labels] += 3
    return logits[:, :classes], logits[:, classes] + 5, labels  # 5: too large a logit, which a bias takes back


def test_the_bias_gives_the_new_class_its_share_and_few_pictures_of_the_old():
    old, new, labels = draws(0)
    bias, decision = refit(old, new, labels, Decision())
    both = np.column_stack([old, new + bias])
    share = [softmax(both / decision.temperature)[labels == k, 3].mean() for k in range(4)]
    assert np.mean(share) == pytest.approx(1 / 4, abs=1e-3)
    assert decision == calibrate(both, labels)
    taken, taken_without = ((labels < 3) & (np.column_stack([old, new + b]).argmax(1) == 3) for b in (bias, 0.0))
    assert taken.sum() < 0.2 * taken_without.sum() and (both[labels == 3].argmax(1) == 3).mean() > 0.5


def test_the_bias_is_that_of_the_smallest_cross_entropy():
    old, new, labels = draws(1)
    bias, decision = refit(old, new, labels, Decision())
    weight = 1 / np.bincount(labels)[labels]

    def loss(b):
        chosen = softmax(np.column_stack([old, new + b]) / decision.temperature)[np.arange(len(labels)), labels]
        return -(weight * np.log(chosen)).sum()

    assert loss(bias) < min(loss(bias - 0.05), loss(bias + 0.05))


def test_the_score_of_the_threshold_stays():
    assert refit(*draws(2), Decision(2.0, Unknown("energy", 0.0, 0.1)))[1].unknown.score == "energy"


def test_without_an_old_class_nothing_is_refitted():
    old, new, labels = draws(3)
    with pytest.raises(InputError, match="none of the old classes; give some of each"):
        refit(old[labels == 3], new[labels == 3], labels[labels == 3], Decision())


@pytest.mark.parametrize("kind", KINDS)
def test_the_decision_is_that_of_the_written_logits_and_of_pictures_left_out(kind):
    """But for the rounding of weights."""
    packed, rng = packed_of(**KINDS[kind]), np.random.default_rng(6)
    count, width = len(packed.architecture.heads), 24
    features, logits = rng.normal(size=(5, count * width)) + 0.5, rng.normal(size=(5, 3))
    labels = np.arange(40) % 4
    aside = HeldOut(rng.normal(size=(40, count * width)), rng.normal(size=(40, 3)) + 3 * np.eye(4)[labels, :3], labels)

    def new_logits(model, read):
        heads = []
        for j, part in enumerate(np.split(read, count, axis=1)):
            step = model[f"heads.{j}.scale"][3] / model[f"heads.{j}.input_scale"]
            row = model[f"heads.{j}.weight"][3] * step
            heads.append((part + model[f"heads.{j}.shift"]) @ row + model[f"heads.{j}.bias"][3])
        return np.mean(heads, axis=0)

    made = with_class(packed, "new", features, logits, held_out=aside)
    bias, left_out = made["heads.0.bias"][3], []
    for n in range(5):
        rest = with_class(packed, "new", np.delete(features, n, 0), np.delete(logits, n, 0))
        left_out.append(new_logits(rest, features[n : n + 1])[0] - rest["heads.0.bias"][3] + bias)
    new = np.concatenate([new_logits(made, aside.features), left_out])
    both = np.column_stack([np.concatenate([aside.logits, logits]), new])
    wanted = calibrate(both, np.concatenate([labels, np.full(5, 3)]))
    assert made.decision.temperature == pytest.approx(wanted.temperature, rel=0.02)
    assert made.decision.unknown.threshold == pytest.approx(wanted.unknown.threshold, abs=0.05)


def test_a_second_class_can_follow(model, tmp_path):
    one = gsb_vit.load(model).add_class("stripes", list(stripes(3)), tmp_path / "one")
    blank = [np.full((16, 16, 3), level, np.uint8) for level in (0, 1)]
    two = one.add_class("blank", blank, tmp_path / "two")
    assert two.class_names[3:] == ("stripes", "blank")
    assert [entry["class"] for entry in read(tmp_path / "two").provenance["added"]] == ["stripes", "blank"]


@pytest.mark.parametrize("added", [None, 3, "x", {}, [None], [{}], [{"class": 1, "pictures": 2}], [{"class": "a"}]])
def test_a_damaged_list_of_added_classes_is_refused_in_one_line(tmp_path, added):
    packed = dataclasses.replace(packed_of(), provenance={"added": added})
    width = packed.architecture.embed_dim * len(packed.architecture.heads)
    with pytest.raises(InputError, match=r"list of added classes is damaged .*export"):
        with_class(packed, "new", np.ones((3, width)), np.ones((3, packed.architecture.num_classes)))
    with pytest.raises(InputError, match=r"list of added classes is damaged .*export"):
        model_card(packed, 1, "a/b")


def test_the_decision_stays_and_the_file_says_what_was_added(tmp_path):
    decision = Decision(1.5, Unknown("max_logit", 0.25, 0.05))
    seen = pack_seen(["00" * 16])
    packed = dataclasses.replace(packed_of(), decision=decision, provenance={"source": "test", "seen": seen})
    write(tmp_path / "old", packed)
    made = gsb_vit.load(tmp_path / "old").add_class("stripes", list(stripes(3)), tmp_path / "new")
    found = read(tmp_path / "new")
    assert made.decision == found.decision == decision
    (added,) = found.provenance["added"]
    assert (added["class"], added["pictures"]) == ("stripes", 3) and found.provenance["source"] == "test"
    assert unpack_seen(found.provenance) == {"00" * 8, *(digest(one)[:16] for one in stripes(3))}


def kept_of(count=4):
    rng = np.random.default_rng(8)
    return {f"class {k}": list(rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)) for k in range(3)}


def test_held_out_pictures_refit_equally_on_every_engine(tmp_path):
    packed = dataclasses.replace(packed_of(), provenance={"seen": pack_seen([])})
    write(tmp_path / "old", packed)
    kept = kept_of()
    for engine in ("native", "reference"):
        gsb_vit.load(tmp_path / "old", engine=engine).add_class(
            "stripes", list(stripes(5)), tmp_path / engine, held_out=kept
        )
    assert same(tmp_path / "native", tmp_path / "reference")
    found = read(tmp_path / "native")
    (added,) = found.provenance["added"]
    assert (added["held_out"], added["pictures"]) == (12, 5) and "held-out" in added["method"]
    assert len(unpack_seen(found.provenance)) == 17
    assert found.decision.unknown is not None and found.decision != packed.decision
    pictures = np.stack([one for some in kept.values() for one in some])
    before = gsb_vit.load(tmp_path / "old", engine="reference").logits(pictures)
    wanted = gsb_vit.load(tmp_path / "native", engine="reference").logits(pictures)
    assert np.array_equal(wanted[:, :3], before)
    unknown = found.decision.is_unknown(wanted)
    for options in engines():
        loaded = gsb_vit.load(tmp_path / "native", **options)
        assert np.array_equal(loaded.logits(pictures), wanted), options
        assert [answer == [] for answer in loaded.predict(list(pictures), unknown=True)] == list(unknown), options


@pytest.mark.parametrize(
    "held_out, pattern",
    [
        ({}, "none of the old classes"),
        ({"stripes": list(stripes(2, 9))}, "none of the old classes"),
        ({"class 9": list(stripes(2, 9))}, "no class 'class 9'"),
        ([1], "must map names"),
        ({"class 0": list(stripes(2, 0))}, "copies of others"),
    ],
)
def test_held_out_pictures_that_do_not_fit_are_refused(model, tmp_path, held_out, pattern):
    with pytest.raises(InputError, match=pattern):
        gsb_vit.load(model).add_class("stripes", list(stripes(3)), tmp_path / "new", held_out=held_out)
    assert not (tmp_path / "new").exists()


def test_a_model_that_does_not_say_what_it_saw_still_does_not(model, tmp_path):
    gsb_vit.load(model).add_class("stripes", list(stripes(3)), tmp_path / "new")
    assert unpack_seen(read(tmp_path / "new").provenance) is None


def test_pictures_of_every_kind_are_known_by_their_bytes(tmp_path):
    write(tmp_path / "old", dataclasses.replace(packed_of(), provenance={"seen": pack_seen([])}))
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, pixels in zip(paths, stripes(3), strict=True):
        Image.fromarray(pixels).save(path)
    kinds = [paths[0], paths[1].read_bytes(), io.BytesIO(paths[2].read_bytes())]
    gsb_vit.load(tmp_path / "old").add_class("stripes", kinds, tmp_path / "new")
    assert unpack_seen(read(tmp_path / "new").provenance) == {digest(path)[:16] for path in paths}
    gsb_vit.load(tmp_path / "old").add_class("stripes", iter(paths), tmp_path / "iterated")
    assert same(tmp_path / "new", tmp_path / "iterated")


@pytest.mark.parametrize(
    "name, count, pattern",
    [
        ("class 1", 3, "has a class 'class 1' already"),
        ("", 3, "'' is no name of a class"),
        (7, 3, "7 is no name of a class"),
        ("new", 1, "1 pictures make no class; give at least 2"),
        ("new", 0, "0 pictures make no class"),
    ],
)
def test_what_makes_no_class_is_refused_and_nothing_written(model, tmp_path, name, count, pattern):
    with pytest.raises(InputError, match=pattern):
        gsb_vit.load(model).add_class(name, list(stripes(count)), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_picture_that_cannot_be_read_is_named(model, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(InputError, match=r"bad\.png"):
        gsb_vit.load(model).add_class("new", [stripes(1)[0], tmp_path / "bad.png"], tmp_path / "new")


def test_features_of_nothing_are_refused():
    with pytest.raises(InputError, match="all zero"):
        packed = packed_of(**KINDS["one head"])
        with_class(packed, "new", -np.tile(packed["heads.0.shift"], (3, 1)), np.zeros((3, 3)))


@pytest.fixture
def folders(tmp_path):
    """Pictures in folders whose names enclose that of the new class."""
    rng = np.random.default_rng(0)
    for name in ("class 0", "class 1", "class 2", "class 1a"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        pictures = stripes(6) if name == "class 1a" else rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        for index, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{index}.png")
    return tmp_path / "pictures"


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return (stop.value.code, *capsys.readouterr())


def test_the_command_adds_and_evaluate_takes_the_folder_in_its_own_order(folders, tmp_path, capsys):
    write(tmp_path / "old", dataclasses.replace(packed_of(), provenance={"seen": pack_seen([])}))
    taught = [folders / "class 1a" / f"{index}.png" for index in range(3)]
    status, output, errors = call(capsys, "add-class", tmp_path / "old", "class 1a", *taught, "-o", tmp_path / "new")
    assert (status, errors) == (0, "") and "4 classes, class 1a from 3 pictures" in output
    status, output, _ = call(capsys, "evaluate", tmp_path / "new", "--data", folders, "--json")
    found = json.loads(output)
    assert (status, found["n_given"], found["n_seen"], found["n"]) == (0, 18, 3, 15)
    assert [(one["class"], one["n"]) for one in found["classes"]] == [
        ("class 0", 4), ("class 1", 4), ("class 2", 4), ("class 1a", 3)
    ]  # fmt: skip


def test_the_command_prints_json_and_says_what_the_decision_is(folders, tmp_path, capsys):
    write(tmp_path / "old", dataclasses.replace(packed_of(), decision=Decision(2.0, Unknown("energy", 0.0, 0.1))))
    folder = folders / "class 1a"
    status, output, _ = call(capsys, "add-class", tmp_path / "old", "x", folder, "-o", tmp_path / "new", "--json")
    assert status == 0 and json.loads(output)["pictures"] == 6 and json.loads(output)["classes"][-1] == "x"
    _, output, _ = call(capsys, "add-class", tmp_path / "old", "x", folder, "-o", tmp_path / "new")
    assert "temperature and threshold are still those of the old classes" in " ".join(output.split())
    assert "not refitted, for lack of --held-out pictures" in " ".join(output.split())
    status, output, errors = call(capsys, "add-class", tmp_path / "old", "class 0", folder, "-o", "y", "--json")
    assert status == 2 and "already" in json.loads(output)["error"] and len(errors.splitlines()) == 1


def test_the_command_refits_on_folders_of_old_classes(folders, model, tmp_path, capsys):
    (folders / "class 1a").rename(tmp_path / "own")
    call_it = ("add-class", model, "x", tmp_path / "own", "-o", tmp_path / "new", "--held-out")
    status, output, _ = call(capsys, *call_it, folders)
    said = " ".join(output.split())
    assert status == 0 and "refitted on 12 held-out pictures" in said and "not refitted" not in said
    status, output, _ = call(capsys, *call_it, folders, "--json")
    found = json.loads(output)
    assert found["held_out"] == 12 and found["decision"] == read(tmp_path / "new").decision.to_json()
    assert found["decision"]["unknown"]["score"] == "max_logit"
    status, output, errors = call(capsys, *call_it, tmp_path / "nowhere")
    assert status == 2 and "is no folder" in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("name", [" class 0", "rose ", "\nrose", "a\0b", "\udcff", "x" * 1001])
def test_a_name_that_is_hard_to_tell_or_to_write_is_refused(model, tmp_path, name):
    with pytest.raises(InputError, match="is no name of a class") as caught:
        gsb_vit.load(model, engine="reference").add_class(name, stripes(3), tmp_path / "new")
    assert len(str(caught.value)) < 250 and not (tmp_path / "new").exists()


def test_one_picture_many_times_is_one_picture(model, tmp_path):
    first, second = stripes(2)
    with pytest.raises(InputError, match=r"2 of 4 pictures of 'rose' are copies of others, as number 3"):
        gsb_vit.load(model, engine="reference").add_class("rose", [first, second, first, second], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_does_not_write_over_its_model(folders, model, capsys):
    before = model.read_bytes()
    with pytest.raises(SystemExit) as ended:
        main(["add-class", str(model), "more", str(folders), "-o", str(model), "--engine", "reference"])
    assert ended.value.code == 2 and "is the model itself" in capsys.readouterr().err
    assert model.read_bytes() == before
