"""What several test files share."""

import pytest


@pytest.fixture
def one_thread():
    """PyTorch on one thread, so that its sums do not depend on the machine."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
