"""Trackers: what they are told, of every stage; a failing one stops nothing; missing ones are named."""

import json

import pytest
from accelerate.tracking import GeneralTracker
from small_runs import train_small, write_pictures

import gsb_vit
from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.train import track
from gsb_vit.train.track import check_trackers


class Remembering(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "remembering"
    requires_logging_directory = False

    def __init__(self, fails_at=None):
        super().__init__()
        self.config, self.lines, self.ended, self.fails_at = {}, [], 0, fails_at

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_):
        if len(self.lines) == self.fails_at:
            raise ConnectionError("the server is gone")
        self.lines.append((step, values))

    def finish(self):
        self.ended += 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("track") / "pictures", 8)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_tracker_is_told_the_recipe_and_every_line(data, tmp_path):
    told = Remembering()
    train_small(data, tmp_path / "run", track=[told])
    written = rows(tmp_path / "run")
    assert [step for step, _ in told.lines] == list(range(1, len(written) + 1)) and told.ended == 1
    for (_, values), line in zip(told.lines, written, strict=True):
        stage = line["stage"]
        assert values[f"{stage}/train_loss"] == line["train_loss"] and values[f"{stage}/epoch"] == line["epoch"]
    assert {line["stage"] for line in written} == {"teacher", "stage1", "stage2"}
    assert told.config["stage2.epochs"] == 2 and told.config["data"] == str(data)
    assert all(isinstance(value, (bool, int, float, str)) for value in told.config.values())


def test_a_tracker_that_fails_stops_being_told_and_the_run_ends_well(data, tmp_path, capsys):
    told = Remembering(fails_at=2)
    out = tmp_path / "run"
    lines = []

    class Console:
        def write(self, text):
            lines.append(text)

        def flush(self):
            pass

    train_small(data, out, track=[told], stream=Console())
    assert len(told.lines) == 2 and (out / "summary.json").is_file()
    said = " ".join("".join(lines).split())
    assert "tracker remembering stopped: ConnectionError: the server is gone; the run goes on" in said


@pytest.mark.parametrize("fails_at", [0, "start"])
def test_a_tracker_that_fails_takes_no_other_with_it(data, tmp_path, capsys, fails_at):
    broken, sound = [Remembering(fails_at=fails_at) for _ in range(2)]
    sound.fails_at = None
    if fails_at == "start":
        broken.store_init_configuration = lambda values: 1 / 0
    for order in ([broken, sound], [sound, broken]):
        sound.lines.clear()
        out = tmp_path / f"run{order.index(sound)}"
        train_small(data, out, track=order)
        assert len(sound.lines) == len(rows(out)) and not broken.lines
    assert sound.ended == 2 and broken.ended == 0


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_public_trackers_take_what_a_run_tells(data, tmp_path, monkeypatch, capsys, name):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    gsb_vit.fit(data, out=tmp_path / "run", recipe="quickstart", settings=tiny(), track=name)
    assert "stopped" not in capsys.readouterr().out
    if name == "mlflow":
        import mlflow

        (row,) = mlflow.search_runs(experiment_names=[track.PROJECT], output_format="list")
        assert row.info.run_name == "run" and row.data.params["stage2.epochs"] == "1"
        assert row.data.metrics["stage2/train_loss"] == rows(tmp_path / "run")[-1]["train_loss"]
    else:
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_tensorboard_is_written_into_the_run(data, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    event = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    gsb_vit.fit(data, out=tmp_path / "run", recipe="quickstart", settings=tiny(), track="tensorboard")
    (folder,) = {path.parent for path in (tmp_path / "run" / "tracking" / "gsb-vit").glob("events.*")}
    found = event.EventAccumulator(str(folder))
    found.Reload()
    assert "stage2/train_loss" in found.Tags()["scalars"]
    assert [one.step for one in found.Scalars("stage2/train_loss")] == [3]


def tiny():
    small = {"model.depth": 1, "model.embed_dim": 16, "model.num_heads": 1, "model.img_size": 8, "threads": 1}
    return {**small, **{f"{stage}.epochs": 1 for stage in ("teacher", "stage1", "stage2")}}


def test_unknown_and_missing_trackers_are_refused_before_anything_is_made(data, tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"tracker 'wand' is unknown; use one of .*tensorboard, .*wandb"):
        gsb_vit.fit(data, out=tmp_path / "run", track=["wand"])
    monkeypatch.setattr(track, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(SystemExit) as stop:
        main(["train", str(data), "--out", str(tmp_path / "run"), "--track", "wandb", "--json"])
    assert stop.value.code == 2
    assert json.loads(capsys.readouterr().out) == {"error": "tracker wandb needs its package: pip install wandb"}
    assert not (tmp_path / "run").exists()


def test_each_tracker_is_taken_once():
    one = Remembering()
    assert check_trackers(["tensorboard", one, "tensorboard", one]) == ["tensorboard", one]
    assert check_trackers([]) == []
