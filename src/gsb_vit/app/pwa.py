"""The page as an app to install: a folder for any web server, which browsers keep for use without a network."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from gsb_vit.app.icon import icon
from gsb_vit.app.page import fill, make_page, read_models, refuse_models_as_output, text_of, title_of
from gsb_vit.errors import InputError
from gsb_vit.files import HTML_MARK, refuse_other, write_atomically
from gsb_vit.runtime.shipped import locate_model

PAGE, MANIFEST, WORKER = "index.html", "manifest.webmanifest", "sw.js"
_ICONS = {"icon-180.png": (180, True), "icon-192.png": (192, False), "icon-512.png": (512, False)}
_MASKABLE = "icon-maskable-512.png"
_VERSION_DIGITS = 16


def write_pwa(models: Sequence[Path], folder: Path) -> int:
    """Write the page for packed files, or shipped models by name, as an app to install, and return the bytes.

    ``folder`` receives ``index.html``, a web app manifest, icons and a service worker. It is made where it is missing;
    other files in it stay. The page is that of :func:`gsb_vit.app.page.write_app`, except that its
    Content-Security-Policy allows its own manifest, icons and service worker. The worker keeps all files in a cache
    named by their content. It is written last, so that a version is not taken before it is whole.

    Raises:
        InputError: for a file that is no packed model, and for a folder that cannot be made or holds one of the models
            under a name that is needed.
    """
    models = [locate_model(path) for path in models]
    read = read_models(models)
    written = _files(read)
    refuse_models_as_output(models, [folder / name for name in written])
    refuse_other(folder / PAGE, "a page", HTML_MARK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder ({error.strerror}); name another, as in --pwa site") from error
    for name, data in written.items():
        write_atomically(folder / name, data)
    return sum(map(len, written.values()))


def _files(models: Sequence[tuple[str, bytes]]) -> dict[str, bytes]:
    """Name → content, the service worker last."""
    found = {name: icon(size, full_bleed=full) for name, (size, full) in _ICONS.items()}
    found[_MASKABLE] = icon(512, full_bleed=True)
    found[MANIFEST] = _manifest(title_of(models))
    found[PAGE] = make_page(models, served=True)
    return {**found, WORKER: _worker(found)}


def _manifest(name: str) -> bytes:
    icons = [
        {"src": file, "sizes": f"{size}x{size}", "type": "image/png", "purpose": purpose}
        for file, size, purpose in (
            ("icon-192.png", 192, "any"),
            ("icon-512.png", 512, "any"),
            (_MASKABLE, 512, "maskable"),
        )
    ]
    values = {
        "name": name,
        "short_name": name,
        "description": "Names what is in a picture, on this device and offline.",
        "lang": "en",
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#f6f7f9",
        "theme_color": "#0f7a5f",
        "icons": icons,
    }
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def _worker(files: dict[str, bytes]) -> bytes:
    digests = {"./" if name == PAGE else name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    listed = json.dumps(digests, indent=2)
    version = hashlib.sha256(listed.encode()).hexdigest()[:_VERSION_DIGITS]
    return fill(text_of("sw.js"), {"version": version, "files": listed})
