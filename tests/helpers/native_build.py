"""Builds of the native library, its examples and its test programs, for the tests that run them outside Python."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from needs import skip_without
from paths import ROOT
from processes import HANG_SECONDS

CROSS_TOOLS = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc", "qemu-aarch64")


def found(program):
    """Return the path of a program, from beside this Python or from PATH; None where there is none."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)


def needed(program, part="native programs"):
    """Return the path of a program; skip the test, which belongs to a part of the suite, where there is none."""
    path = found(program)
    if path is None:
        skip_without(part, program)
    return path


def run(*command, ok=True, **options):
    """Run a command, which has to succeed, and return what became of it."""
    done = subprocess.run([str(part) for part in command], capture_output=True, timeout=HANG_SECONDS, **options)
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert not ok or done.returncode == 0, f"{command}\n{said[-6000:]}"
    return done


@contextlib.contextmanager
def locked(name):
    """Hold and return the folder build/tests/``name``: who would build there, in this run or another, take turns."""
    folder = ROOT / "build" / "tests" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def build(name, *options, targets=("all",)):
    """Build without Python in build/tests/``name`` and return that folder; what is up to date there is kept."""
    cmake, ninja = needed("cmake"), needed("ninja")
    settings = [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DGSB_VIT_PYTHON=OFF"]
    settings += [f"-DGSB_VIT_{part}=ON" for part in ("EXAMPLES", "CLASSIFY", "TESTS")]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")
    with locked(name) as folder:
        run(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *settings, *options)
        run(cmake, "--build", folder, "--parallel", jobs, "--target", *targets)
    return folder


def build_here(*targets):
    """Build for this machine, all or these targets; warnings are errors."""
    return build("here", "-DGSB_VIT_NATIVE_WARNINGS=ON", targets=targets or ("all",))


def build_aarch64(*targets):
    """Build for 64-bit ARM, programs linked statically; skip where the cross compiler or the emulator is missing."""
    if lacking := [tool for tool in CROSS_TOOLS if found(tool) is None]:
        skip_without("AArch64", *lacking)
    toolchain = ROOT / "cmake" / "aarch64-linux-gnu.cmake"
    options = [f"-DCMAKE_TOOLCHAIN_FILE={toolchain}", "-DGSB_VIT_NATIVE_WARNINGS=ON"]
    return build("aarch64", *options, targets=targets or ("all",))
