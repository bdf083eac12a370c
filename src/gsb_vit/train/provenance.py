"""Where a number comes from: the code's commit and the machine."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from gsb_vit import __version__


@cache
def commit() -> str:
    """The checkout's ``git describe`` (``-dirty`` where tracked files differ), else the package's version."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        inside = subprocess.run([*command[:3], "ls-files", "--error-unmatch", __file__], capture_output=True)
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return __version__
    return found.stdout.strip() if inside.returncode == 0 and found.returncode == 0 else __version__


def machine() -> dict[str, str | None]:
    """The processor's name, and the accelerator's where PyTorch has one."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu_name(), "gpu": gpu}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
