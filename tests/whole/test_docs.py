"""The documentation holds what it promises: short sentences, narrow tables, links that resolve, commands that run.

Executed here: every ``sh`` block and every ``python`` block of README.md and docs/own-pictures.md, in order, in a
temporary folder with tiny pictures. ``make``, ``pip`` and ``source`` lines are left to CI; what ``make quickstart``
leaves is made by the same commands with one epoch.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import HANG_SECONDS

from gsb_vit.data.datasets import SPECS

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PROSE = [page for page in PAGES if (DOCS / "log") not in page.parents]
MOST_WORDS = 18
MOST_COLUMNS = 6
MOST_LINES_OF_RESULTS = 120
AVOIDED = ("of before", "of then", "is said", "told from zero", "besides", "shall", "lies in")
EPOCHS = [f"{stage}.epochs=1" for stage in ("teacher", "stage1", "stage2")]
SMALL = [*EPOCHS, "model.depth=1", "model.embed_dim=32", "model.num_heads=2", "threads=1"]


def names(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


def read(page):
    return page.read_text(encoding="utf-8")


def without_code(text):
    """The text without fenced blocks and without what a study generates."""
    text = re.sub(r"<!-- study (\S+) -->.*?<!-- /study \1 -->", "", text, flags=re.DOTALL)
    return re.sub(r"^( *)```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def sentences(text):
    """The prose of a page, cut at full stops and list items; code counts as one word."""
    found = []
    kept = [line for line in without_code(text).splitlines() if not re.match(r"\s*(\||#|!\[|<!--|:::|-->)", line)]
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[*-]|\d+\.) ", "\n" + "\n".join(kept)):
        plain = re.sub(r"`[^`]*`", "code", " ".join(paragraph.split()))
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain).replace("*", "")
        found += [part for part in re.split(r"(?<=[.!?])\s+(?=\S)", plain) if re.search(r"[A-Za-z]{2}", part)]
    return found


def words(sentence):
    return len([word for word in sentence.split() if re.search(r"\w", word)])


@pytest.mark.parametrize("page", PROSE, ids=names(PROSE))
def test_sentences_are_short(page):
    lengths = [words(sentence) for sentence in sentences(read(page))]
    if lengths:
        assert sum(lengths) / len(lengths) <= MOST_WORDS, f"{page.name}: mean {sum(lengths) / len(lengths):.1f} words"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_no_avoided_phrase(page):
    text = " ".join(without_code(read(page)).split())
    assert [phrase for phrase in AVOIDED if re.search(rf"\b{phrase}\b", text, re.IGNORECASE)] == []


def test_the_results_fit_on_a_page():
    assert len(read(DOCS / "results.md").splitlines()) <= MOST_LINES_OF_RESULTS


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", DOCS / "results.md", *sorted((DOCS / "studies").glob("*.md"))], ids=lambda p: p.stem
)
def test_tables_are_narrow(page):
    rows = [line for line in read(page).splitlines() if line.startswith("|")]
    assert rows and max(len(re.findall(r"(?<!\\)\|", row)) for row in rows) <= MOST_COLUMNS + 1


def anchors(page):
    """The anchors of a page's headings, as Markdown's table of contents makes them."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", without_code(read(page)), re.MULTILINE):
        plain = re.sub(r"`", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title))
        plain = re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{page.name}: {target}"
        if anchor:  # covers the glossary, too: a term that is linked exists
            assert anchor in anchors(file), f"{page.name}: {target}; there are {sorted(anchors(file))}"


def test_every_page_is_in_the_navigation():
    navigation = read(ROOT / "mkdocs.yml")
    assert [page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).as_posix() not in navigation] == []


GLOSSED = ("teacher", "twin", "stage 1, stage 2", "superposition", "plane", "group", "threshold scope", "STE", "scheme")
GLOSSED += ("latent weight", "backend", "BiT", "W1A1", "BOP, FLOP, OP", "word", "packed file", "parity", "run", "study")


@pytest.mark.parametrize("term", GLOSSED)
def test_the_glossary_explains(term):
    titles = re.findall(r"^### (.+)$", read(DOCS / "glossary.md"), re.MULTILINE)
    assert len(titles) == len({title.lower() for title in titles})
    assert any(title.lower().startswith(term.lower()) for title in titles)


def test_studies_keep_their_rows_beside_them():
    for page in (DOCS / "studies").glob("*.md"):
        for name in re.findall(r"<!-- study (\S+) -->", read(page)):
            waiting = "\nNo run is finished yet.\n" in read(page)
            assert name == page.stem
            for kind in ("svg", "json") if name != "schemes" else ("svg",):
                assert (DOCS / "studies" / f"{name}.{kind}").is_file() != waiting
            assert (
                f"recipes/studies/{name}.toml" in read(page) and (ROOT / "recipes/studies" / f"{name}.toml").is_file()
            )
            assert f"--write docs/studies/{name}.md" in read(page)


# The commands of README and tutorial.


