"""Where things lie: this checkout, and the shared folder beside it that some tests need and skip without."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
HELPERS = ROOT / "tests" / "helpers"
SHARED = ROOT.parent / "shared"
FLOWERS = SHARED / "data" / "flowers-102"
