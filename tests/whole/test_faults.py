"""The script that makes the table of docs/trust.md, with fewer kills: every fault is survived with the same weights."""

import json
import os
import subprocess
import sys

import pytest
from needs import skip_without
from paths import ROOT
from processes import HANG_SECONDS

pytest.importorskip("accelerate")


# A run of its own for each fault, and another process to resume it.
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="faults.py mounts a tmpfs")
@pytest.mark.parametrize("kind", ["killed", "corrupted", "disks", "clocks"])
def test_every_fault_ends_with_the_weights_of_the_undisturbed_run(kind):
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--only", kind, "--kills", "4", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    rows = json.loads(done.stdout)
    if kind == "disks" and not any(row["tried"] for row in rows):
        skip_without("faults of a disk", "the right to mount a tmpfs")
    for row in rows:
        assert row["tried"] == row["one_line"] == row["same"] > 0, row
