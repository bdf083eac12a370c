"""The wheel for AArch64: cross-built here, installed with pip by an emulated Debian Python, and asked.

    python benchmarks/aarch64_wheel.py WORK_FOLDER [--json]

1. Debian's Python 3.11 for arm64 and its headers are unpacked into WORK_FOLDER/root. apt's lists and settings are
   WORK_FOLDER's own, so nothing of this machine's packages is touched.
2. The wheel is built with aarch64-linux-gnu-g++ and this Python: 3.11 with scikit-build-core, nanobind and ninja.
3. Its requirements are downloaded as wheels for manylinux on AArch64.
4. `pip install` and `gsb-vit predict` run under qemu-aarch64, on models of every shape of tests/helpers. The answers
   must be those of this machine.

What is there already is kept, so a second run only repeats what changed. Needs qemu-user, g++-aarch64-linux-gnu, apt.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

PACKAGES = ("python3", "python3-distutils", "libpython3.11-dev", "libstdc++6")
TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-g++", "apt-get", "dpkg")
TAG = ".cpython-311-aarch64-linux-gnu.so"


def run(*command, **options):
    """Run a command that must succeed and return what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def unpack_python(work):
    """Return the root folder that holds Debian's Python for arm64."""
    root, apt = work / "root", work / "apt"
    if (root / "usr/bin/python3.11").exists():
        return root
    for folder in (
        "etc/apt",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
        "var/lib/dpkg",
        "var/log/apt",
    ):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    for name in ("sources.list", "sources.list.d", "trusted.gpg.d"):
        source = Path("/etc/apt") / name
        if source.is_dir():
            shutil.copytree(source, apt / "etc/apt" / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, apt / "etc/apt" / name)
    (apt / "var/lib/dpkg/status").touch()
    settings = f'Dir "{apt}/";\nDir::State::status "{apt}/var/lib/dpkg/status";\nAPT::Architecture "arm64";\n'
    (apt / "apt.conf").write_text(settings + 'APT::Architectures { "arm64"; };\n')
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    run("apt-get", "update", env=environment)
    run("apt-get", "install", "-y", "--download-only", "--no-install-recommends", *PACKAGES, env=environment)
    for package in sorted((apt / "var/cache/apt/archives").glob("*.deb")):
        run("dpkg", "-x", package, root)
    return root


def build_wheel(work, root):
    """Return the wheel for AArch64."""
    environment = {**os.environ, "_PYTHON_HOST_PLATFORM": "linux-aarch64", "SETUPTOOLS_EXT_SUFFIX": TAG}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    definitions = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "aarch64-linux-gnu.cmake",
        "Python_INCLUDE_DIR": root / "usr/include/python3.11",
        "CMAKE_CXX_FLAGS": f"-I{root / 'usr/include'}",
    }
    options = [f"-Ccmake.define.{name}={value}" for name, value in definitions.items()]
    pip = [sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation"]
    run(*pip, "-w", work / "out", f"-Cbuild-dir={work / 'build'}", *options, env=environment)
    (wheel,) = (work / "out").glob("gsb_vit-*-cp311-cp311-linux_aarch64.whl")
    return wheel


def install(work, root, wheel):
    """Install the wheel under the emulator; return the command that runs gsb-vit there."""
    python = ["qemu-aarch64", "-L", root, root / "usr/bin/python3.11"]
    wheels, target = work / "wheels", work / "site"
    tags = [f"--platform={tag}_aarch64" for tag in ("linux", "manylinux_2_17", "manylinux_2_27", "manylinux_2_28")]
    ask = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version=3.11", *tags]
    run(*ask, "-d", wheels, "pip", wheel, "--find-links", work / "out")
    pip = next(wheels.glob("pip-*.whl"))
    shutil.rmtree(target, ignore_errors=True)
    given = ["install", "-q", "--no-index", f"--find-links={wheels}", f"--target={target}", wheel]
    run(*python, pip / "pip", *given, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    return [*python, "-m", "gsb_vit"], {**os.environ, "PYTHONPATH": str(target)}


LOGITS = """
import sys, gsb_vit
for path in sys.argv[1:]:
    model = gsb_vit.load(path + "/model.safetensors")
    for picture in ("/a.jpg", "/b.png"):
        print(path, model.logits(model.prepare(path + picture)[None]).tobytes().hex())
"""


def write_questions(folder):
    """Write a model of every shape with two pictures of another size; return their folders."""
    from PIL import Image
    from random_packed import SHAPES, random_pictures, write_random_packed

    folders = [folder / name for name in SHAPES]
    for one, shape in zip(folders, SHAPES.values(), strict=True):
        one.mkdir(parents=True, exist_ok=True)
        packed = write_random_packed(one / "model.safetensors", seed=1, **shape)
        for name, pixels in zip(("a.jpg", "b.png"), random_pictures(packed.architecture, 2, seed=1), strict=True):
            Image.fromarray(pixels).resize((97, 71)).save(one / name)
    return folders


def compare(command, environment, folders):
    """Ask both machines about the same pictures; return how many logits and how many answers of `predict` agreed.

    Logits are equal to the last bit. Probabilities are NumPy's exponentials, which differ between processors in theirs.
    """
    here = [sys.executable, "-m", "gsb_vit"], {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    logits, answers = [], []
    for program, own in (here, (command, environment)):
        logits.append(run(*program[:-2], "-c", LOGITS, *folders, env=own).splitlines())
        question = [folders[0] / "model.safetensors", folders[0] / "a.jpg", folders[0] / "b.png", "--format", "json"]
        said = json.loads(run(*program, "predict", *question, env=own))
        answers.append([[(p["class"], round(p["probability"], 12)) for p in one["predictions"]] for one in said])
    if logits[0] != logits[1] or answers[0] != answers[1]:
        raise SystemExit(f"here {logits[0]} {answers[0]}, there {logits[1]} {answers[1]}")
    return len(logits[0]), len(answers[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if lacks := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise SystemExit(f"{', '.join(lacks)}: not found; apt-get install qemu-user g++-aarch64-linux-gnu")
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("run this with Python 3.11, which is the one of Debian 12")
    work = options.work.resolve()
    root = unpack_python(work)
    wheel = build_wheel(work, root)
    command, environment = install(work, root, wheel)
    what = "import gsb_vit, platform; from gsb_vit import _native; print(platform.machine(), _native.backends())"
    said = run(*command[:-2], "-c", what, env=environment).strip()
    row = {"wheel": wheel.name, "bytes": wheel.stat().st_size, "runs": said}
    row["equal_logits"], row["equal_answers"] = compare(command, environment, write_questions(work / "questions"))
    print(json.dumps(row) if options.json else "\n".join(f"{name}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
