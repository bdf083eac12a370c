"""The tables of a study against numbers worked out by hand."""

from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from gsb_vit.errors import InputError
from gsb_vit.metrics import METRIC_NAMES
from gsb_vit.study.plan import Cell, Study
from gsb_vit.study.plots import plot_svg
from gsb_vit.study.results import Row, Spread, aggregate, public_spec
from gsb_vit.study.tables import csv_text, interval, markdown, percent, replace_between_markers
from gsb_vit.train.recipe import Recipe

TOP1 = {("a", 0): 0.50, ("a", 1): 0.52, ("a", 2): 0.54, ("b", 0): 0.47, ("b", 1): 0.50, ("b", 2): 0.50}


def make(axes=(), plot_x=None, points=((),)) -> Study:
    cells = [Cell(name, name.upper(), point, seed, Recipe()) for seed in range(3) for point in points for name in "ab"]
    return Study("s", "Study", "digits", (0, 1, 2), axes, tuple(cells), "a", plot_x, False)


def row(variant: str, seed: int, stage: str, top1: float, **more) -> Row:
    size = {"parameters": 9, "bytes": 2500, "packed_bytes": None, "latency_ms": None}
    values = dict.fromkeys(METRIC_NAMES, 0.25) | {"top1": top1}
    origin = {"command": "gsb-vit study s.toml", "commit": "abc", "cpu": "CPU", "gpu": None, "threads": 1, "run": "r"}
    base = {"variant": variant, "title": variant.upper(), "seed": seed, "stage": stage, "final": int(stage == "stage2")}
    return {**base, **values, "test_pictures": 100, "chosen_epoch": 1, "seconds": 10.0, **size, **origin, **more}


def rows(**more) -> list[Row]:
    return [
        row(variant, seed, stage, value, **more)
        for (variant, seed), top1 in TOP1.items()
        for stage, value in (("teacher", 0.55), ("stage1", 0.53), ("stage2", top1))
    ]


def test_student_t_by_hand() -> None:
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.n, spread.mean, spread.sd) == (3, 2.0, 1.0)
    assert spread.half == pytest.approx(4.302652729911275 / 3**0.5)  # the table's t(0.975, 2)
    assert Spread.of([5.0]) == Spread(1, 5.0, None, None)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_means_gaps_and_paired_leads() -> None:
    a, b = aggregate(make(), rows())
    assert percent(a.metrics["stage2"]["top1"]) == "52.00 ± 2.00"
    assert a.gap is not None and a.gap.mean == pytest.approx(-0.03)
    assert a.lead is None and b.lead is not None
    # Differences -3, -2, -4: mean -3, deviation 1, half width 4.3027 / √3 = 2.4841.
    assert interval(b.lead) == "-3.00 [-5.48, -0.52]"
    assert a.seconds == 30.0


def test_the_tables() -> None:
    text = markdown(make(), aggregate(make(), rows()), "plot.svg")
    lines = text.splitlines()
    assert lines[2] == "| variant | top-1 | minus teacher | minus a, 95 % interval | kB |"
    assert lines[4].startswith("| A | **52.00 ± 2.00** | -3.00 ± 2.00 |")
    assert lines[5].startswith("| B | 49.00 ± 1.73 |") and lines[5].endswith("| 2* |")
    assert "| variant | top-5 | precision | recall | F1 |" in lines
    assert "| variant | teacher top-1 | stage 1 top-1 | training |" in lines
    assert "| A | 55.00 ± 0.00 | 53.00 ± 0.00 | 30 s |" in lines
    assert "`gsb-vit study s.toml`; commit abc; CPU, 1 thread a run" in text and "![Study](plot.svg)" in text


def test_no_table_has_more_than_six_columns() -> None:
    axes = ("data.shots", "data.label_noise", "seed_of_data")
    for count in range(4):
        point = tuple((axis, 2) for axis in axes[:count])
        study = make(axes[:count], None, (point,))
        mixed = [{**one, "commit": one["variant"]} for one in rows(latency_ms=1.0, **dict(point))]
        text = markdown(study, aggregate(study, mixed))
        tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
        assert all(
            line.count("|") <= 7 and line.count("|") == table[0].count("|") for table in tables for line in table
        )
        head = {cell.strip() for table in tables for cell in table[0].split("|")}
        assert {"top-1", "kB", "ms per image", "F1", "stage 1 top-1", "training", "made by"} <= head


def test_rows_of_different_origin_are_told_apart() -> None:
    mixed = [{**one, "commit": "def"} if one["variant"] == "b" else one for one in rows()]
    text = markdown(make(), aggregate(make(), mixed))
    assert "made by" in text and "| (a) |" in text and "| (b) |" in text
    assert "`gsb-vit study s.toml`; CPU, 1 thread a run\n\n(a) commit abc; (b) commit def\n" in text


def test_missing_seeds_show() -> None:
    text = markdown(make(), aggregate(make(), [one for one in rows() if (one["variant"], one["seed"]) != ("b", 2)]))
    assert "| A | 3 of 3 |" in text and "| B | 2 of 3 |" in text
    assert "no run is finished" in markdown(make(), [])


@pytest.mark.parametrize("kind", ["dots", "curves", "bytes"])
def test_every_kind_of_plot_is_drawn_alike_twice(kind: str) -> None:
    points = tuple(((("data.shots", k),)) for k in (2, 5)) if kind == "curves" else ((),)
    study = make(
        ("data.shots",) if kind == "curves" else (), {"curves": "data.shots", "bytes": "bytes"}.get(kind), points
    )
    found = [one for point in points for one in rows(**dict(point))]
    picture = plot_svg(study, aggregate(study, found))
    assert picture == plot_svg(study, aggregate(study, found))
    assert picture is not None and picture.count("<svg") == 1 and plot_svg(study, []) is None


def test_csv_has_a_line_a_run_and_stage() -> None:
    text = csv_text(make(), rows())
    assert len(text.splitlines()) == 1 + 18 and text.splitlines()[0].startswith("variant,title,seed,stage")


def test_markers(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("x\n<!-- study s -->\n<!-- /study s -->\ny \\1\n")
    assert (
        replace_between_markers(document, "s", "\\g<0> new")
        == "x\n<!-- study s -->\n\\g<0> new\n<!-- /study s -->\ny \\1\n"
    )
    for text in ("", "<!-- study s -->", "<!-- /study s --><!-- study s -->"):
        document.write_text(text)
        with pytest.raises(InputError, match="once each"):
            replace_between_markers(document, "s", "new")
    with pytest.raises(InputError, match="cannot be read"):
        replace_between_markers(tmp_path / "none.md", "s", "new")


def test_no_folder_of_this_machine_is_public() -> None:
    assert public_spec("flowers102:/some/where") == "flowers102:ROOT"
    assert public_spec("/home/me/pictures") == "pictures"
    assert public_spec("digits") == "digits"
