"""``--preset`` and ``--time`` on the command line: what does not go together is one line."""

from pathlib import Path

import pytest
from class_folders import fill

from gsb_vit import cli
from gsb_vit.data.folder import is_read

pytest.importorskip("accelerate", reason="PyTorch's accelerate is not installed")

from gsb_vit.train.timing import StageCost


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "bets"], "--preset 'bets' is unknown; use one of fast, good, best"),
        (["--preset", "fast", "--recipe", "default"], "--preset fast and --recipe default both name a recipe"),
        (["--time", "soon"], "--time 'soon' is no time; give it as 90s, 30m, 2h or 1h30m"),
        (["--time", "10m10m"], "--time '10m10m' is no time; give it as 90s, 30m, 2h or 1h30m"),
        (["--epochs", "0"], "--epochs 0 trains no student; give 1 or more (--set stage2.epochs=0"),
        (["--epochs", "-3"], "--epochs -3 trains no student; give 1 or more"),
        (["--out", "mine/runs/x"], "the run's folder mine/runs/x lies among the classes of mine, and would be read as"),
        (["--out", "mine/a/x"], "give one outside, as in --out runs/x"),
        (["--time", "2m", "--resume", "--out", "run"], "--preset and --time are for a new run; --resume goes on"),
        (["--time", "1s", "--set", "model.depth=1"], "--time 1 s is too short: with 3 epochs a stage the run takes"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str], message: str
) -> None:
    for name in "ab":
        fill(tmp_path / "mine" / name, 6)
    monkeypatch.chdir(tmp_path)
    slow = {name: StageCost(1.0, 0.1, 1000, 1000) for name in ("teacher", "stage1", "stage2")}  # on any machine
    monkeypatch.setattr("gsb_vit.train.plan.measure", lambda *_, **__: slow)
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "mine", *words])
    said = capsys.readouterr()
    assert done.value.code == 2 and message in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists() and not (tmp_path / "run").exists()


def test_the_run_of_a_folder_that_one_stands_in_is_put_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in "ab":
        fill(tmp_path / "mine" / name, 6)
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(SystemExit) as done:
        cli.main(["train", "."])
    said = capsys.readouterr()
    assert done.value.code == 2 and said.err.count("\n") == 1
    assert said.err.endswith("give one outside, as in --out ../runs/mine-1\n")
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("place", "read"),
    [("d/a", True), ("d/a/run", True), ("d/runs", True), ("d/runs/x/y", True), ("runs", False), ("d", False),
     ("d/.runs/x", False), ("dd/x", False), ("split/train/x", True), ("split/test/x", True), ("split/runs", False)],
)  # fmt: skip
def test_where_a_run_would_be_read_as_data(tmp_path: Path, place: str, read: bool) -> None:
    for name in "ab":
        fill(tmp_path / "d" / name, 1)
        for part in ("train", "test"):
            fill(tmp_path / "split" / part / name, 1)
    root = tmp_path / ("split" if place.startswith("split") else "d")
    assert is_read(root, tmp_path / place) == read
