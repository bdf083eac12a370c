"""``python -m gsb_vit``: the command line where its script is not on the path."""

from gsb_vit.cli.base import main

if __name__ == "__main__":
    main()
