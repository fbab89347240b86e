"""What every test gets: one thread a process, no GPU, and no rank left running after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before anything imports torch: sums do not depend on the number of cores, and two ranks do not fight over them.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""})

if TYPE_CHECKING:
    from tests.training import Done, Recipe


def pytest_collection_finish() -> None:
    """Load torch and deepspeed in the background, where a collected test is going to start ranks."""
    if "tests.ranks" in sys.modules:
        sys.modules["tests.ranks"].start_server()


@pytest.fixture(autouse=True)
def _no_rank_survives() -> Iterator[None]:
    yield
    if "tests.ranks" in sys.modules:
        sys.modules["tests.ranks"].end_all()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The handwritten digits, packed: upstream/{train,val} has the classes 0-5, downstream/{train,val} 6-9."""
    from data_pipeline.__main__ import main

    root = tmp_path_factory.mktemp("digits")
    for name, classes in (("upstream", "012345"), ("downstream", "6789")):
        common = ["--hold-out", "0.2", "--shard-samples", "50", "--workers", "1"]
        assert main(["pack", "digits", str(root / name), *common, "--classes", *classes]) == 0
    return root


@pytest.fixture
def pretraining(digits: Path, tmp_path: Path) -> Recipe:
    """A pretraining run of ten steps, not started."""
    from tests import training

    return training.pretraining(digits, tmp_path)


@pytest.fixture(scope="session")
def pretrained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A finished pretraining run at ZeRO-3 on two ranks."""
    from tests import training

    return training.pretraining(digits, tmp_path_factory.mktemp("pretrained"), engine__zero_stage=3).run(ranks=2)


@pytest.fixture
def finetuning(digits: Path, pretrained: Done, tmp_path: Path) -> Recipe:
    """A fine-tuning run of eight steps from `pretrained`, not started."""
    from tests import training

    return training.finetuning(digits, pretrained.folder / "weights", tmp_path)
