"""Models: registered sizes, ``binarize``, building and loading. Importing this registers the sizes with timm."""

from . import zoo as zoo
