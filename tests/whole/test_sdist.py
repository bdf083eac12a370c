"""A source distribution holds what builds the package, and nothing that merely lies in the folder."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
STRAY = (
    ".env",
    "notes.txt",
    "src/gsb_vit/.env",
    "src/gsb_vit/secrets.json",
    "native/a.out",
    "recipes/mine.pem",
    "data/a.jpg",
)
NEEDED = ("pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md")
BUILT = (
    ("src/gsb_vit/", (".py", ".toml", ".html")),
    ("src/gsb_vit/app/", (".js", ".css", ".wasm")),
    ("src/gsb_vit/shipped/", (".safetensors", ".md")),
    ("src/gsb_vit/export/c/", (".c", ".h")),
    ("src/gsb_vit/bench/", (".json",)),
    ("native/", (".cpp", ".c", ".h", ".cs", ".cmake", ".txt", ".ld", ".ino")),
    ("cmake/", (".cmake", ".in")),
)


@pytest.fixture(scope="module")
def tracked():
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    return [name for name in os.fsdecode(found.stdout).split("\0") if name and (ROOT / name).is_file()]


def test_an_sdist_packs_tracked_files_only(tracked, tmp_path):
    pytest.importorskip("scikit_build_core")
    copy = tmp_path / "checkout"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    for name in STRAY:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("SECRET=1\n", encoding="utf-8")
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    assert packed - set(tracked) == {"PKG-INFO"}
    needed = [
        name for name in tracked if name in NEEDED or any(name.startswith(a) and name.endswith(b) for a, b in BUILT)
    ]
    assert len(needed) > 50 and set(needed) <= packed
