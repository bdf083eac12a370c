"""How the page is for people: a camera, a keyboard, a screen reader, a phone, the dark."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import answers, chromium, file_of, open_app, picture
from npm import installed
from PIL import Image, ImageOps
from random_packed import TINY, random_packed, write_random_packed
from y4m import write_y4m

from gsb_vit.app.page import write_app
from gsb_vit.data.preprocess import Preprocessing
from gsb_vit.decision import Decision, Unknown
from gsb_vit.runtime import packed_file
from gsb_vit.runtime.classifier import load

AXE = "4.11.0"
LONG = ("an honest name of some ordinary words for a class", "Taumatawhakatangihangakoauauotamateaturipukakapikimaunga")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DESK = {"viewport": {"width": 1280, "height": 800}}
CUT = """() => {
    const isShown = (one) => one.checkVisibility() && !one.closest(".hidden") && one.tagName !== "INPUT";
    const shown = [...document.querySelectorAll("body *")].filter(isShown);
    const name = (one) => `${one.tagName}#${one.id}.${one.className}`;
    const wide = shown.filter((one) => one.clientWidth > 0 && one.scrollWidth > one.clientWidth + 1);
    const out = shown.filter((one) => {
        const box = one.getBoundingClientRect();
        const room = (one.closest("section, header") ?? document.documentElement).getBoundingClientRect();
        return box.right > room.right + 0.5 || box.left < room.left - 0.5;
    });
    return [...wide, ...out].map(name);
}"""
FOCUS = """() => {
    const one = document.activeElement;
    const frame = one.closest("label.button") ?? one;
    return [one.id, getComputedStyle(frame).outlineStyle !== "none"];
}"""


@pytest.fixture(scope="module")
def photos():
    """Two real photos of 640 × 427 pixels that scikit-learn brings."""
    datasets = pytest.importorskip("sklearn.datasets", reason="real photos for the fake camera: without scikit-learn")
    return [Image.fromarray(one) for one in datasets.load_sample_images().images]


@pytest.fixture(scope="module")
def browser(photos, tmp_path_factory):
    film = tmp_path_factory.mktemp("film") / "photos.y4m"
    write_y4m(film, photos, frames=3)
    camera = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
    with chromium(*camera, f"--use-file-for-fake-video-capture={film}") as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages whose models call everything unknown, or nothing; one with names that are too long for a phone."""
    path = tmp_path_factory.mktemp("use")
    model = random_packed(seed=3, **dict(TINY, image_size=(24, 32), num_classes=6))
    squash = Preprocessing(size=(24, 32), resize="squash")
    for name, threshold in (("known", -1e9), ("unknown", 1e9)):
        decision = Decision(1.5, Unknown("max_logit", threshold, 0.05))
        packed_file.write(path / f"{name}.safetensors", replace(model, decision=decision, preprocessing=squash))
        write_app([path / f"{name}.safetensors"], path / f"{name}.html")
    names = (*LONG, *(f"class {number}" for number in range(4)))
    long = path / f"{LONG[1]}.safetensors"
    packed_file.write(long, replace(model, class_names=names, decision=decision))
    write_random_packed(path / "second.safetensors", seed=6, **TINY)
    write_app([long, path / "second.safetensors"], path / "long.html")
    return path


@pytest.fixture
def opened(browser, folder):
    """Open a page of the folder; all are closed at the end."""
    pages = []

    def call(name, **options):
        page, _ = open_app(browser, folder / f"{name}.html", **options)
        pages.append(page)
        return page

    yield call
    for page in pages:
        page.context.close()


def test_every_frame_of_the_camera_gets_the_answer_of_python(opened, folder, photos):
    page = opened("known")
    classifier = load(folder / "known.safetensors", engine="reference")
    page.click("#camera")
    page.locator("#rate", has_text="frames/s").wait_for()
    seen = set()
    while len(seen) < len(photos):
        url, names, shares = page.evaluate(
            """() => new Promise((done) => new MutationObserver((_, observer) => {
                observer.disconnect();
                queueMicrotask(() => done([
                    document.querySelector("#view").toDataURL(),
                    [...document.querySelectorAll("#answers li span:not(.share)")].map((one) => one.textContent),
                    [...document.querySelectorAll("#answers li")].map((one) => Number(one.dataset.probability)),
                ]));
            }).observe(document.querySelector("#answers"), { childList: true }))"""
        )
        frame = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
        said = classifier.predict(frame, top=5)
        assert names == [one.name for one in said]
        assert shares == pytest.approx([one.probability for one in said], abs=1e-12)
        small = np.asarray(frame.resize((16, 12)), float)
        shown = [np.asarray(ImageOps.fit(photo, (640, 480)).resize((16, 12)), float) for photo in photos]
        apart = [np.abs(photo - small).mean() for photo in shown]
        assert min(apart) < 8
        seen.add(int(np.argmin(apart)))
    page.click("#camera")
    assert page.get_attribute("#camera", "aria-pressed") == "false"
    assert page.evaluate("document.querySelector('#video').srcObject") is None


