"""Chromium, where this machine has it and Playwright, for tests of the offline page."""

import contextlib
import io

import numpy as np
import pytest
from native_build import found
from needs import skip_without
from PIL import Image

PART = "the offline page in a browser"
NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT_MS = 120_000  # a busy machine


@contextlib.contextmanager
def chromium(*flags):
    """Give a browser that Playwright drives; skip where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason=f"{PART}: without playwright")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(**_options(*flags))
        try:
            yield browser
        finally:
            browser.close()


def _options(*flags):
    program = next(filter(None, map(found, NAMES)), None)
    if program is None:
        skip_without(PART, "chromium")
    return {"executable_path": program, "args": ["--no-sandbox", *flags]}


@contextlib.contextmanager
def profile(browser, folder):
    """Give a page of a second browser that keeps its profile in a folder: apps are installed in no other."""
    context = browser.browser_type.launch_persistent_context(folder, **_options())
    context.set_default_timeout(WAIT_MS)
    try:
        yield context.new_page()
    finally:
        context.close()


def open_app(browser, path, **options):
    """Open the page from disk, offline, and wait until it is ready: → the page and the addresses it asked for."""
    context = browser.new_context(offline=True, **options)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert not wrong
    return page, asked


def picture(size=(90, 61), seed=1):
    """Return a smooth random picture of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 6 + 1, size[0] // 6 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def file_of(image, name="picture.png", **options):
    """Return a picture's file, as Playwright gives it to an input."""
    data = io.BytesIO()
    image.save(data, Image.registered_extensions()[f".{name.split('.')[-1]}"], **options)
    return {"name": name, "mimeType": f"image/{name.split('.')[-1]}", "buffer": data.getvalue()}


def answers(page):
    """Wait for the page's answers: → (name, probability) of each."""
    page.wait_for_selector("#answers li .share")
    items = page.query_selector_all("#answers li")
    return [(item.query_selector("span").inner_text(), float(item.get_attribute("data-probability"))) for item in items]
