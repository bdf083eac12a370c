"""The page as an app to install: its files, and what Chromium makes of them when they are served."""

import hashlib
import io
import json
import re

import numpy as np
import pytest
from browser import WAIT_MS, chromium, profile
from PIL import Image
from random_packed import TINY, write_random_packed
from served import served

from gsb_vit.app.icon import icon
from gsb_vit.app.page import write_app
from gsb_vit.app.pwa import write_pwa
from gsb_vit.cli import main
from gsb_vit.errors import InputError
from gsb_vit.runtime.classifier import load

FILES = {"index.html", "manifest.webmanifest", "sw.js", "icon-180.png", "icon-192.png", "icon-512.png",
         "icon-maskable-512.png"}  # fmt: skip
ACTIVE = "navigator.serviceWorker.ready.then((found) => found.active.state)"
CONTROLLED = "() => navigator.serviceWorker.controller !== null"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "flowers <1>.safetensors"
    write_random_packed(path, seed=5, **dict(TINY, image_size=32, num_classes=7))
    return path


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.safetensors"
    write_random_packed(path, seed=6, **dict(TINY, num_classes=3))
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser):
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    yield context.new_page()
    context.close()


def opened(page, address):
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")


def version(folder):
    return re.search(r'CACHE = PREFIX \+ "([0-9a-f]{16})"', (folder / "sw.js").read_text())[1]


def test_the_command_writes_all_files(model, tmp_path, capsys):
    folder = tmp_path / "deep" / "site"
    with pytest.raises(SystemExit) as stop:
        main(["app", str(model), "--pwa", str(folder), "-o", str(tmp_path / "app.html")])
    assert stop.value.code == 0
    assert "browsers offer to install it" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == FILES
    assert (tmp_path / "app.html").exists()
    manifest = json.loads((folder / "manifest.webmanifest").read_text())
    assert manifest["name"] == "flowers <1>"
    assert manifest["start_url"] == manifest["scope"] == "./"
    for entry in manifest["icons"]:
        image = Image.open(folder / entry["src"])
        assert f"{image.width}x{image.height}" == entry["sizes"]
    page = (folder / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].split("; ")
    assert {"default-src 'none'", "worker-src 'self'", "manifest-src 'self'", "img-src 'self'"} <= set(policy)
    assert "unsafe-inline" not in str(policy)
    assert not re.search(r"\{\{\w+\}\}|^import |\bhttps?://", page + (folder / "sw.js").read_text(), re.MULTILINE)


def test_the_page_from_disk_knows_nothing_of_it(model, tmp_path):
    write_app([model], tmp_path / "app.html")
    page = (tmp_path / "app.html").read_text()
    assert "serviceWorker" not in page
    assert "manifest" not in page
    assert "worker-src" not in page


def test_the_cache_is_named_by_the_content(model, other, tmp_path):
    folder = tmp_path / "site"
    write_pwa([model], folder)
    first, text = version(folder), (folder / "sw.js").read_text()
    for name in FILES - {"sw.js"}:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in text
    write_pwa([model], folder)
    assert (folder / "sw.js").read_text() == text
    (folder / "notes.txt").write_text("kept")
    write_pwa([other], folder)
    assert version(folder) != first
    assert (folder / "notes.txt").read_text() == "kept"


def test_what_cannot_be_written_is_refused(model, tmp_path, capsys):
    with pytest.raises(InputError, match=r"flowers <1>\.safetensors cannot be a folder \(.*\); name another"):
        write_pwa([model], model)
    taken = tmp_path / "index.html"
    model.rename(taken)
    with pytest.raises(InputError, match="is one of the models"):
        write_pwa([taken], tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["app", str(taken)])
    assert stop.value.code == 2
    assert "name the page with -o APP.html, or a folder for a web server with --pwa DIR" in capsys.readouterr().err


