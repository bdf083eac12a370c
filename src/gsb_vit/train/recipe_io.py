"""Recipes from TOML, with overrides and errors that name the nearest key; recipes back to TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union

from gsb_vit.errors import InputError, shown
from gsb_vit.files import as_path, is_utf8, read_text
from gsb_vit.quantization import PRESETS, Quantization

from .recipe import STAGES, Recipe
from .recipe_checks import check_teaching, require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_recipe(
    source: str | Path | None = None, overrides: Iterable[str] = (), *, under: Mapping[str, Any] | None = None
) -> Recipe:
    """Read a recipe, lay the dotted keys of ``under`` over it, and apply overrides.

    ``source`` is a TOML file or the name of a recipe that comes with the package (``default``, ``authors``,
    ``quickstart``; None is ``default``); each override reads ``key.subkey=value``, the value as TOML, or a bare word.
    Raises InputError for a missing or malformed file, an unknown key (with the nearest one) and a wrong type.
    """
    values = read_values(source)
    overlay(values, under or {})
    for override in overrides:
        _apply_override(values, override)
    return build_recipe(values)


def read_values(source: str | Path | None = None) -> dict[str, Any]:
    """The nested tables of a recipe file or shipped recipe, not yet checked. Raises InputError as ``load_recipe``."""
    name = str(source) if source is not None else "default"
    return parse_toml(_read_text(name), name)


def overlay(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Lay dotted keys over nested tables; a ``preset`` replaces all that its table held before.

    Raises InputError where a key goes through a value that is no table.
    """
    for key, value in sorted(changes.items(), key=lambda item: not item[0].endswith(".preset")):
        *tables, last = key.split(".")
        inner = values
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise InputError(f"recipe key {key!r}: {table!r} is a value, not a table; use its own key")
        if last == "preset":
            inner.clear()
        inner[last] = value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one level of dotted keys; keys that are dotted already stay so."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Build a recipe from nested tables. Raises InputError as ``load_recipe`` does."""
    recipe = _build(Recipe(), values, "")
    check_recipe(recipe)
    return recipe


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name[: -len(".toml")] for p in _shipped().iterdir() if p.name.endswith(".toml"))


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML such that reading it gives an equal recipe; values that are None are left out."""
    lines: list[str] = []
    _dump_table(recipe, "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def check_recipe(recipe: Recipe) -> None:
    """Raise InputError for a number outside its range or settings that contradict each other."""
    for key, number in flatten(dataclasses.asdict(recipe)).items():
        if isinstance(number, (int, float)):
            require(abs(number) < 2**63, key, number, "finite and within 64 bits")
    require(recipe.seed >= 0, "seed", recipe.seed, "at least 0")
    require(recipe.data.split_seed >= 0, "data.split_seed", recipe.data.split_seed, "at least 0")
    for name in ("validation_fraction", "test_fraction", "label_noise"):
        require(0 <= getattr(recipe.data, name) < 1, f"data.{name}", getattr(recipe.data, name), "from 0 to below 1")
    require(recipe.data.shots is None or recipe.data.shots > 0, "data.shots", recipe.data.shots, "at least 1")
    require(recipe.validate_every > 0, "validate_every", recipe.validate_every, "at least 1")
    require(recipe.threads is None or 0 < recipe.threads <= 1024, "threads", recipe.threads, "from 1 to 1024")
    for name in ("img_size", "patch_size"):
        require(getattr(recipe.model, name) > 0, f"model.{name}", getattr(recipe.model, name), "at least 1")
    side, patch = recipe.model.img_size, recipe.model.patch_size
    if side % patch:
        near = " or ".join(str(one) for one in (side // patch * patch, -(-side // patch) * patch) if one)
        raise InputError(f"model.img_size = {side} is not a multiple of model.patch_size = {patch}; choose {near}")
    for name in STAGES:
        stage = getattr(recipe, name)
        require(stage.epochs >= 0, f"{name}.epochs", stage.epochs, "at least 0")
        require(stage.batch_size > 0, f"{name}.batch_size", stage.batch_size, "at least 1")
        require(stage.learning_rate > 0, f"{name}.learning_rate", stage.learning_rate, "above 0")
        require(stage.mixup >= 0, f"{name}.mixup", stage.mixup, "0 (off) or larger")
        require(stage.cutmix >= 0, f"{name}.cutmix", stage.cutmix, "0 (off) or larger")
        require(0 <= stage.ema_decay < 1, f"{name}.ema_decay", stage.ema_decay, "from 0 to below 1")
        require(stage.warmup_epochs >= 0, f"{name}.warmup_epochs", stage.warmup_epochs, "at least 0")
        require(stage.patience >= 0, f"{name}.patience", stage.patience, "0 (off) or larger")
        if stage.patience and stage.select != "best":
            raise InputError(f'{name}.patience needs {name}.select = "best", not {stage.select!r}; drop one')
    if not any(getattr(recipe, name).epochs for name in STAGES):
        raise InputError("teacher.epochs, stage1.epochs and stage2.epochs are all 0; give at least one stage an epoch")
    check_teaching(recipe)


def _shipped() -> Any:
    return resources.files("gsb_vit.train") / "recipes"


def _read_text(name: str) -> str:
    path = as_path(name, "a recipe")
    if not path.suffix and not os.path.lexists(path):
        if name not in shipped_recipes():
            raise InputError(f"no recipe {name!r}; give a .toml file or one of {', '.join(shipped_recipes())}")
        return (_shipped() / f"{name}.toml").read_text(encoding="utf-8")
    return read_text(path, "a recipe, a TOML file")


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """TOML as nested dicts. Raises InputError with the place of the mistake."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # besides TOML's: an integer of thousands of digits
        raise InputError(f"the file {name!r} is not valid TOML: {error}; mend that line") from error


