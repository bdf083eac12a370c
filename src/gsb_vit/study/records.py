"""A study's rows in a file beside the document that shows them: they outlive runs and machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gsb_vit.errors import InputError
from gsb_vit.train.recipe import Recipe
from gsb_vit.train.recipe_io import build_recipe, dump_recipe, flatten, overlay, parse_toml

from .plan import Study
from .results import Row


def records_file(document: Path, study: Study) -> Path:
    """``NAME.json`` beside the document."""
    return document.with_name(f"{study.name}.json")


def read_records(path: Path, study: Study) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows by cell, of the study's cells whose recipe is the recorded one, and the names of the other recorded cells.

    Nothing where there is no file. A key that a recipe has gained since counts with its default.

    Raises:
        InputError: the file is not what ``records_text`` writes.
    """
    if not path.is_file():
        return {}, []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shared, cells = found["recipe"], found["cells"]
        known = {cell.name: cell for cell in study.cells}
        rows = {
            name: [{**row, "title": known[name].title} for row in cell["rows"]]
            for name, cell in cells.items()
            if name in known and _recipe({**shared, **cell["recipe"]}) == known[name].recipe
        }
        return rows, [name for name in cells if name not in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read the rows in {path} ({error!r}); restore that file, or delete it") from error


def records_text(study: Study, rows: Mapping[str, Sequence[Row]]) -> str:
    """Rows by cell as JSON, a line a cell; its recipe as what differs from the first cell's (null: no such key)."""
    recipes = {cell.name: _values(cell.recipe) for cell in study.cells if cell.name in rows}
    shared = next(iter(recipes.values()), {})
    lines = [
        f"  {json.dumps(name)}: " + json.dumps({"recipe": _changes(shared, recipes[name]), "rows": own})
        for name, own in rows.items()
    ]
    return f'{{"recipe": {json.dumps(shared)},\n "cells": {{\n' + ",\n".join(lines) + "\n}}\n"


def _values(recipe: Recipe) -> dict[str, Any]:
    return flatten(parse_toml(dump_recipe(recipe), "recipe"))


def _changes(shared: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in values.items() if key not in shared or shared[key] != value}
    return changed | dict.fromkeys(shared.keys() - values.keys())


def _recipe(values: Mapping[str, Any]) -> Recipe | None:
    """The recipe of flat values, or None where it is none any more."""
    nested: dict[str, Any] = {}
    try:
        overlay(nested, {key: value for key, value in values.items() if value is not None})
        return build_recipe(nested)
    except InputError:
        return None
