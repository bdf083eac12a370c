"""What is installed: a wheel with the extension, the shipped recipes and the report's template, and a light core."""

import re
import subprocess
import sys
import zipfile

import pytest
from native_build import locked, run
from paths import ROOT

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# Linters do not run in the tests; the peers of `gsb-vit bench` are too large to install for them.
NOT_TESTED_AT_LOWEST = {
    *("ruff", "mypy", "clang-format", "build"),
    *("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"),
    *("huggingface_hub", "ray"),
}


def names(requirements):
    return {re.split(r"[^A-Za-z0-9_-]", requirement)[0].lower() for requirement in requirements}


def test_the_core_needs_no_pytorch(project):
    assert names(project["dependencies"]) == {"numpy", "safetensors", "pillow", "typer", "rich"}


def test_versions_agree(project):
    import gsb_vit

    assert project["version"] == gsb_vit.__version__
    assert f"[{gsb_vit.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_is_installed_under_its_name(project):
    module, _, function = project["scripts"]["gsb-vit"].partition(":")
    from importlib import import_module

    assert callable(getattr(import_module(module), function))


def test_every_public_name_can_be_had():
    pytest.importorskip("timm")
    import gsb_vit

    for name in gsb_vit.__all__:
        assert getattr(gsb_vit, name) is not None
    assert set(gsb_vit.__all__) <= set(dir(gsb_vit))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gsb_vit.nothing


def pins_of(name):
    from packaging.requirements import Requirement

    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line[:1] not in "#"]


def test_the_lowest_versions_are_those_that_are_tested(project):
    """A bound in pyproject.toml that is not what `make test-lowest` installs is a guess."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    pins = {}
    for pin in pins_of("constraints-lowest.txt"):
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and pin.name not in pins
        pins[pin.name] = Version(specifier.version)
    extras = project["optional-dependencies"]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    groups = [project["dependencies"], build, *(extras[name] for name in extras if name != "docs")]
    seen = set()
    for requirement in map(Requirement, (text for group in groups for text in group)):
        (lower,) = (one for one in requirement.specifier if one.operator == ">=")
        if requirement.name in NOT_TESTED_AT_LOWEST:
            assert requirement.name not in pins
            continue
        seen.add(requirement.name)
        assert pins[requirement.name] == Version(lower.version), requirement
    assert seen == set(pins)


def test_pins_are_within_the_ranges(project):
    from packaging.requirements import Requirement

    pins = pins_of("constraints.txt")
    ranges = [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    assert pins
    for pin in pins:
        (version,) = (specifier.version for specifier in pin.specifier)
        matching = [requirement for requirement in ranges if requirement.name == pin.name]
        assert matching and all(requirement.specifier.contains(version) for requirement in matching), pin


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout, built with what is installed; what is up to date in build/tests/wheel is kept."""
    pytest.importorskip("scikit_build_core")
    pytest.importorskip("nanobind")
    folder = tmp_path_factory.mktemp("wheel")
    # -O1: what is looked at is what the wheel holds and that it runs, and -O3 takes twice as long to compile.
    settings = ["build-dir={build}", "cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O1"]
    with locked("wheel") as build:
        options = [f"--config-settings={setting.format(build=build)}" for setting in settings]
        options += ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder]
        run(sys.executable, "-m", "pip", "wheel", ROOT, *options)
    (path,) = folder.glob("*.whl")
    return path


# Compiles the whole extension, where build/tests/wheel is not up to date.
@pytest.mark.slow
def test_the_wheel_holds_extension_recipes_and_template(wheel):
    with zipfile.ZipFile(wheel) as file:
        found = set(file.namelist())
    assert any(re.fullmatch(r"gsb_vit/_native\..*(so|pyd)", name) for name in found)
    assert "gsb_vit/report/templates/report.html" in found
    for recipe in (ROOT / "src" / "gsb_vit" / "train" / "recipes").glob("*.toml"):
        assert f"gsb_vit/train/recipes/{recipe.name}" in found
    shipped = list((ROOT / "src" / "gsb_vit" / "shipped").iterdir())
    assert {path.suffix for path in shipped} == {".safetensors", ".md"}
    for path in shipped:
        assert f"gsb_vit/shipped/{path.name}" in found
    for source in (ROOT / "src" / "gsb_vit").rglob("*.py"):
        assert source.relative_to(ROOT / "src").as_posix() in found
    assert any(name.endswith("licenses/LICENSE") for name in found)
    assert not [name for name in found if name.startswith(("tests/", "native/"))]


@pytest.mark.slow  # as above
def test_the_installed_wheel_predicts_without_the_checkout(wheel, tmp_path):
    from random_packed import write_random_packed

    model = tmp_path / "model.safetensors"
    write_random_packed(
        model, seed=1, image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, mlp_hidden=40, num_classes=3
    )
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, gsb_vit
assert gsb_vit.__file__.startswith(sys.argv[1]), gsb_vit.__file__
model = gsb_vit.load(sys.argv[2])
print(model.logits(np.zeros((1, 16, 16, 3), np.uint8)).shape, "torch" in sys.modules)
print(len(gsb_vit.load("digits").class_names))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "site"), str(model)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.split("\n") == ["(1, 3) False", "10", ""], done.stderr
