"""Two processes on gloo get the gradients of one process with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import HELPERS, SOURCE
from processes import HANG_SECONDS
from safetensors.torch import load_file

pytest.importorskip("accelerate")

SCRIPT = HELPERS / "two_processes.py"


def gradients(out: Path, processes: int) -> dict[str, torch.Tensor]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launch, str(SCRIPT), str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(out)


# Three processes that load PyTorch, two of them together under its launcher.
@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    one = gradients(tmp_path / "one.safetensors", 1)
    two = gradients(tmp_path / "two.safetensors", 2)
    assert int(one.pop("processes")) == 1 and int(two.pop("processes")) == 2
    assert one.keys() == two.keys()
    assert any(name.endswith("attention_quantizer.scale") and bool(one[name].any()) for name in one)
    for name, expected in one.items():
        difference = float((two[name] - expected).norm() / expected.norm().clamp(min=1e-12))
        assert difference < 1e-4, f"{name}: relative difference {difference:.2e}"
