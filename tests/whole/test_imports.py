"""What may import what: nine lines, read off the sources, and lived through in a Python without PyTorch."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from paths import HELPERS, ROOT
from processes import HANG_SECONDS

PACKAGE = ROOT / "src" / "gsb_vit"
# Each room, and the rooms and ground modules it may import; GROUND_FOR_ALL and its own modules come on top.
MAY_IMPORT = {
    "data": set(),
    "nn": {"quantization"},
    "models": {"nn", "data", "quantization"},
    "train": {"models", "nn", "data", "metrics", "decision", "quantization"},
    "runtime": {"data", "metrics", "decision"},
    "export": {"train", "models", "nn", "runtime", "data", "decision", "quantization"},
    "bench": {"runtime", "data"},
    "report": {"bench", "runtime", "data", "metrics", "decision"},
    "app": {"runtime"},
    "study": {"train", "export", "models", "bench", "data", "metrics"},
}
GROUND_FOR_ALL = {"bars", "errors", "files", "limits", "terminal"}
GROUND = {*GROUND_FOR_ALL, "quantization", "metrics", "decision"}  # single modules below all rooms
DOORS = {"__main__", "cli", "quickstart", "runs", "sklearn"}  # they open every room
# They import no PyTorch when they are imported.
LIGHT = {"data", "runtime", "bench", "report", "app", *GROUND, "__init__", "cli", "runs"}
EXTENSIONS = {"_native": {"runtime", "bench"}}  # compiled modules and who may use them
HEAVY = {"torch", "torchvision", "timm", "accelerate", "torchmetrics", "sklearn", "matplotlib"}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module below the package; of a folder's __init__ the folder's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(path: Path) -> str:
    return name_of(path).split(".")[0]


def imported(path: Path) -> list[tuple[str, str | None, bool]]:
    """Every import of a file: absolute module, name taken from it, and whether it happens at import time."""
    found = []

    def visit(node: ast.AST, now: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, now)
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, None, now) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            found.extend((base, alias.name, now) for alias in node.names)
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, now and not later)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return found


def modules_of(path: Path, at_import_time: bool = False) -> set[str]:
    """The modules of this package that a file imports, as dotted names below the package; "" is the package itself."""
    found = set()
    for base, name, now in imported(path):
        if (now or not at_import_time) and base.split(".")[0] == "gsb_vit":
            below = base.partition(".")[2]
            inner = ".".join(part for part in (below, name) if part)
            found.add(inner if inner in MODULES or inner in EXTENSIONS else below)
    return found


def heavy_of(path: Path, at_import_time: bool) -> set[str]:
    return {base.split(".")[0] for base, _, now in imported(path) if now or not at_import_time} & HEAVY


def test_the_reader_of_imports_sees_what_it_must(tmp_path):
    probe = tmp_path / "probe.py"
    probe.write_text("def f():\n    import torch\nif True:\n    from timm.models import vit\n")
    assert imported(probe) == [("torch", None, False), ("timm.models", "vit", True)]
    reference = MODULES["runtime.reference"]
    assert modules_of(reference) >= {"runtime.packed_file", "runtime.bits", "errors"}
    assert heavy_of(MODULES["nn.quantize"], True) == {"torch"} and heavy_of(reference, False) == set()
    assert "_native" in modules_of(MODULES["runtime.classifier"])


def test_every_file_lies_in_a_room():
    assert {room_of(path) for path in FILES} == {*MAY_IMPORT, *GROUND, *DOORS, "__init__"}


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in MAY_IMPORT], ids=name_of)
def test_rooms_import_what_the_table_allows(path):
    room = room_of(path)
    allowed = {room, *GROUND_FOR_ALL, *MAY_IMPORT[room], *(name for name, users in EXTENSIONS.items() if room in users)}
    assert {name.split(".")[0] for name in modules_of(path) if name} <= allowed


@pytest.mark.parametrize("module", sorted(GROUND))
def test_the_ground_stands_on_itself(module):
    assert modules_of(MODULES[module]) <= GROUND


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in LIGHT], ids=name_of)
def test_light_modules_import_nothing_heavy(path):
    assert not heavy_of(path, at_import_time=True)


@pytest.mark.parametrize("module", [*(name for name in MODULES if name.split(".")[0] == "cli"), "runs", "__init__"])
def test_doors_open_rooms_inside_their_commands(module):
    allowed = {"", *GROUND_FOR_ALL, "data.datasets"}
    opened = {name for name in modules_of(MODULES[module], at_import_time=True) if name.split(".")[0] != "cli"}
    assert opened <= allowed


def test_no_module_imports_itself_in_a_circle():
    arrows = {name: modules_of(path, at_import_time=True) & set(MODULES) - {name} for name, path in MODULES.items()}
    assert "nn.quantize" in arrows["nn.superpose"]
    graphlib.TopologicalSorter(arrows).prepare()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_names_are_imported_from_where_they_are_defined(path):
    """A name that a module only passes on is a fossil of a move."""
    for base, name, _ in imported(path):
        below = base.partition(".")[2]
        if base.split(".")[0] != "gsb_vit" or name is None or f"{below}.{name}".lstrip(".") in {*MODULES, *EXTENSIONS}:
            continue
        assert name in defined(MODULES[below or "__init__"]), f"{name} is not defined in {base}"


def defined(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_package_imports_no_recipes_benchmarks_or_tests(path):
    helpers = {helper.stem for helper in HELPERS.glob("*.py")}
    assert not {base.split(".")[0] for base, _, _ in imported(path)} & {"recipes", "benchmarks", "tests", *helpers}


WITHOUT_TORCH = """
    import sys

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in BLOCKED:
                raise ModuleNotFoundError(f"{name} is not installed", name=name)

    BLOCKED = HEAVY
    sys.meta_path.insert(0, Refuse())
