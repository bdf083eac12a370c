"""Limits on what a file may ask of the machine: a default, an environment variable, and what a caller says."""

import contextlib
import os
from numbers import Integral
from typing import Any

from gsb_vit.errors import InputError, shown

MAX_MEMORY_VARIABLE = "GSB_VIT_MAX_MEMORY"
RAISE_MEMORY = f"raise max_memory (--max-gigabytes, {MAX_MEMORY_VARIABLE})"


def limit(wanted: Any, name: str, variable: str, default: float) -> int:
    """Return ``wanted``, or where it is None what the environment variable says, or else ``default``.

    Raises InputError for what is no whole number above 0; ``name`` is the argument's.
    """
    value: Any = os.environ.get(variable, int(default)) if wanted is None else wanted
    with contextlib.suppress(ValueError):
        value = int(value) if isinstance(value, str) else value
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        source = variable if wanted is None else name
        raise InputError(f"{source} = {shown(value)} must be a whole number of at least 1")
    return int(value)


def memory_limit(wanted: Any, default: float) -> int:
    """Return the bytes that a model may take; see :func:`limit`."""
    return limit(wanted, "max_memory", MAX_MEMORY_VARIABLE, default)


def shown_bytes(count: float) -> str:
    """Return a number of bytes as a message has it: ``2.70 GB``, ``0.12 MB``."""
    return f"{count / 1e6:.2f} MB" if count < 1e8 else f"{count / 1e9:,.2f} GB"
