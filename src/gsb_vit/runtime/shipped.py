"""Models that come with the package: trained and packed files in ``gsb_vit/shipped``, each with a card, by name.

``NAME.safetensors`` and ``NAME.md`` in that folder are all that a model needs to be shipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError, shown
from gsb_vit.files import as_path

PREFIX = "shipped:"  # before a name: the shipped model, whatever lies here
HUB_PREFIX = "hf:"  # before USER/NAME: a model on the hub
WHAT = "a packed model file"
_ENDING = ".safetensors"


class NameWarning(UserWarning):
    """A name stands for a path that is here, and there is a shipped model of that name, too."""


@dataclass(frozen=True)
class ShippedModel:
    """A packed model of the package: its name, its file and its card, a text in Markdown."""

    name: str
    path: Path
    card: str

    @property
    def title(self) -> str:
        """The card's heading, without the name that it begins with."""
        heading = self.card.strip().splitlines()[0].lstrip("# ")
        return heading.removeprefix(self.name).lstrip(": ")

    def to_json(self) -> dict[str, Any]:
        """Name, title, number of classes, picture size (height, width), bytes, file and card as plain JSON values."""
        from .packed_file import read  # which finds models by name

        model = read(self.path)
        return {
            "name": self.name,
            "title": self.title,
            "classes": len(model.class_names),
            "image_size": list(model.architecture.image_size),
            "bytes": self.path.stat().st_size,
            "path": str(self.path),
            "card": self.card,
        }


def shipped_models() -> Mapping[str, ShippedModel]:
    """The models that come with the package, by name, in the order of their names."""
    folder = Path(str(files("gsb_vit") / "shipped"))
    paths = sorted(folder.glob(f"*{_ENDING}")) if folder.is_dir() else []
    found = {path.stem: path for path in paths if path.with_suffix(".md").is_file()}
    return {
        name: ShippedModel(name, path, path.with_suffix(".md").read_text(encoding="utf-8"))
        for name, path in found.items()
    }


def locate_model(model: Any) -> Path:
    """The path that a MODEL means: itself where it exists, else the file of the shipped model of that name.

    Where it exists and a shipped model has that name, too, a :class:`NameWarning` says so. ``shipped:NAME`` means the
    shipped model always, ``hf:USER/NAME`` a model on the Hugging Face hub, fetched into its cache. A name of none of
    these is returned as it is, as a path.

    Raises:
        InputError: ``model`` is no path, ``shipped:NAME`` names no shipped model (the message lists them), or as
            :func:`gsb_vit.runtime.hub.download`.
    """
    path = as_path(model, WHAT)
    name = str(path)
    if name.startswith(HUB_PREFIX):
        from .hub import download  # which reads packed files, and they are found here

        return download(name)
    if name.startswith(PREFIX):
        found = shipped_models().get(name.removeprefix(PREFIX))
        if found is None:
            raise InputError(f"there is no shipped model {shown(name.removeprefix(PREFIX))}; there are {_listed()}")
        return found.path
    if not _is_name(path) or (found := shipped_models().get(name)) is None:
        return path
    if not path.exists():
        return found.path
    warnings.warn(
        f"{name} is here as a {'folder' if path.is_dir() else 'file'}, and that is used; the model that comes with "
        f"gsb-vit is {PREFIX}{name}",
        NameWarning,
        stacklevel=3,
    )
    return path.absolute()  # whoever asks again is not told again


def what_to_give(path: Path) -> str:
    """What to give instead of a path that is no packed model; to a bare name, the shipped models are listed."""
    return f"{WHAT}, or the name of one that comes with gsb-vit: {_listed()}" if _is_name(path) else WHAT


def _is_name(path: Path) -> bool:
    return len(path.parts) == 1 and not path.suffix and path.name == str(path)


def _listed() -> str:
    return ", ".join(shipped_models()) or "none in this installation"
