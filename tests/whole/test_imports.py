"""Imports point one way (docs/design.md): read off the sources, and lived through in a Python without PyTorch."""

import ast
import graphlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from paths import HELPERS, ROOT

PACKAGE = ROOT / "src" / "gsb_vit"
HEAVY = {"torch", "torchvision", "timm", "accelerate", "torchmetrics", "sklearn", "matplotlib"}
DEVICE_SIDE = [
    *("bitpack", "packed", "packed_schema", "reference", "runtime", "preprocess", "errors"),
    *("metrics", "evaluation", "summary", "densities", "stages", "benchmark", "tables"),
]
LIGHT = ["__init__", "cli", *DEVICE_SIDE]
SHARED = ["errors", "preprocess", "metrics", "quantization"]  # they import no PyTorch and stand below both sides
DEVICE = ["bitpack", "packed_schema", "packed", "reference", "_native", "runtime"]
ABOVE = [
    *("__init__", "export", "export_checks", "parity", "evaluation", "summary", "densities", "stages"),
    *("benchmark", "tables", "cli"),
]
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
MATHEMATICS = [name for name in MODULES if name not in {*SHARED, *DEVICE, *ABOVE}]


def imports(path: Path, at_import_time: bool) -> set[str]:
    """Absolute dotted names that a file imports: when it is itself imported, or anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(PACKAGE.parent).with_suffix("").parts[: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            names.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return names


def rooms(names: set[str]) -> set[str]:
    """The modules of this package among some imported names."""
    parts = (name.split(".") for name in names if name.startswith("gsb_vit."))
    return {found for found in (part[1] for part in parts) if (PACKAGE / found).exists() or found_module(found)}


def found_module(name: str) -> bool:
    return name == "_native" or (PACKAGE / f"{name}.py").exists()


def test_the_reader_of_imports_sees_what_it_must(tmp_path):
    source = PACKAGE / "reference.py"
    assert "numpy" in imports(source, at_import_time=True)
    assert "packed" in rooms(imports(source, at_import_time=False))
    probe = tmp_path / "probe.py"
    probe.write_text("def f():\n    import torch\nif True:\n    from timm.models import vit\n")
    assert imports(probe, at_import_time=True) == {"timm.models", "timm.models.vit"}
    assert "torch" in imports(probe, at_import_time=False)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module):
    found = {name.split(".")[0] for name in imports(PACKAGE / f"{module}.py", at_import_time=True)}
    assert not found & HEAVY


@pytest.mark.parametrize("module", [name for name in MODULES if name in SHARED])
def test_what_both_sides_share_stands_on_its_own(module):
    assert rooms(imports(PACKAGE / f"{module}.py", at_import_time=False)) <= {"errors"}


@pytest.mark.parametrize("module", MATHEMATICS)
def test_the_mathematics_knows_neither_device_nor_training(module):
    assert rooms(imports(PACKAGE / f"{module}.py", at_import_time=False)) <= {*SHARED, *MATHEMATICS, "fused"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "fused").glob("*.py")), ids=lambda path: path.name)
def test_fused_functions_stand_below_the_layers(path):
    allowed = {"errors", "products", "quantizers", "superposition", "fused"}
    assert rooms(imports(path, at_import_time=False)) <= allowed


@pytest.mark.parametrize("module", [name for name in DEVICE if name != "_native"])
def test_the_device_side_knows_only_itself(module):
    allowed = {*SHARED, *DEVICE[: DEVICE.index(module) + 1]}
    assert rooms(imports(PACKAGE / f"{module}.py", at_import_time=False)) <= allowed


def test_no_module_imports_itself_in_a_circle():
    arrows = {name: rooms(imports(PACKAGE / f"{name}.py", at_import_time=True)) & set(MODULES) for name in MODULES}
    assert {"layers", "convert", "packed"} <= set(arrows)
    graphlib.TopologicalSorter({name: found - {name} for name, found in arrows.items()}).prepare()


@pytest.mark.parametrize("path", sorted((PACKAGE / "train").glob("*.py")), ids=lambda path: path.name)
def test_training_knows_no_studies(path):
    assert "study" not in rooms(imports(path, at_import_time=False))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_imports_no_recipes_benches_or_tests(path):
    found = {name.split(".")[0] for name in imports(path, at_import_time=False)}
    assert not found & {"recipes", "bench", "tests", "conftest", "random_packed"}


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
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_device_side_imports_without_torch():
    modules = ["gsb_vit", *(f"gsb_vit.{name}" for name in ["cli", *DEVICE_SIDE])]
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
        print(model.logits(pictures).shape, len(model.predict(pictures[0], top=2)))
        """,
        str(tmp_path / "model.safetensors"),
        engine,
    )
    assert output.strip() == "(2, 3) 2"


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