def test_all_is_done_with_the_keyboard_alone(opened):
    page = opened("known")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUS) == ["file", True]
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(file_of(picture()))
    answers(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUS) == ["masks", True]
    page.keyboard.press("Space")
    page.wait_for_selector("#legend li")
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUS))
    assert reached == [["block", True], ["head", True], ["token", True], ["model", True]]
    page.keyboard.press("Shift+Tab")
    before = page.evaluate("document.querySelector('#view').toDataURL()")
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('#token').selectedIndex") == 0
    page.keyboard.press("End")
    assert page.evaluate("document.querySelector('#view').toDataURL()") != before
    page.focus("#camera")
    page.keyboard.press("Space")
    page.locator("#rate", has_text="frames/s").wait_for()
    page.keyboard.press("Enter")
    page.wait_for_selector("#camera[aria-pressed=false]")


@pytest.mark.parametrize(("name", "scheme"), [("known", "dark"), ("unknown", "light")])
def test_axe_finds_nothing_to_mend(opened, name, scheme):
    axe = (installed("the page's accessibility", "axe-core", AXE) / "axe-core" / "axe.min.js").read_text()
    page = opened(name, color_scheme=scheme, **PHONE)
    page.evaluate(axe)
    steps = {
        "empty": lambda: None,
        "answer": lambda: (page.set_input_files("#file", file_of(picture())), answers(page)),
        "masks": lambda: (page.check("#masks"), page.wait_for_selector("#legend li")),
        "camera": lambda: (page.click("#camera"), page.locator("#rate", has_text="frames/s").wait_for()),
        "refused": lambda: page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no"}),
    }
    for step, action in steps.items():
        action()
        found = page.evaluate("axe.run().then((said) => said.violations.map((one) => [one.id, one.nodes[0].html]))")
        assert found == [], step
    page.locator("#problem:not(:empty)").wait_for()
    assert page.is_visible("#none") is (name == "unknown")


def test_a_screen_reader_hears_what_matters(opened):
    page = opened("unknown")
    page.set_input_files("#file", file_of(picture()))
    best = answers(page)[0][0]
    assert page.get_by_role("heading", name="unknown").is_visible()
    assert page.get_by_role("region", name="Answers").is_visible()
    assert page.get_by_role("img", name="Picture: None of these").is_visible()
    assert page.get_by_role("status").inner_text().startswith(f"None of these. Closest: {best}, ")
    assert page.get_by_role("button", name="Live camera").get_attribute("aria-pressed") == "false"
    assert page.get_by_role("combobox", name="Model").is_visible()
    assert page.get_by_role("checkbox", name="Show attention masks").is_visible()
    assert page.get_by_label("Open a picture").get_attribute("type") == "file"
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no"})
    page.get_by_role("alert").filter(has_text="a.txt is no picture").wait_for()


@pytest.mark.parametrize(("device", "scheme"), [(PHONE, "dark"), (DESK, "light")], ids=["phone", "desk"])
def test_nothing_is_cut_off(opened, device, scheme):
    page = opened("long", color_scheme=scheme, **device)
    assert page.evaluate(CUT) == []
    page.set_input_files("#file", file_of(picture()))
    assert {name for name, _ in answers(page)} & set(LONG)
    page.check("#masks")
    page.wait_for_selector("#legend li")
    assert page.is_visible("#none")
    assert page.evaluate(CUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= device["viewport"]["width"]
    assert page.is_visible("label:has(#photo)") is (device is PHONE)
    red, green, blue = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).color")))
    assert (red + green + blue > 380) is (scheme == "dark")  # the colour of the text
