"""``python -m gsb_vit.cli``, for a checkout that is not installed."""

from gsb_vit.cli import main

main()
