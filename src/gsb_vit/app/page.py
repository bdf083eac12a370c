"""One HTML file that holds runtime, models and everything else, opens from disk and asks for nothing."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from gsb_vit.errors import InputError
from gsb_vit.files import HTML_MARK, open_regular, refuse_other, write_atomically
from gsb_vit.runtime.packed_file import read
from gsb_vit.runtime.shipped import locate_model

_SCRIPTS = ("engine.js", "picture.js", "masks.js", "page.js")
_LINKS = re.compile(r"^import .*\n", re.MULTILINE)  # between the scripts, which become one
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_SERVED_LINKS = """<link rel="manifest" href="manifest.webmanifest">
<link rel="icon" href="icon-192.png">
<link rel="apple-touch-icon" href="icon-180.png">"""
_INSTALL = """<p id="news" class="soft" role="status"></p>
  <button id="install" type="button" hidden>Install as an app</button>"""


def write_app(models: Sequence[Path], out: Path) -> int:
    """Write the page for these packed files, or shipped models by name, and return its bytes.

    The page carries the runtime in WebAssembly and every model as it is. Its Content-Security-Policy names its own
    script and style by hash and allows no request. Where there are several models, it offers a choice.

    Raises:
        InputError: for a file that is no packed model, and for an output that is one of them.
    """
    models = [locate_model(path) for path in models]
    refuse_models_as_output(models, [out])
    refuse_other(out, "a page", HTML_MARK)
    page = make_page(read_models(models))
    write_atomically(out, page)
    return len(page)


def refuse_models_as_output(models: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Raise InputError where one of the models would be overwritten."""
    for out in outputs:
        if any(out.exists() and path.exists() and out.samefile(path) for path in models):
            raise InputError(f"{out} is one of the models; name another file, as in -o app.html")


def read_models(models: Sequence[Path]) -> list[tuple[str, bytes]]:
    """Return each packed file's name for people and its bytes. Raises InputError for what is no packed model."""
    return [(name, _read(path)) for name, path in _named(models).items()]


def title_of(models: Sequence[tuple[str, bytes]]) -> str:
    """Return the title of the page for models as :func:`read_models` gives them."""
    return models[0][0] if len(models) == 1 else "What is in this picture?"


def _read(path: Path) -> bytes:
    read(path)  # refuses what the page could not load
    with open_regular(path, "a packed model file") as file:
        return file.read()


def _named(models: Sequence[Path]) -> Mapping[str, Path]:
    """Names for people: the file's, or its folder's where it is called "model" as most are; numbered where equal."""
    found: dict[str, Path] = {}
    for path in models:
        name = path.stem if path.stem != "model" else path.absolute().parent.name or path.stem
        name = name.encode("utf-8", "replace").decode()
        number = 2
        while name in found:
            name, number = f"{name.removesuffix(f' ({number - 1})')} ({number})", number + 1
        found[name] = path
    return found


def make_page(models: Sequence[tuple[str, bytes]], *, served: bool = False) -> bytes:
    """Return the page for models as :func:`read_models` gives them; ``served``: one that is installed from a server."""
    style = text_of("page.css")
    script = "\n".join(_LINKS.sub("", text_of(name)) for name in (*_SCRIPTS, *(("install.js",) if served else ())))
    policy = [
        "default-src 'none'",
        f"script-src {_hash(script)} 'wasm-unsafe-eval'",
        f"style-src {_hash(style)}",
        *(["img-src 'self'", "manifest-src 'self'", "worker-src 'self'"] if served else ["img-src data:"]),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    places = {
        "policy": "; ".join(policy),
        "title": escape(title_of(models)),
        "links": _SERVED_LINKS if served else '<link rel="icon" href="data:,">',
        "install": _INSTALL if served else "",
        "style": style,
        "runtime": _base64(files(__package__).joinpath("gsb_vit.wasm").read_bytes()),
        "models": "\n".join(
            f'<script type="text/plain" class="model" data-name="{escape(name)}">{_base64(data)}</script>'
            for name, data in models
        ),
        "script": script,
    }
    return fill(text_of("page.html"), places)


def fill(text: str, places: Mapping[str, str]) -> bytes:
    """Return the text with every ``{{name}}`` replaced."""
    return _PLACE.sub(lambda place: places[place[1]], text).encode()


def text_of(name: str) -> str:
    """Return one of this folder's text files."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _hash(text: str) -> str:
    """A source expression of CSP for an inline script or style."""
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"
