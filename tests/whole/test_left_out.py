"""What a run says of the tests it skipped: one line, the last but pytest's own."""

import os
import subprocess
import sys
from pathlib import Path

from needs import left_out
from paths import HELPERS, ROOT
from processes import HANG_SECONDS

SKIPPING = """
import pytest
from needs import needs, skip_without

def test_one():
    skip_without("AArch64", "qemu-aarch64", "aarch64-linux-gnu-g++")

@needs("CUDA", "a CUDA device", False)
def test_two():
    pass

def test_three():
    pytest.importorskip("no_such_module")

def test_four():
    pass
"""


def test_parts_are_named_once_with_all_that_they_lack():
    skipped = [
        ("tests/a.py", "peers: without openvino"),
        ("tests/b.py", "peers: without onnxruntime, openvino"),
        ("tests/c.py", "could not import 'timm': No module named 'timm'"),
        ("tests/c.py", "something else"),
    ]
    assert left_out(skipped) == (
        "not run here: c.py (without timm); peers (without onnxruntime, openvino); some of c.py (something else)"
    )
    assert left_out([]) == "not run here: nothing"


def test_it_is_the_last_line_but_pytests_own(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SKIPPING)
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-ra",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
        "-c",
        os.devnull,
    ]
    done = subprocess.run(
        [*command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    *_, said, closing = done.stdout.splitlines()
    assert said == (
        "not run here: AArch64 (without aarch64-linux-gnu-g++, qemu-aarch64); CUDA (without a CUDA device); "
        "test_it.py (without no_such_module)"
    ), done.stdout + done.stderr
    assert "1 passed, 3 skipped" in closing