@pytest.mark.parametrize("size", [180, 512])
def test_a_maskable_icon_keeps_its_drawing_in_the_safe_circle(size):
    pixels = np.asarray(Image.open(io.BytesIO(icon(size, full_bleed=True))))
    assert (pixels[..., 3] == 255).all()
    drawn = np.argwhere((pixels[..., :3] != pixels[0, 0, :3]).any(axis=2))
    assert len(drawn) > size * size / 10
    assert np.hypot(*(drawn + 0.5 - size / 2).T).max() < 0.4 * size
    rounded = np.asarray(Image.open(io.BytesIO(icon(size, full_bleed=False))))
    assert rounded[0, 0, 3] == 0
    assert rounded[size // 2, 0, 3] == 255


def test_chromium_finds_it_installable_and_the_page_from_disk_not(browser, model, tmp_path):
    write_pwa([model], tmp_path / "site")
    write_app([model], tmp_path / "site" / "plain.html")
    with served(tmp_path / "site") as address, profile(browser, tmp_path / "profile") as page:
        session = page.context.new_cdp_session(page)
        opened(page, address + "plain.html")
        errors = session.send("Page.getInstallabilityErrors")["installabilityErrors"]
        assert "no-manifest" in {error["errorId"] for error in errors}
        opened(page, address)
        page.wait_for_function(CONTROLLED)
        assert page.evaluate(ACTIVE) == "activated"
        assert session.send("Page.getInstallabilityErrors")["installabilityErrors"] == []
        assert session.send("Page.getAppManifest")["errors"] == []
        page.locator("#news", has_text="works offline").wait_for()


def test_it_works_without_its_server(page, model, tmp_path):
    write_pwa([model], tmp_path / "site")
    data = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "PNG")
    with served(tmp_path / "site") as address:
        opened(page, address)
        page.wait_for_function(CONTROLLED)
    for name in ("", "index.html", "?source=home"):
        opened(page, address + name)  # no server is there
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": data.getvalue()})
    page.wait_for_selector("#answers .share")
    best = load(model, engine="reference").predict(data.getvalue())[0].name
    assert page.inner_text("#answers li:first-child span") == best
    assert page.evaluate("fetch('icon-192.png').then(() => true, () => false)") is False  # the policy: nobody is asked
    assert page.evaluate("caches.keys()") == [f"gsb-vit {address} {version(tmp_path / 'site')}"]


def test_a_new_version_takes_the_place_of_the_old_when_it_is_whole(page, model, other, tmp_path):
    folder = tmp_path / "site"
    write_pwa([model], folder)
    update = "navigator.serviceWorker.getRegistration().then((found) => found.update()).then(() => '', String)"
    with served(folder) as address:
        opened(page, address)
        page.wait_for_function(CONTROLLED)
        old, before = (folder / "index.html").read_bytes(), version(folder)
        write_pwa([other], folder)
        new = (folder / "index.html").read_bytes()
        (folder / "index.html").write_bytes(old)  # half of the files are there
        page.evaluate(update)
        page.wait_for_function(
            "async () => { const found = await navigator.serviceWorker.getRegistration();"
            " return !found.installing && !found.waiting; }"
        )
        assert page.evaluate("caches.keys()") == [f"gsb-vit {address} {before}"]
        (folder / "index.html").write_bytes(new)
        page.evaluate(update)
        page.locator("#news", has_text="A newer version").wait_for()
        opened(page, address)
        assert page.inner_text("h1") == "other"
        assert page.evaluate("caches.keys()") == [f"gsb-vit {address} {version(folder)}"]


def test_the_button_installs_when_the_browser_offers_it(page, model, tmp_path):
    write_pwa([model], tmp_path / "site")
    with served(tmp_path / "site") as address:
        opened(page, address)
        assert page.is_hidden("#install")
        page.evaluate(
            """() => {
                const offer = new Event("beforeinstallprompt", { cancelable: true });
                offer.prompt = () => { window.asked = (window.asked ?? 0) + 1; };
                dispatchEvent(offer);
            }"""
        )
        page.click("#install")
        assert page.evaluate("window.asked") == 1
        assert page.is_hidden("#install")
