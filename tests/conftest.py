"""What every test gets: one thread a process, no GPU, and no rank left running after it."""

import os
import sys
from collections.abc import Iterator

import pytest

# Before anything imports torch: sums do not depend on the number of cores, and two ranks do not fight over them.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""})


def pytest_collection_finish() -> None:
    """Load torch and deepspeed in the background, where a collected test is going to start ranks."""
    if "tests.ranks" in sys.modules:
        sys.modules["tests.ranks"].start_server()


@pytest.fixture(autouse=True)
def _no_rank_survives() -> Iterator[None]:
    yield
    if "tests.ranks" in sys.modules:
        sys.modules["tests.ranks"].end_all()