def blocks(page):
    return re.findall(r"^```(sh|python)\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE)


def commands(block):
    """The lines of a shell block without comments, continued lines joined; what CI runs is left out."""
    for line in block.replace("\\\n", " ").splitlines():
        found = shlex.split(line, comments=True)
        if found and found[0] not in ("make", "pip", "source"):
            yield found


def has_engine():
    return importlib.util.find_spec("gsb_vit._native") is not None


def write_pictures(folder):
    """Three classes that a model of one epoch may mistake: 16 × 16, ten pictures each; four more without a class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("daisy", "rose", "tulip")):
        (folder / "pictures" / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
            pixels[..., label] += 120
            Image.fromarray(pixels).save(folder / "pictures" / name / f"{index:04}.png")
    (folder / "more").mkdir()
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "more" / f"{index}.png")
    Image.fromarray(pixels).save(folder / "photo.jpg")


def run(folder, arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-800:]}\n{done.stderr[-2000:]}"
    return done.stdout


def run_command(folder, command):
    """A ``gsb-vit`` line, made small: one epoch, a narrow model, the reference engine where there is no extension."""
    assert command[0] == "gsb-vit", command
    if command[1] == "train":
        settings = [*SMALL, "model.img_size=16", "model.patch_size=8", "data.crop_ratio=1.0"]
        command = [*command, *(word for setting in settings for word in ("--set", setting))]
        if "--epochs" in command:
            command[command.index("--epochs") + 1] = "1"
    if command[1] in ("export", "evaluate", "predict") and not has_engine():
        command = [*command, "--engine", "reference"]
    if command[1] == "bench":  # tests/bench times models; here only the line is checked
        return run(folder, ["-m", "gsb_vit", "bench", "--help"])
    return run(folder, ["-m", "gsb_vit", *command[1:]])


def run_python(folder, code):
    if not has_engine():
        code = "import functools, gsb_vit\ngsb_vit.load = functools.partial(gsb_vit.load, engine='reference')\n" + code
    return run(folder, ["-c", code])


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Where a reader stands after ``make quickstart``, with a folder of pictures."""
    pytest.importorskip("timm")
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("reader")
    write_pictures(folder)
    settings = [word for setting in (*SMALL, "data.shots=4") for word in ("--set", setting)]
    train = ["train", "--data", "digits", "--recipe", "quickstart", "--out", "runs/quickstart", *settings]
    run(folder, ["-m", "gsb_vit", *train])
    run_command(folder, shlex.split("gsb-vit export runs/quickstart -o runs/quickstart/model.safetensors --most 20"))
    return folder


# Every command is a process, as a reader would start it; most load PyTorch.
@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/own-pictures.md"])
def test_the_commands_of_a_page_run_in_order(reader, page):
    for file in reader.glob("mine.safetensors"):
        file.unlink()
    if (reader / "runs" / "mine").exists():
        (reader / "runs" / "mine").rename(reader / "runs" / f"before-{page.replace('/', '-')}")
    said = {}
    for language, block in blocks(ROOT / page):
        if language == "python":
            assert re.search(r"\d", run_python(reader, block))
            continue
        for command in commands(block):
            said[command[1]] = run_command(reader, command)
    assert {"train", "export", "evaluate", "predict", "summary", "bench"} <= said.keys()
    assert "top-1" in said["evaluate"] and "pictures" in said["export"]


# Made small: what trains has one epoch and few pictures.
SMALL_PYTHON = """
import functools, gsb_vit, gsb_vit.sklearn, sklearn.datasets
SMALL = {settings!r}
real_fit, real_load_digits = gsb_vit.fit, sklearn.datasets.load_digits
def small_fit(*arguments, settings=None, **others):
    return real_fit(*arguments, settings={{**(settings or {{}}), **SMALL}}, **others)
gsb_vit.fit = gsb_vit.sklearn.fit = small_fit
def few_digits():
    digits = real_load_digits()
    digits.images, digits.target = digits.images[:90], digits.target[:90]
    return digits
sklearn.datasets.load_digits = few_digits
"""


# Seven trainings in one process.
@pytest.mark.slow
def test_the_python_page_runs_in_order(reader):
    pytest.importorskip("sklearn", minversion="1.6")
    settings = {key: int(value) for key, value in (setting.split("=") for setting in SMALL)}
    settings |= {"model.img_size": 16, "model.patch_size": 8, "data.crop_ratio": 1.0}
    settings |= {"model.tokenizer_channels": [], "model.global_pool": "token"}
    code = SMALL_PYTHON.format(settings=settings)
    if not has_engine():
        code += "gsb_vit.sklearn.GSBClassifier.__init__.__kwdefaults__['engine'] = 'reference'\n"
        code += "for method in ('model', 'export', 'report'):\n"
        code += "    getattr(gsb_vit.Run, method).__kwdefaults__['engine'] = 'reference'\n"
    (reader / "runs" / "mine").exists() and (reader / "runs" / "mine").rename(reader / "runs" / "before-python")
    said = run_python(reader, code + "\n".join(block for _, block in blocks(DOCS / "python.md")))
    for name in ("<Classifier gsb_vit", "3 classes of pictures", "0009.png"):
        assert name in said
    assert (reader / "runs" / "mine" / "report.html").is_file() and (reader / "mine.safetensors").is_file()


def test_the_two_commands_of_the_readme():
    text = read(ROOT / "README.md")
    assert "make quickstart" in text and "make test" in text and len(text.splitlines()) <= 110
    targets = re.findall(r"^([a-z]+):.*##", read(ROOT / "Makefile"), re.MULTILINE)
    assert {"quickstart", "test", "docs"} <= set(targets)


def test_the_readme_names_every_data_spec():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"`{spec}`" in text for spec in SPECS)
    assert set(re.findall(r"`([a-z0-9-]+:ROOT)`", text)) <= set(SPECS)
