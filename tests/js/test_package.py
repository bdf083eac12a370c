"""The npm package: packed, installed into an empty project, and used from Node, from a page and from TypeScript."""

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from deciding import write_deciding
from native_build import run
from node import run_script
from npm import JS, installed, project
from PIL import Image
from random_packed import TINY, write_random_packed
from served import served
from wasm_build import MODULE

import gsb_vit
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.reference import ReferenceModel

HERE = Path(__file__).parent
LIBRARY = "node_modules/gsb-vit"
TYPESCRIPT = "5.9.3"
PART = "the npm package"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A project with nothing but the package, and the script that uses it."""
    folder = project(tmp_path_factory.mktemp("npm"))
    shutil.copy(HERE / "use.mjs", folder)
    return folder


@pytest.fixture
def node(place, tmp_path):
    return lambda task, **job: run_script(place / "use.mjs", {"task": task, "wasm": MODULE, **job}, tmp_path)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    write_random_packed(path, seed=2, **dict(TINY, image_size=(24, 32), num_classes=6))
    return path


def pictures(folder, sizes=((40, 30, 4), (32, 24, 3), (7, 90, 1), (16, 16, 3))):
    """Write raw pictures; return what a job says of them, and the same for Python."""
    rng = np.random.default_rng(5)
    jobs, images = [], []
    for index, (width, height, channels) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        path = folder / f"{index}.raw"
        pixels.tofile(path)
        jobs.append({"path": path, "width": width, "height": height})
        images.append(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))
    return jobs, images


def test_nothing_is_kept_twice_and_the_tarball_holds_what_the_page_uses(place):
    held = {path.relative_to(place / LIBRARY).as_posix() for path in (place / LIBRARY).rglob("*") if path.is_file()}
    own = {"index.js", "node.js", "model.js", "index.d.ts", "package.json", "README.md"}
    assert held == own | {"LICENSE", "dist/engine.js", "dist/gsb_vit.wasm"}
    for name in ("engine.js", "gsb_vit.wasm"):
        assert (place / LIBRARY / "dist" / name).read_bytes() == (MODULE.parent / name).read_bytes()
    assert (place / LIBRARY / "LICENSE").read_bytes() == (JS.parent / "LICENSE").read_bytes()
    [file] = place.parent.glob("*.tgz")
    with tarfile.open(file) as tar:
        assert {f"package/{name}" for name in held} == set(tar.getnames())
    assert {"dist/", "js/LICENSE"} <= set((JS.parent / ".gitignore").read_text().split())


def test_its_version_is_that_of_the_python_package():
    assert json.loads((JS / "package.json").read_text())["version"] == gsb_vit.__version__


def test_node_gives_the_logits_answers_and_masks_of_the_reference(node, model, tmp_path):
    jobs, images = pictures(tmp_path)
    found = node("answer", model=model, pictures=jobs, top=3)
    classifier = load(model, engine="reference")
    prepared = np.stack([classifier.preprocessing(image) for image in images])
    assert found["classes"] == list(classifier.class_names)
    assert (found["height"], found["width"]) == (24, 32)
    assert found["size"] == model.stat().st_size
    assert found["threshold"] is None
    assert found["isModel"]
    logits = np.array([one["logits"] for one in found["said"]], np.float32)
    assert logits.tobytes() == classifier.logits(prepared).tobytes()
    for one, image, pixels in zip(found["said"], images, prepared, strict=True):
        expected = classifier.predict(image, top=3)
        assert [answer["name"] for answer in one["answers"]] == [answer.name for answer in expected]
        shares = [answer.probability for answer in expected]
        assert [answer["probability"] for answer in one["answers"]] == pytest.approx(shares, rel=1e-12)
        masks = ReferenceModel(read(model)).trace(pixels)["blocks.0.attn.attention_masks"]
        assert one["masks"]["shape"] == [1, *masks.shape]
        assert one["masks"]["ones"] == masks.sum()
        assert one["masks"]["bytes"] == masks.size
        assert one["masks"]["grid"] == {"rows": 3, "columns": 4}
        assert one["masks"]["prefixTokens"] == 2


def test_a_picture_of_no_class_gets_no_answer(node, tmp_path):
    decision, pixels, _, unknown = write_deciding(tmp_path / "model", count=10)
    jobs = []
    for index, picture in enumerate(pixels):
        picture.tofile(tmp_path / f"{index}.raw")
        jobs.append({"path": tmp_path / f"{index}.raw", "width": picture.shape[1], "height": picture.shape[0]})
    found = node("answer", model=tmp_path / "model", pictures=jobs, unknown=True)
    assert [not one["answers"] for one in found["said"]] == unknown.tolist()
    threshold = {"score": "max_logit", "threshold": decision.unknown.threshold, "falseAlarmRate": 0.05}
    assert found["threshold"] == threshold


def test_a_model_comes_from_a_path_a_url_or_bytes(node, model, tmp_path):
    [job, *_], [image, *_] = pictures(tmp_path)
    with served(tmp_path) as address:
        found = node("sources", model=model, picture=job, http=address + model.name)
    classifier = load(model, engine="reference")
    expected = classifier.logits(classifier.preprocessing(image)[None])[0].tolist()
    ways = {"path", "url", "text", "bytes", "buffer", "blob", "http", "module", "wasm", "inside"}
    assert found == dict.fromkeys(ways, expected)


def test_refusals_are_exceptions_of_one_line(node, model, tmp_path):
    [job, *_], _ = pictures(tmp_path)
    with served(tmp_path) as address:
        said = node("refuse", model=model, missing=tmp_path / "missing", picture=job, http=address)
    expected = {
        "missing": r"ModelError: .*/missing cannot be read \(ENOENT: .*\)",
        "http": r"ModelError: http.*/nothing cannot be read \(HTTP status 404\)",
        "noModel": r"ModelError: .*header is longer than the file.*",
        "number": r"TypeError: a model is loaded from a path, a URL, a Blob or the bytes .*, not Number",
        "wasm": r"ModelError: .*/missing cannot be read \(ENOENT: .*\)",
        "nothing": r"TypeError: a picture is \{ data, width, height \} .*, not undefined",
        "array": r"TypeError: a picture is .*, not one with data in Array",
        "size": r"RangeError: 4800 bytes are no grey, RGB or RGBA picture of 41 × 30 pixels",
        "top": r"RangeError: top 1\.5 must be a whole number of at least 1",
        "unknown": r"ModelError: the model has no threshold for unknown pictures; .*",
        "freed": r"ModelError: the model was freed; load it again",
    }
    assert said.pop("again") is None
    assert said.keys() == expected.keys()
    for name, text in said.items():
        assert re.fullmatch(expected[name], text), text


def test_a_page_imports_it_as_a_module(place, model, tmp_path):
    _, images = pictures(tmp_path, [(40, 30, 3), (50, 24, 3)])
    for index, image in enumerate(images):
        image.save(place / f"{index}.png")
    shutil.copy(model, place / "model.safetensors")
    names = '{"imports": {"gsb-vit": "/node_modules/gsb-vit/index.js"}}'
    (place / "index.html").write_text(f'<!doctype html><script type="importmap">{names}</script>')
    with chromium() as browser, served(place) as address:
        page = browser.new_page()
        page.goto(address)
        found = page.evaluate(
            """async (names) => {
                const { load } = await import("gsb-vit");
                const model = await load("model.safetensors");
                const said = [];
                for (const name of names) {
                    const blob = await (await fetch(name)).blob();
                    const image = await createImageBitmap(blob, { colorSpaceConversion: "none" });
                    const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
                    context.drawImage(image, 0, 0);
                    said.push([...model.logits(context.getImageData(0, 0, image.width, image.height))]);
                }
                const refused = await load("nothing").catch((error) => error.message);
                return [said, refused];
            }""",
            ["0.png", "1.png"],
        )
    classifier = load(model, engine="reference")
    expected = classifier.logits(np.stack([classifier.preprocessing(image) for image in images]))
    assert np.array_equal(np.array(found[0], np.float32), expected)
    assert found[1] == "nothing cannot be read (HTTP status 404)"


def test_the_types_are_those_of_what_is_exported(place):
    modules = installed("the types of the npm package", "typescript", TYPESCRIPT)
    shutil.copy(HERE / "consumer.mts", place)
    options = ["--noEmit", "--strict", "--target", "es2022", "--lib", "es2022,dom", "--skipDefaultLibCheck"]
    run("node", modules / "typescript/bin/tsc", *options, "--module", "nodenext", "consumer.mts", cwd=place)


def test_every_member_is_declared(place, tmp_path):
    """And nothing that is not there."""
    script = place / "members.mjs"
    script.write_text(
        'import { readFileSync } from "node:fs"; import * as all from "gsb-vit";\n'
        'const { model } = JSON.parse(readFileSync(process.argv[2], "utf8"));\n'
        "const names = [...Object.keys(await all.load(model)), ...Object.getOwnPropertyNames(all.Model.prototype)];\n"
        "console.log(JSON.stringify([Object.keys(all), names]));\n"
    )
    write_random_packed(tmp_path / "model", seed=2, **TINY)
    exported, members = run_script(script, {"model": tmp_path / "model"}, tmp_path)
    text = (JS / "index.d.ts").read_text()
    declared = re.search(r"export class Model \{(.*?)^\}", text, re.MULTILINE | re.DOTALL)[1]
    found = re.findall(r"^  (?:private |readonly )?(\w+)[(:]", declared, re.MULTILINE)
    assert sorted(found) == sorted(members)
    assert sorted(re.findall(r"^export (?:class|function) (\w+)", text, re.MULTILINE)) == sorted(exported)
