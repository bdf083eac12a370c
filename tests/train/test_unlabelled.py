"""Pictures without labels: which are taken, which stages see them, and that a run goes on with them."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("accelerate")

import torch
from class_folders import fill
from small_runs import stopped_after, train_small, write_pictures

from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.data.stored_split import read_split
from gsb_vit.errors import InputError
from gsb_vit.models.trained import read_tensors
from gsb_vit.runs import fit
from gsb_vit.terminal import plain_console
from gsb_vit.train.augment import Mixing, one_hot
from gsb_vit.train.batches import TrainingPictures
from gsb_vit.train.confidence import read_confidence
from gsb_vit.train.evaluate import evaluate_run
from gsb_vit.train.recipe import AugmentRecipe
from gsb_vit.train.recipe_io import load_recipe

MATCH = ("distillation.kind=match", "distillation.tau=2.0")
FILES = [f"{stage}/{name}.safetensors" for stage in ("teacher", "stage1", "stage2") for name in ("best", "last")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "mine")


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """Thirty other pictures, in two folders of any name."""
    fill(tmp_path / "more", 20)
    fill(tmp_path / "more" / "deep", 10)
    return tmp_path / "more"


def of(more: Path) -> str:
    return f"data.unlabelled={json.dumps(str(more))}"


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    pairs = ((read_tensors(one / name)[0], read_tensors(other / name)[0]) for name in FILES)
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def test_students_see_them_and_teacher_test_and_labels_stay_as_they_were(data: Path, more: Path, tmp_path: Path):
    output = io.StringIO()
    train_small(data, tmp_path / "with", *MATCH, of(more), stream=output)
    train_small(data, tmp_path / "without", *MATCH)
    assert f"{more}: 30 unlabelled pictures for the student, which the teacher names" in output.getvalue()
    split, plain = read_split(tmp_path / "with"), read_split(tmp_path / "without")
    assert split.parts == plain.parts
    assert len(split.unlabelled.digests) == 30 and set(split.unlabelled.labels) == {-1}
    assert split.seen == plain.seen | set(split.unlabelled.digests)
    teachers = (read_tensors(tmp_path / run / "teacher/last.safetensors")[0] for run in ("with", "without"))
    one, other = teachers
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not same_weights(tmp_path / "with", tmp_path / "without")
    provenance = read_tensors(tmp_path / "with/stage2/last.safetensors")[1]["provenance"]
    assert (provenance["training_pictures"], provenance["unlabelled_pictures"]) == (36, 30)
    assert "unlabelled_pictures" not in read_tensors(tmp_path / "without/stage2/last.safetensors")[1]["provenance"]
    assert all(0 <= line["train_top1"] <= 1 for line in metrics(tmp_path / "with"))
    assert read_confidence(tmp_path / "with" / "stage2").shape == (36, 3)  # of pictures with labels


def test_a_run_that_was_stopped_goes_on_with_them_wherever_they_lie_now(data: Path, more: Path, tmp_path: Path):
    cached = ("teacher.cache_views=2", "stage1.mixup=1.0", "stage2.cutmix=1.0")
    train_small(data, tmp_path / "whole", *MATCH, *cached, of(more))
    with stopped_after(3):
        train_small(data, tmp_path / "run", *MATCH, *cached, of(more))
    moved = tmp_path / "elsewhere" / "flat"
    moved.mkdir(parents=True)
    for number, path in enumerate(sorted(more.rglob("*.png"), reverse=True)):
        shutil.move(path, moved / f"{number}.png")
    fill(moved, 3, start=100)  # new ones are ignored
    train_small(data, tmp_path / "run", *MATCH, *cached, of(moved), resume=True)
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert load_recipe(tmp_path / "run" / "recipe.toml").data.unlabelled == str(moved)


def test_those_that_are_gone_stop_a_run_that_goes_on(data: Path, more: Path, tmp_path: Path):
    with stopped_after(3):
        train_small(data, tmp_path / "run", *MATCH, of(more))
    first = sorted(more.rglob("*.png"))[0]
    first.unlink()
    with pytest.raises(InputError, match="1 of the run's 30 unlabelled pictures are gone or changed") as caught:
        train_small(data, tmp_path / "run", *MATCH, of(more), resume=True)
    assert first.name in str(caught.value) and "--allow-missing" in str(caught.value)
    train_small(data, tmp_path / "run", *MATCH, of(more), resume=True, allow_missing=True)
    assert (tmp_path / "run" / "summary.json").is_file()


def test_copies_of_labelled_pictures_are_none(data: Path, more: Path, tmp_path: Path):
    """A student that had seen a test picture without its label would still have seen it."""
    for path in sorted(data.rglob("*.png")):
        shutil.copy(path, more / f"{path.parent.name}-{path.name}")
    shutil.copy(more / "000.png", more / "again.png")
    output = io.StringIO()
    train_small(data, tmp_path / "run", *MATCH, of(more), stream=output)
    split = read_split(tmp_path / "run")
    assert len(split.unlabelled.digests) == 30
    assert not {*split.unlabelled.digests} & {one for part in split.parts.values() for one in part.digests}
    assert "61 unlabelled pictures are copies of labelled ones or of each other" in output.getvalue()


def test_near_copies_of_test_pictures_are_none(tmp_path: Path):
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(20):
            smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 96), 3)
            smooth.save(tmp_path / "mine" / name / f"{i:02}.png")
    (tmp_path / "more").mkdir()
    for path in sorted((tmp_path / "mine" / "a").iterdir()):
        with Image.open(path) as picture:
            picture.save(tmp_path / "more" / f"{path.stem}.jpg", quality=90)
    fill(tmp_path / "more", 5)
    train_small(tmp_path / "mine", tmp_path / "run", *MATCH, of(tmp_path / "more"))
    kept = [Path(name).suffix for name in read_split(tmp_path / "run").unlabelled.names]
    assert kept == [".png"] * 5


def test_a_picture_that_was_learned_from_without_a_label_does_not_judge(data: Path, more: Path, tmp_path: Path):
    train_small(data, tmp_path / "run", *MATCH, of(more))
    judged = tmp_path / "judged"
    for place, path in enumerate(sorted(more.rglob("*.png"))):
        (judged / "abc"[place % 3]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, judged / "abc"[place % 3])
    for name in "abc":
        fill(judged / name, 2, start=500)
    found = evaluate_run(tmp_path / "run", str(judged))
    assert (found["n_given"], found["n_seen"], found["n"]) == (36, 30, 6)


def test_a_bad_one_is_told_or_left_out(data: Path, more: Path, tmp_path: Path):
    (more / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with pytest.raises(InputError, match=r"1 of 31 unlabelled pictures cannot be used: .*bad.png.*--skip-bad"):
        train_small(data, tmp_path / "run", *MATCH, of(more))
    train_small(data, tmp_path / "run", *MATCH, of(more), skip_bad=True)
    split = read_split(tmp_path / "run")
    assert len(split.unlabelled.digests) == 30
    assert [Path(name).name for name in split.left_out] == ["bad.png"]


@pytest.mark.parametrize(
    ("settings", "folder", "message"),
    [
        (("distillation.kind=hard",), "more", "data.unlabelled is for students that learn from a teacher alone"),
        (MATCH, "nowhere", "no folder '.*nowhere' for data.unlabelled"),
        (MATCH, "empty", "empty holds zero pictures to learn from"),
        (MATCH, "mine", "all 60 pictures in .*mine are copies of labelled ones"),
    ],
)
def test_what_cannot_be_is_one_line(data, more, tmp_path: Path, settings, folder, message):
    (tmp_path / "empty").mkdir()
    place = data if folder == "mine" else tmp_path / folder
    with pytest.raises(InputError, match=message) as caught:
        train_small(data, tmp_path / "run", *settings, of(place))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_preset_learns_from_the_teacher_alone_where_there_are_some(data: Path, more: Path, tmp_path: Path):
    small = {"model.depth": 1, "model.embed_dim": 16, "model.num_heads": 1, "threads": 1}
    small |= {f"{name}.epochs": 1 for name in ("teacher", "stage1", "stage2")}
    quiet = plain_console(quiet=True)
    fit(data, out=tmp_path / "run", preset="fast", unlabelled=more, settings=small, console=quiet)
    kept = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (kept.distillation.kind, kept.distillation.tau, kept.data.unlabelled) == ("match", 2.0, str(more))
    with pytest.raises(InputError, match="learn from a teacher alone"):
        hard = {**small, "distillation.kind": "hard"}
        fit(data, out=tmp_path / "hard", preset="fast", unlabelled=more, settings=hard, console=quiet)


def test_an_epoch_shows_each_of_them_once_and_classes_equally_often():
    rng = np.random.default_rng(0)
    arrays = tuple(rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8))
    labels = np.array([0] * 12 + [1] * 4 + [-1] * 14)
    pictures = LabelledPictures(arrays, labels)
    shown = TrainingPictures(pictures, Preprocessing(size=(8, 8)), AugmentRecipe(), balanced=True)
    order = shown.order(np.random.default_rng(1))
    assert len(order) == 30
    assert np.bincount(labels[order] + 1).tolist() == [14, 8, 8]
    assert sorted(order[labels[order] < 0]) == list(range(16, 30))
    assert (np.diff(np.flatnonzero(labels[order] < 0)) > 1).any()  # among the others, not behind them


def test_a_picture_without_a_label_has_a_share_in_no_class():
    labels = torch.tensor([2, -1, 0, 1])
    assert one_hot(labels, 3).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]]
    torch.manual_seed(0)
    np.random.seed(0)
    _, shares = Mixing(1.0, 0.0, 3)(torch.rand(4, 3, 8, 8), labels)
    assert torch.allclose(shares.sum(1)[[0, 3]], torch.ones(2))  # 0 and 3 are partners, and so are 1 and 2
    assert 0 < shares[1, 0] < 1 and shares[1, 1:].tolist() == [0, 0]
    assert 0 < shares[2, 0] < 1 and shares[2, 1:].tolist() == [0, 0]
