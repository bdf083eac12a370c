"""The command line: thin commands. Importing this package imports neither PyTorch nor anything built on it."""

from . import training, answering, shipping, measuring  # noqa: F401, I001  # in the order of --help
from .base import app, main

__all__ = ["app", "main"]
