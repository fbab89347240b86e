"""Each judgement at its borders, and the whole examination of the machine that runs this test."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import launch.doctor as doctor
from launch.doctor import GIB, Finding, numbers_in

HERE = Path("/runs")
H200 = ["NVIDIA H200", 141 * GIB]


@pytest.mark.parametrize(
    ("finding", "mark", "words"),
    [
        (doctor.judge_python((3, 12, 1), (3, 11)), "ok", "3.12.1 on"),
        (doctor.judge_python((3, 11, 0), (3, 11)), "ok", "3.11.0 on"),
        (
            doctor.judge_python((3, 10, 9), (3, 11)),
            "STOP",
            "-> install Python 3.11 or newer and run make setup with it",
        ),
        (doctor.judge_torch(None, "No module named torch", 0), "STOP", "cannot be imported: No module named torch"),
        (doctor.judge_torch({"cuda": "13.2", "gpus": []}, "", 0), "ok", "no GPU: runs use the CPU"),
        (
            doctor.judge_torch({"cuda": "13.2", "gpus": [H200, H200]}, "", 2),
            "ok",
            "2 x NVIDIA H200, 141 GiB, CUDA 13.2",
        ),
        (
            doctor.judge_torch({"cuda": "13.2", "gpus": []}, "", 8),
            "note",
            "shows 8 GPUs, but torch (CUDA 13.2) can use none",
        ),
        (doctor.judge_torch({"cuda": "13.2", "gpus": []}, "", 8), "note", "-> update the NVIDIA driver or make setup"),
        (doctor.judge_compiler("/bin/c++", "/bin/ninja"), "ok", "/bin/c++, /bin/ninja"),
        (doctor.judge_compiler(None, "/bin/ninja"), "note", "no C++ compiler: engine.compile cannot be true"),
        (doctor.judge_compiler(None, None), "note", "no C++ compiler and ninja: "),
        (doctor.judge_compiler("/bin/c++", None), "note", "-> install g++ (ninja comes with make setup)"),
        (doctor.judge_disk(HERE, True, 21 * GIB), "ok", "21.0 GiB free in /runs"),
        (doctor.judge_disk(HERE, True, 19 * GIB), "note", "-> enough for the demo"),
        (doctor.judge_disk(HERE, True, GIB - 1), "STOP", "-> free some space"),
        (doctor.judge_disk(HERE, False, 99 * GIB), "STOP", "/runs may not be written by this user"),
        (doctor.judge_shared_memory(GIB), "ok", "1.00 GiB in /dev/shm"),
        (doctor.judge_shared_memory(64 << 20), "note", "start the container with --shm-size=8g or set data.workers=0"),
        (doctor.judge_memory(4 * GIB), "ok", "4.0 GiB available"),
        (doctor.judge_memory(3 * GIB), "note", "-> start few ranks"),
        (doctor.judge_memory(GIB - 1), "STOP", "-> end other programs"),
        (doctor.judge_open_files(1024), "ok", "1024 open files allowed"),
        (doctor.judge_open_files(-1), "ok", "any number of open files"),
        (doctor.judge_open_files(256), "note", "-> ulimit -n 4096"),
        (doctor.judge_locks([]), "ok", "no lock left over"),
        (doctor.judge_locks([HERE / "a", HERE / "b"]), "note", "waits for it without end: rm /runs/a /runs/b"),
        (doctor.judge_slurm(None, None), "ok", "python -m launch local"),
        (doctor.judge_slurm("/bin/sbatch", None), "note", "no controller answers sinfo"),
        (doctor.judge_slurm("/bin/sbatch", "gpu* 4\ndebug 1\n"), "ok", "partitions gpu* (4 nodes), debug (1 nodes)"),
    ],
)
def test_judgement(finding: Finding, mark: str, words: str) -> None:
    assert finding.mark == mark
    assert words in f"{finding.fact} -> {finding.cure}"
    assert (finding.mark == "ok") == (finding.cure == "")


def test_packages() -> None:
    wanted = {"torch": (2, 11), "numpy": (), "pydantic": (2, 12)}
    installed = {"torch": "2.15.0+cu132", "numpy": "2.4.6", "pydantic": "2.12.0"}
    assert doctor.judge_packages(wanted, installed) == [
        Finding("packages", "ok", "torch 2.15.0+cu132, numpy 2.4.6, pydantic 2.12.0")
    ]
    assert doctor.judge_packages(wanted, {"torch": "2.9.1", "pydantic": "2.14.3"}) == [
        Finding("torch", "STOP", "2.9.1, needs torch >= 2.11", "make setup"),
        Finding("numpy", "STOP", "not installed, needs numpy", "make setup"),
    ]


def test_the_projects_own_requirements_are_the_rule() -> None:
    wanted = doctor.requirements(doctor.PROJECT / "pyproject.toml")
    assert wanted["deepspeed"] >= (0, 19, 8) and wanted["numpy"] == ()
    assert doctor.requires_python(doctor.PROJECT / "pyproject.toml") == (3, 11)
    assert wanted.keys() <= doctor.installed_versions().keys()


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.15.0+cu132", (2, 15, 0)), (">=3.11", (3, 11)), ("", ()), ("13", (13,)), ("1.0rc1", (1, 0))],
)
def test_numbers_in(version: str, numbers: tuple[int, ...]) -> None:
    assert numbers_in(version) == numbers


def test_memory_and_old_locks(tmp_path: Path) -> None:
    assert doctor.available_memory_bytes("MemTotal:  9 kB\nMemAvailable:   2048 kB\n") == 2 << 20
    for name, age_s in [("old", 7200), ("young", 60)]:
        lock = tmp_path / "py311_cpu" / name / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        os.utime(lock, (1e9 - age_s, 1e9 - age_s))
    assert doctor.stale_locks(tmp_path, now_s=1e9) == [tmp_path / "py311_cpu" / "old" / "lock"]
    assert doctor.stale_locks(tmp_path / "none", now_s=1e9) == []


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (
            lambda: subprocess.CompletedProcess([], 0, 'noise\n{"cuda": null, "gpus": []}\n', ""),
            ({"cuda": None, "gpus": []}, ""),
        ),
        (
            lambda: subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: libcudart\n"),
            (None, "ImportError: libcudart"),
        ),
        (lambda: subprocess.CompletedProcess([], -11, "", ""), (None, "exit code -11")),
    ],
)
def test_what_torch_answers(answers: Callable[[], Any], expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: answers())
    assert doctor.ask_torch() == expected


def test_a_torch_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TORCH_QUESTION", "import time; time.sleep(60)")
    assert doctor.ask_torch(limit_s=0.1) == (None, "no answer within 0.1 s")


FINE, BAD = Finding("python", "ok", "3.12"), Finding("disk", "STOP", "none left", "buy one")


def test_report_for_people() -> None:
    assert doctor.report([FINE], as_json=False) == "ok    python  3.12\n\nNothing would stop a run. Next: make demo"
    assert doctor.report([FINE, BAD], as_json=False).splitlines() == [
        "ok    python  3.12",
        "STOP  disk    none left",
        "              -> buy one",
        "",
        "1 of these would stop a run: cure them, then python -m launch doctor",
    ]


def test_report_for_programs() -> None:
    facts = json.loads(doctor.report([FINE, BAD], as_json=True))
    assert facts["ready"] is False and facts["next"] == "python -m launch doctor"
    assert facts["findings"][1] == {"name": "disk", "mark": "STOP", "fact": "none left", "cure": "buy one"}
    assert json.loads(doctor.report([FINE], as_json=True))["ready"] is True


def test_this_machine_can_run_what_is_tested_on_it() -> None:
    command = [sys.executable, "-m", "launch", "doctor", "--json"]
    examined = subprocess.run(command, cwd=doctor.PROJECT, capture_output=True, text=True, check=False)
    facts = json.loads(examined.stdout)
    assert examined.returncode == 0 and facts["ready"]
    names = [finding["name"] for finding in facts["findings"]]
    assert names == [
        "python",
        "packages",
        "torch",
        "compiler",
        "disk",
        "shm",
        "memory",
        "cores",
        "files",
        "builds",
        "slurm",
    ]
