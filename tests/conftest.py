"""What all tests share: threads, Hypothesis without a clock, and a line about what was not run."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker has a core: PyTorch, NumPy and the processes that tests start take one thread unless told otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# No test asks the hub for a teacher's weights; those of the hub have one of their own.
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import HealthCheck, settings
from needs import left_out

# A busy machine makes no example wrong. The same examples in every run: what fails here fails everywhere.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def one_thread():
    """PyTorch on one thread, so that its sums do not depend on the machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Say in one line, above pytest's own last one, which parts of the suite were not run for lack of what."""
    yield
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in skipped]
    files = [report.nodeid.partition("::")[0] for report in skipped]
    terminalreporter.write_line(left_out(zip(files, reasons, strict=True)))
