"""Packed models on the Hugging Face hub, through huggingface_hub (the extra ``hub``), which is imported when needed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError, shown
from gsb_vit.files import open_regular

from .hub_card import model_card
from .packed_file import read
from .shipped import HUB_PREFIX as PREFIX

MODEL_FILE = "model.safetensors"
CARD_FILE = "README.md"
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_BLOCK = 1 << 20
_LIBRARIES = ("huggingface_hub", "httpx", "httpcore", "requests", "urllib3")  # or, as in httpx2, with a number
# What the library answers, and the way out; of several that fit an error, the first.
_REASONS = {
    "GatedRepoError": "asks for an agreement; agree on its page, and log in with `hf auth login`",
    "RepositoryNotFoundError": "is no model there, or a private one; check the name, and log in with `hf auth login`",
    "RevisionNotFoundError": "has no such revision; leave out @REVISION for the newest",
    "RemoteEntryNotFoundError": f"holds no {MODEL_FILE}; gsb-vit push puts one there",
    "LocalEntryNotFoundError": "is not in the cache, and the hub cannot be reached; go online, or give a file",
    "OfflineModeIsEnabled": "cannot be reached: HF_HUB_OFFLINE is set; unset it, or give a file",
    "HFValidationError": "is no name of a model; give hf:USER/NAME",
}


def download(name: str | os.PathLike[str]) -> Path:
    """Return the packed file of ``hf:USER/NAME`` or ``hf:USER/NAME@REVISION``, from the cache where it is up to date.

    Endpoint and cache are huggingface_hub's: ``HF_ENDPOINT``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``. The file's bytes
    are compared with the digest by which the hub names them, on every call.

    Raises:
        InputError: the library is missing, the name is none, the hub cannot be reached and the cache holds no such
            file, or the file is damaged.
    """
    text = os.fsdecode(name)
    repository, at, revision = text.removeprefix(PREFIX).partition("@")
    if not _NAME.fullmatch(repository) or (at and not revision):
        raise InputError(f"{text} is no name of a model on the hub; give hf:USER/NAME or hf:USER/NAME@REVISION")
    with _hub(text) as library:
        path = library.hf_hub_download(repository, MODEL_FILE, revision=revision or None, **_places())
    found = Path(path)
    _check(found, text)
    return found


def push_to_hub(
    model: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    metrics: Mapping[str, float] | None = None,
    message: str | None = None,
) -> str:
    """Put a packed file and a model card on the hub, in one commit, and return the address of the model.

    The repository ``USER/NAME`` is made where it does not exist. The card is written anew: what the network is, its
    classes, what it was trained on, how to load it; ``metrics`` are those of its test, by the names of ``evaluate``.
    ``license`` is the hub's name of one, as in ``"mit"``. Digests of training pictures in the file go with it: export
    with ``keep_digests=False`` to leave them out.

    Raises:
        InputError: ``model`` is no packed file, the library is missing, or the hub refuses or cannot be reached.
    """
    if not isinstance(repository, str) or not _NAME.fullmatch(repository.removeprefix(PREFIX)):
        raise InputError(f"{shown(repository)} is no name of a model; give USER/NAME")
    repository, path = repository.removeprefix(PREFIX), Path(model)
    card = model_card(read(path), path.stat().st_size, repository, license=license, metrics=metrics)
    with _hub(f"{PREFIX}{repository}") as library:
        api = library.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        url = api.create_repo(repository, private=private, exist_ok=True)
        files: dict[str, Any] = {MODEL_FILE: path, CARD_FILE: card.encode()}
        operations = [library.CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository, operations, commit_message=message or "A packed one-bit vision transformer")
    return str(url)


def _places() -> dict[str, str]:
    """Endpoint and cache as the environment says now; the library has read it when it was imported."""
    places = {"endpoint": os.environ.get("HF_ENDPOINT"), "cache_dir": os.environ.get("HF_HUB_CACHE")}
    return {name: value for name, value in places.items() if value}


@contextmanager
def _hub(name: str) -> Iterator[Any]:
    """The library; what it and those below it raise becomes one line."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError("models on the hub need huggingface_hub: pip install 'gsb-vit[hub]'") from error
    try:
        yield huggingface_hub
    except Exception as error:
        kinds = type(error).__mro__
        if not any(kind.__module__.partition(".")[0].rstrip("0123456789") in _LIBRARIES for kind in kinds):
            raise
        names = {kind.__name__ for kind in kinds}
        reason = next((text for kind, text in _REASONS.items() if kind in names), None)
        if reason is None:
            reason = f"cannot be used ({' '.join(str(error).split())[:200]}); try again, or give a file"
        raise InputError(f"{name} {reason}") from error


def _check(path: Path, name: str) -> None:
    """Compare a file of the cache with its digest. Where the cache has no links, its names hold none."""
    blob = path.resolve()
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return
    if len(blob.name) == 64:
        found = hashlib.sha256()
    else:  # a file that is no LFS object has Git's digest
        found = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode(), usedforsecurity=False)
    with open_regular(blob, "a packed model file") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    if found.hexdigest() != blob.name:
        raise InputError(f"{name} is damaged: {blob} has another digest than its name; remove it and load it again")
