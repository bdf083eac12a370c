"""The report: one file, nothing fetched, and what it shows is what the run and the packed model say."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from random_packed import random_packed

pytest.importorskip("torch")
pytest.importorskip("jinja2")

from gsb_vit.bench.peers.timing import Measurement
from gsb_vit.data.datasets import LabelledPictures
from gsb_vit.errors import InputError
from gsb_vit.report.charts import Band, Line, bars, confusion_chart, line_chart, png_uri, ticks
from gsb_vit.report.masks import mask_rows
from gsb_vit.report.page import write_report
from gsb_vit.runtime import packed_file

STAGES = ("teacher", "stage1", "stage2")


@pytest.fixture
def run(tmp_path):
    """A finished run of three stages with a packed model and held-out pictures."""
    model = random_packed(
        seed=2, image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, mlp_hidden=40, num_classes=3
    )
    packed_file.write(tmp_path / "model.safetensors", model)
    lines = [
        {
            "stage": stage,
            "epoch": epoch,
            "train_loss": 2.0 / epoch,
            "train_top1": 0.2 * epoch,
            "validation_loss": 2.1 / epoch,
            "validation_top1": 0.19 * epoch,
        }
        for stage in STAGES
        for epoch in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    test = {"n": 12, "top1": 0.8125, "top5": 1.0, "macro_precision": 0.7, "macro_recall": 0.6, "macro_f1": 0.5}
    stages = {stage: {"test": test, "chosen_epoch": 3, "seconds": 4.0} for stage in STAGES}
    (tmp_path / "summary.json").write_text(json.dumps({"stages": stages}))
    (tmp_path / "run.json").write_text(json.dumps({"data": "a <b> & c", "versions": {"torch": "2.x"}}))
    (tmp_path / "recipe.toml").write_text("[stage1]\nepochs = 3\n")
    rng = np.random.default_rng(0)
    pictures = tuple(rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    return tmp_path, LabelledPictures(pictures, np.arange(12) % 3)


class Page(HTMLParser):
    """Collects what a page would fetch, and whether its tags are closed."""

    VOID = frozenset({"meta", "img", "br", "rect", "line", "circle"})

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.images = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href", "data", "action")]
        self.images += tag == "img"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def write(run, **more):
    folder, test = run
    return write_report(folder, packed=folder / "model.safetensors", test=test, engine="reference", **more)


def test_one_file_that_fetches_nothing(run):
    path = write(run)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    kinds = ("data:image/png;base64,", "data:image/jpeg;base64,")
    assert page.sources and all(source.startswith(kinds) for source in page.sources)
    assert not re.search(r"url\(|@import|<script|<link|https?://", text)
    assert page.images >= 12 + 7
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


def test_it_shows_the_runs_figures(run):
    bench = [
        Measurement("gsb-vit", "1-bit", 1, 1, 0.05, median_ms=0.25, peak_mb=40.0),
        Measurement("torch", "fp32", 1, 1, 0.5, problem="invalid: scattered"),
    ]
    text = write(run, bench=bench, parity={"top-1 agreement": "99.9 %"}).read_text(encoding="utf-8")
    assert text.count("81.2 %") >= 6  # tiles and table, three stages each
    assert "0.25 ms" in text and "4,000" in text and "invalid: scattered" in text
    assert "top-1 agreement 99.9 %" in text
    assert "a &lt;b&gt; &amp; c" in text and "<b> &" not in text
    assert "epochs = 3" in text
    assert "prefers-color-scheme: dark" in text


def test_a_run_that_is_not_finished_is_told(run):
    (run[0] / "summary.json").unlink()
    with pytest.raises(InputError, match=r"summary\.json: cannot be read .*give a file of a run"):
        write(run)
    assert not (run[0] / "report.html").exists()


def test_masks_are_the_reference_engines(run):
    model = packed_file.read(run[0] / "model.safetensors")
    rows = mask_rows(model, np.asarray(run[1].sources[0]), count=2)
    assert [row.label.split(",")[0] for row in rows] == ["Block 1 of 2", "Block 2 of 2"]
    for row in rows:
        assert len(row.panels) == 2 + model.architecture.attention_groups + 2
        shares = [float(re.search(r": (\d+) %", panel.caption)[1]) for panel in row.panels if "mask" in panel.caption]
        assert len(shares) == model.architecture.attention_groups
        # A higher threshold never holds more entries (the first mask has a limit of its own kind).
        assert shares[1] >= shares[2]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.93, 0.991), (-3.0, 250.0), (1e-4, 3e-4)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 8
    assert all(low <= tick <= high for tick in found)
    steps = np.diff(found)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:e}"[0] in "125"


def test_lines_scale_and_skip_what_is_not_finite():
    chart = line_chart(
        [Line("loss", "stage1", [(0, 1.0), (1, float("nan")), (2, 3.0)])], [Band("one", "stage1", 0, 2)], title="t"
    )
    (points,) = re.findall(r'points="([^"]+)"', chart)
    (left, bottom), (right, top) = (tuple(map(float, point.split(","))) for point in points.split())
    assert left < right and bottom > top
    assert "nan" not in chart


def test_text_in_charts_is_escaped():
    chart = confusion_chart([[1, 0], [2, 3]], ["<i>", "b & c"])
    assert "<i>" not in chart and "&lt;i&gt;" in chart and "b &amp;" in chart
    assert chart.count('class="count') == 3
    assert "<script>" not in bars([("<script>", "", 1.0, "x")])


def test_pictures_keep_their_pixels():
    import base64
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    data = base64.b64decode(png_uri(pixels, at_least=10).partition(",")[2])
    image = np.asarray(Image.open(io.BytesIO(data)))
    assert image.shape == (10, 8, 3)
    assert (image[::2, ::2] == pixels).all()
