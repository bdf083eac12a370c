"""The offline page in Chromium: opened from disk without a network, it says what `gsb-vit predict` says."""

import base64
import math
from dataclasses import replace

import numpy as np
import pytest
from browser import answers, chromium, file_of, open_app, picture
from deciding import write_deciding
from PIL import Image
from random_packed import TINY, random_pictures, write_random_packed
from wasm_build import MODULE

from gsb_vit.app.page import write_app
from gsb_vit.decision import SCORES, Decision, Unknown
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.classifier import load
from gsb_vit.runtime.reference import ReferenceModel

APP = MODULE.parent


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models and a page with both."""
    path = tmp_path_factory.mktemp("app")
    write_random_packed(path / "first <&>.safetensors", seed=5, **dict(TINY, image_size=32, num_classes=7))
    write_random_packed(path / "second.safetensors", seed=6, **dict(TINY, num_classes=3))
    write_app(sorted(path.glob("*.safetensors")), path / "app.html")
    return path


@pytest.fixture
def classifier(folder):
    return load(folder / "first <&>.safetensors", engine="reference")


@pytest.fixture
def opened(browser, folder):
    page, asked = open_app(browser, folder / "app.html")
    yield page
    assert asked == [(folder / "app.html").as_uri()]
    page.context.close()


def check(page, classifier, data, tolerance=1e-12):
    said = classifier.predict(data, top=5)
    found = answers(page)
    assert [name for name, _ in found] == [one.name for one in said]
    assert [share for _, share in found] == pytest.approx([one.probability for one in said], abs=tolerance)


def test_a_picture_from_a_file(opened, classifier):
    file = file_of(picture())
    opened.set_input_files("#file", file)
    check(opened, classifier, file["buffer"])
    best = classifier.predict(file["buffer"])[0].name
    assert best in opened.inner_text("#spoken")
    assert best in opened.get_attribute("#view", "aria-label")


def test_a_photo_taken_on_its_side(opened, classifier):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture((80, 120)).transpose(Image.Transpose.ROTATE_90)
    file = file_of(image, "photo.jpeg", quality=95, subsampling=0, exif=exif)
    opened.set_input_files("#photo", file)
    check(opened, classifier, file["buffer"], tolerance=0.02)  # two JPEG decoders


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_picture_pasted_or_dropped(opened, classifier, kind):
    file = file_of(picture(seed=2))
    opened.evaluate(
        """([kind, text]) => {
            const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "a.png", { type: "image/png" }));
            const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data })
                                           : new DragEvent(kind, { dataTransfer: data });
            document.dispatchEvent(event);
        }""",
        [kind, base64.b64encode(file["buffer"]).decode()],
    )
    check(opened, classifier, file["buffer"])


def test_what_is_no_picture_is_refused_in_words(opened, classifier):
    opened.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    opened.locator("#problem:not(:empty)").wait_for()
    assert "notes.txt is no picture that this browser can read" in opened.inner_text("[role=alert]")
    file = file_of(picture())
    opened.set_input_files("#file", file)
    check(opened, classifier, file["buffer"])
    assert opened.inner_text("#problem") == ""


def test_another_model_answers_for_itself(opened, folder):
    file = file_of(picture(seed=3))
    opened.set_input_files("#file", file)
    assert len(answers(opened)) == 5
    assert opened.locator("#model option").all_inner_texts() == ["first <&>", "second"]
    opened.select_option("#model", label="second")
    opened.locator("#reads", has_text="3 classes").wait_for()
    check(opened, load(folder / "second.safetensors", engine="reference"), file["buffer"])


@pytest.fixture(scope="module", params=SCORES)
def deciding(request, browser, tmp_path_factory):
    """A page whose model calls half of its pictures unknown, the pictures, and which of them these are."""
    folder = tmp_path_factory.mktemp("deciding")
    _, pictures, _, unknown = write_deciding(folder / "model.safetensors", request.param, count=6)
    write_app([folder / "model.safetensors"], folder / "app.html")
    page, _ = open_app(browser, folder / "app.html")
    yield page, load(folder / "model.safetensors", engine="reference"), pictures, unknown
    page.context.close()


def test_a_picture_of_no_class_is_called_none_of_these_as_by_predict(deciding):
    page, classifier, pictures, unknown = deciding
    assert page.inner_text("#strangers") == "5.0 % false alarms"
    for pixels, expected in zip(pictures, unknown, strict=True):
        file = file_of(Image.fromarray(pixels))
        page.evaluate("document.querySelector('#answers').replaceChildren()")
        page.set_input_files("#file", file)
        check(page, classifier, file["buffer"])  # the closest classes, with calibrated probabilities
        assert page.is_visible("#none") == expected == (classifier.predict(file["buffer"], unknown=True) == [])
        best = classifier.predict(file["buffer"])[0].name
        assert page.inner_text("#spoken").startswith(f"None of these. Closest: {best}, " if expected else f"{best}, ")
        assert page.get_attribute("#view", "aria-label") == f"Picture: {'None of these' if expected else best}"


def test_a_file_without_a_threshold_calls_nothing_unknown(opened):
    assert opened.inner_text("#strangers") == "never said"
    opened.set_input_files("#file", file_of(picture()))
    answers(opened)
    assert opened.is_hidden("#none")


def test_masks_are_those_of_the_reference(opened, folder, classifier):
    file = file_of(picture(seed=4))
    opened.set_input_files("#file", file)
    answers(opened)
    before = opened.evaluate("document.querySelector('#view').toDataURL()")
    opened.check("#masks")
    opened.wait_for_selector("#legend li")
    assert opened.evaluate("document.querySelector('#view').toDataURL()") != before
    model = packed_file.read(folder / "first <&>.safetensors")
    trace = ReferenceModel(model).trace(classifier.preprocessing(file["buffer"]))
    for block, head, token in [(None, None, None), (0, 0, 3)]:
        if block is not None:
            for name, index in (("block", block), ("head", head), ("token", token)):
                opened.select_option(f"#{name}", index=index)
        at = [
            opened.evaluate(f"document.querySelector('#{name}').selectedIndex") for name in ("block", "head", "token")
        ]
        masks = trace[f"blocks.{at[0]}.attn.attention_masks"][:, at[1], at[2], model.architecture.prefix_tokens :]
        expected = [
            f"mask {i + 1}: {math.floor(100 * share + 0.5)} % of the patches"
            for i, share in enumerate(masks.mean(axis=1))
        ]
        assert opened.locator("#legend li").all_inner_texts() == expected


def test_the_page_may_ask_nobody(browser, folder):
    context = browser.new_context()  # with a network, so that only the policy is in the way
    page = context.new_page()
    page.goto((folder / "app.html").as_uri())
    refused = page.evaluate(
        """async () => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
            const url = "http://127.0.0.1:9/";
            await fetch(url).catch(() => {});
            new Image().src = url;
            const script = document.createElement("script");
            script.src = url;
            const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: url });
            const frame = Object.assign(document.createElement("iframe"), { src: url });
            const inline = document.createElement("script");
            inline.textContent = "window.ran = true";
            document.body.append(script, link, frame, inline);
            try { new Worker(url); } catch {}
            await new Promise((done) => setTimeout(done, 300));
            return [seen.sort(), window.ran ?? false];
        }"""
    )
    assert set(refused[0]) >= {"connect-src", "img-src", "script-src-elem", "style-src-elem", "frame-src"}
    assert refused[1] is False
    context.close()


def test_two_hundred_pictures_give_the_logits_and_decisions_of_the_engine(browser, tmp_path):
    """Decoded and prepared in the browser, from lossless files."""
    native = pytest.importorskip("gsb_vit._native")
    assert native
    path = tmp_path / "model.safetensors"
    model = write_random_packed(path, seed=8, **dict(TINY, image_size=32, num_classes=11))
    pictures = [file_of(Image.fromarray(one))["buffer"] for one in random_pictures(model.architecture, 150, seed=2)]
    pictures += [file_of(picture((40 + i, 90 - i), seed=i))["buffer"] for i in range(50)]
    classifier = load(path)
    expected = classifier.logits(np.stack([classifier.preprocessing(data) for data in pictures]))
    threshold = float(np.median(expected.max(axis=1)))
    packed_file.write(path, replace(model, decision=Decision(1.3, Unknown("max_logit", threshold, 0.05))))
    page = browser.new_page()
    page.add_script_tag(content=(APP / "engine.js").read_text() + "\nwindow.Model = Model;", type="module")
    page.wait_for_function("() => window.Model !== undefined")
    encoded = [base64.b64encode(data).decode() for data in (MODULE.read_bytes(), path.read_bytes(), *pictures)]
    found = page.evaluate(
        """async ([wasm, model, ...pictures]) => {
            const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
            const loaded = await Model.load(bytes(wasm), bytes(model));
            const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const rows = [];
            for (const text of pictures) {
                const image = await createImageBitmap(new Blob([bytes(text)]), { colorSpaceConversion: "none" });
                [context.canvas.width, context.canvas.height] = [image.width, image.height];
                context.drawImage(image, 0, 0);
                const { data } = context.getImageData(0, 0, image.width, image.height);
                const logits = loaded.logits(loaded.prepare(data, image.width, image.height));
                rows.push([...logits, loaded.isUnknown(logits)]);
            }
            return rows;
        }""",
        encoded,
    )
    assert np.array_equal(np.array([row[:-1] for row in found], np.float32), expected)
    assert [row[-1] for row in found] == load(path).decision.is_unknown(expected).tolist()
    assert 80 <= sum(row[-1] for row in found) <= 120
    page.close()