def toml_value(text: str) -> Any:
    """A value as TOML, or the bare word it is."""
    try:
        return tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        return text.strip()


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override!r} is not of the form key=value, such as stage1.epochs=50")
    value = toml_value(text)
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override!r}: {table!r} is a value, not a table; use its own key")
    values[last] = value


def _build(default: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """A copy of the dataclass ``default`` with the given values, each checked against the field's type."""
    values = dict(values)
    if isinstance(default, Quantization) and "preset" in values:
        default = _preset(values.pop("preset"), prefix)
    hints = typing.get_type_hints(type(default))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise InputError(_unknown_key(prefix + key))
        current = getattr(default, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise InputError(f"recipe key {prefix + key!r} is a table, got {value!r}; use {prefix + key}.KEY = ...")
            changes[key] = _build(current, value, f"{prefix}{key}.")
        else:
            changes[key] = _convert(value, hints[key], prefix + key)
    try:
        return dataclasses.replace(default, **changes)
    except InputError as error:
        raise InputError(f"recipe table {prefix.rstrip('.') or 'top level'!r}: {error}") from error


def _unknown_key(key: str) -> str:
    """What to say of a key that no recipe has: those that end as it does, the student's first, or the nearest one."""
    known = _keys(Recipe())
    *_, last = key.split(".")
    same = sorted((one for one in known if one.split(".")[-1] == last), key=lambda one: not one.startswith("stage2."))
    if same and key not in same:
        listed = [f"{one!r} (on the command line {_FLAGS[one]})" if one in _FLAGS else f"{one!r}" for one in same[:4]]
        return f"unknown recipe key {key!r}; did you mean {' or '.join(listed)}?"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown recipe key {key!r}; the nearest valid key is {near[0]!r}"


_FLAGS = {"stage2.epochs": "--epochs", "model.img_size": "--image-size", "data.shots": "--shots"}


def _keys(table: Any, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        name = prefix + field.name
        found += [name, *(_keys(value, f"{name}.") if dataclasses.is_dataclass(value) else [])]
    return found


def _preset(name: Any, prefix: str) -> Quantization:
    if name not in PRESETS:
        raise InputError(f"{prefix}preset = {name!r} is unknown; use one of {', '.join(PRESETS)}")
    return Quantization.create(name)


def _convert(value: Any, hint: Any, key: str) -> Any:
    """The value as the hinted type (a list for a tuple, an integer for a float), or InputError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        hint = next(a for a in arguments if a is not type(None))
        return _convert(value, hint, key)
    if origin is Literal:
        if value in arguments and type(value) in {type(a) for a in arguments}:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1, cutoff=0.0)
        raise InputError(f"recipe key {key} = {value!r} is unknown; use {_listed(arguments)} (nearest: {near[0]})")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"recipe key {key} = {value!r} has the wrong type; it must be a list of numbers")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise InputError(f"recipe key {key} = {value!r} has {len(value)} entries; it must have {len(arguments)}")
        return tuple(_convert(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"recipe key {key} = {value!r} has the wrong type; it must be {_TYPE_NAMES[hint]}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(json.dumps(v) for v in values)


def _dump_table(table: Any, name: str, lines: list[str]) -> None:
    fields = [(f.name, getattr(table, f.name)) for f in dataclasses.fields(table)]
    if name:
        lines += ["", f"[{name}]"]
    for key, value in fields:
        if value is not None and not dataclasses.is_dataclass(value):
            lines.append(f"{key} = {_dump_value(value)}")
    for key, value in fields:
        if dataclasses.is_dataclass(value):
            _dump_table(value, f"{name}.{key}" if name else key, lines)


def _dump_value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_dump_value(v) for v in value) + "]"
    if isinstance(value, str):
        if not is_utf8(value):
            raise InputError(f"recipe value {shown(value)} is not UTF-8, and no file could hold it; give other text")
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON allows and TOML does not
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)
