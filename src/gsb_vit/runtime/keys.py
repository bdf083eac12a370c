"""Rules for the values of JSON objects: what a key may hold, as data that the C++ reader's table is generated from."""

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gsb_vit.errors import InputError


@dataclass(frozen=True)
class Key:
    """What a key holds: a value of a kind (``text``, ``choice``, ``whole``, ``number``, ``boolean``, ``object``).

    Or it holds a list of such values: ``items`` is the least and the largest number of them. Numbers lie in ``least`` …
    ``most``, both inclusive, and between ``above`` and ``below``, both exclusive. Booleans are not numbers. An object
    has ``members`` and becomes what ``make`` makes of them. A key with a ``default`` may be left out.
    """

    name: str
    kind: str
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    items: tuple[int, int] | None = None
    increasing: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None
    members: tuple["Key", ...] = ()
    make: Callable[..., Any] = dict

    @property
    def optional(self) -> bool:
        """Whether it may be left out."""
        return self.default is not None

    def check(self, where: str, value: Any) -> Any:
        """Return ``value``, a list as a tuple and a number as a float. Raises InputError for what is not allowed."""
        if self.items is None:
            return self._one(where, value)
        least, most = self.items
        if not isinstance(value, (tuple, list)) or not least <= len(value) <= most:
            many = f"{most}" if least == most else f"at most {most}"
            raise InputError(f"{where}: {self.name} {reprlib.repr(value)} must be a list of {many} {self._wanted()}")
        values = tuple(self._one(where, item) for item in value)
        if self.increasing and any(low >= high for low, high in pairwise(values)):
            raise InputError(f"{where}: {self.name} {reprlib.repr(value)} must increase")
        return values

    def _one(self, where: str, value: Any) -> Any:
        if self.kind == "object":
            is_made = isinstance(self.make, type) and isinstance(value, self.make)
            return value if is_made else self.make(**check_object(f"{where}: {self.name}", value, self.members))
        if self.kind == "boolean":
            fits = isinstance(value, bool)
        elif self.kind == "text" or self.kind == "choice":
            fits = isinstance(value, str) and (self.kind == "text" or value in self.choices)
        else:
            kinds = (int,) if self.kind == "whole" else (int, float)
            fits = isinstance(value, kinds) and not isinstance(value, bool) and self._in_range(value)
        if not fits:
            raise InputError(f"{where}: {self.name} {reprlib.repr(value)} must be {self._wanted()}")
        return float(value) if self.kind == "number" else value

    def _in_range(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def _wanted(self) -> str:
        if self.kind in ("text", "object"):
            return self.kind
        if self.kind == "boolean":
            return "true or false"
        if self.kind == "choice":
            return f"one of {', '.join(self.choices)}"
        if self.kind == "whole":
            return f"a whole number from {self.least} to {self.most}"
        limits = {"at least": self.least, "at most": self.most, "above": self.above, "below": self.below}
        said = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
        return " ".join(["a finite number", " and ".join(said)]).rstrip()


def check_names(where: str, values: Any, names: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Check that ``values`` is an object with these keys, and no other than these and the ``optional`` ones.

    Raises InputError naming the first that is wrong.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a JSON object")
    for name in names:
        if name not in values:
            raise InputError(f"{where}: key {name!r} is missing")
    for name in values:
        if name not in names and name not in optional:
            raise InputError(f"{where}: key {reprlib.repr(name)} is unknown")


def check_object(where: str, values: Any, keys: Iterable[Key]) -> dict[str, Any]:
    """Check an object against ``keys``, no other, and return its values as they come out, defaults where left out."""
    keys = tuple(keys)
    required = [key.name for key in keys if not key.optional]
    check_names(where, values, required, [key.name for key in keys if key.optional])
    return {key.name: key.check(where, values.get(key.name, key.default)) for key in keys}