"""


def run_without_torch(body: str, *arguments: str) -> str:
    """Run Python code in a process that cannot import the training side's libraries."""
    code = textwrap.dedent(WITHOUT_TORCH.replace("HEAVY", repr(HEAVY))) + textwrap.dedent(body)
    path = os.pathsep.join([str(ROOT / "src"), str(HELPERS)])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_device_side_imports_without_torch():
    modules = ["gsb_vit", *(f"gsb_vit.{name_of(path)}" for path in FILES if room_of(path) in LIGHT - {"__init__"})]
    output = run_without_torch(
        """
        from importlib import import_module
        for name in sys.argv[1:]:
            import_module(name)
        print(sorted(name for name in sys.modules if name.split(".")[0] in BLOCKED))
        """,
        *modules,
    )
    assert output.strip() == "[]"


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_a_packed_file_predicts_without_torch(engine, tmp_path):
    if engine == "native":
        pytest.importorskip("gsb_vit._native")
    output = run_without_torch(
        """
        import numpy as np
        import gsb_vit
        from random_packed import write_random_packed
        write_random_packed(sys.argv[1], seed=3, image_size=(16, 16), patch_size=(4, 4), embed_dim=24, depth=1,
                            num_heads=2, mlp_hidden=40, num_classes=3)
        model = gsb_vit.load(sys.argv[1], engine=sys.argv[2])
        pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
        print(model.logits(pictures).shape, len(model.predict(pictures[0], top=2)), "rich" in sys.modules)
        """,
        str(tmp_path / "model.safetensors"),
        engine,
    )
    assert output.strip() == "(2, 3) 2 False"  # nor what only a terminal needs


def test_the_public_names_of_the_device_side_load_no_torch():
    names = ["load", "Classifier", "Prediction", "Preprocessing", "InputError", "Quantization", "fit", "Run"]
    output = run_without_torch(
        "import gsb_vit\nprint([getattr(gsb_vit, name).__name__ for name in sys.argv[1:]])", *names
    )
    assert output.strip() == str(names)


def test_a_folder_is_evaluated_without_torch(tmp_path):
    output = run_without_torch(
        """
        import contextlib, io, json
        from pathlib import Path
        from PIL import Image
        from random_packed import write_random_packed
        from gsb_vit.cli import main
        folder = Path(sys.argv[1])
        for index in range(3):
            (folder / "test" / f"class {index}").mkdir(parents=True)
            Image.new("L", (9, 7), 100 * index).save(folder / "test" / f"class {index}" / "one.png")
        write_random_packed(folder / "model.safetensors", seed=3, image_size=16, patch_size=4, embed_dim=24, depth=1,
                            num_heads=2, mlp_hidden=40, num_classes=3)
        with contextlib.suppress(SystemExit):
            main(["evaluate", str(folder / "model.safetensors"), "--data", str(folder / "test"), "--json",
                  "--engine", "reference"])
        """,
        str(tmp_path),
    )
    assert json.loads(output)["n"] == 3


def test_fitting_without_torch_says_what_to_install(tmp_path):
    output = run_without_torch(
        """
        import gsb_vit
        try:
            gsb_vit.fit("digits", out=sys.argv[1])
        except gsb_vit.InputError as error:
            print(error)
        """,
        str(tmp_path / "run"),
    )
    assert re.fullmatch(r"training needs \w+: pip install 'gsb-vit\[train\]'", output.strip())
    assert not (tmp_path / "run").exists()


def test_training_without_torch_says_what_to_install(tmp_path):
    output = run_without_torch(
        """
        from gsb_vit.cli import main
        try:
            main(["train", "--data", "digits", "--out", sys.argv[1]])
        except SystemExit as stop:
            print(stop.code)
        sys.stderr.flush()
        """,
        str(tmp_path / "run"),
    )
    assert output.strip() == "2"
    assert not (tmp_path / "run").exists()
