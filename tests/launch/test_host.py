"""What this host has to give."""

import os
import sysconfig
from pathlib import Path

import pytest

import launch.host
from launch.host import num_cores, num_gpus, output_of, path_with_scripts

TWO_GPUS = """GPU 0: NVIDIA H200 (UUID: GPU-9d0a)
  MIG 1g.18gb     Device  0: (UUID: MIG-a1)
GPU 1: NVIDIA H200 (UUID: GPU-77b1)
"""


@pytest.mark.parametrize(
    ("listed", "env", "count"),
    [
        (None, {}, 0),
        (None, {"CUDA_VISIBLE_DEVICES": "0,1"}, 0),
        (TWO_GPUS, {}, 2),
        (TWO_GPUS, {"CUDA_VISIBLE_DEVICES": "1"}, 1),
        (TWO_GPUS, {"CUDA_VISIBLE_DEVICES": "0, 1"}, 2),
        (TWO_GPUS, {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (TWO_GPUS, {"CUDA_VISIBLE_DEVICES": "0,-1,1"}, 1),
    ],
)
def test_num_gpus(listed: str | None, env: dict[str, str], count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.host, "output_of", lambda *command: listed)
    assert num_gpus(env) == count


def test_cores_are_those_of_this_process_and_of_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    quota = tmp_path / "cpu.max"
    assert num_cores(quota) == 8
    for text, cores in [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)]:
        quota.write_text(text + "\n")
        assert num_cores(quota) == cores


def test_this_interpreters_programs_come_first() -> None:
    assert path_with_scripts({"PATH": "/usr/bin"}) == f"{sysconfig.get_path('scripts')}:/usr/bin"


def test_a_program_that_is_missing_fails_or_hangs_has_no_output() -> None:
    assert output_of("echo", "words") == "words\n"
    assert output_of("no-such-program-anywhere") is None
    assert output_of("false") is None
    assert output_of("sleep", "10", limit_s=0.05) is None
