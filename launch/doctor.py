"""What on this machine would stop a run, or slow it down, and the cure for each.

ok     as it should be
note   a run starts, but something is off or less than it could be
STOP   no run would start, or it would soon fail
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from launch.host import num_cores, num_gpus, output_of, path_with_scripts

PROJECT = Path(__file__).resolve().parent.parent
GIB = 1 << 30

TORCH_QUESTION = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(i) for i in range(count)]
print(json.dumps({"cuda": torch.version.cuda, "gpus": [[gpu.name, gpu.total_memory] for gpu in gpus]}))
"""


@dataclass(frozen=True)
class Finding:
    """One fact about this machine; `cure` says what to do where the mark is not ok."""

    name: str
    mark: Literal["ok", "note", "STOP"]
    fact: str
    cure: str = ""


def examine(folder: Path) -> list[Finding]:
    """Look at everything that a run started in `folder` would need; takes the seconds of a torch import."""
    packages = judge_packages(requirements(PROJECT / "pyproject.toml"), installed_versions())
    return [
        judge_python(sys.version_info[:3], requires_python(PROJECT / "pyproject.toml")),
        *packages,
        judge_torch(*ask_torch(), num_gpus()),
        judge_compiler(first_found("c++", "g++", "clang++"), first_found("ninja")),
        judge_disk(folder, os.access(folder, os.W_OK | os.X_OK), shutil.disk_usage(folder).free),
        judge_shared_memory(shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0),
        judge_memory(available_memory_bytes(Path("/proc/meminfo").read_text())),
        Finding("cores", "ok", f"{num_cores()} for this process"),
        judge_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        judge_locks(stale_locks(extensions_folder(), time.time())),
        judge_slurm(shutil.which("sbatch"), output_of("sinfo", "--noheader", "--format=%P %D")),
    ]


def next_command(findings: Sequence[Finding]) -> str:
    """The command to type after reading the findings."""
    return "python -m launch doctor" if any(finding.mark == "STOP" for finding in findings) else "make demo"


def report(findings: Sequence[Finding], as_json: bool) -> str:
    """The findings as lines for people or as one JSON object."""
    if as_json:
        ready = all(finding.mark != "STOP" for finding in findings)
        facts = {"ready": ready, "findings": [asdict(finding) for finding in findings], "next": next_command(findings)}
        return json.dumps(facts, indent=2)
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.mark:<5} {finding.name:<{width}}  {finding.fact}")
        if finding.cure:
            lines.append(f"{'':<5} {'':<{width}}  -> {finding.cure}")
    stops = sum(finding.mark == "STOP" for finding in findings)
    verdict = f"{stops} of these would stop a run: cure them, then" if stops else "Nothing would stop a run. Next:"
    return "\n".join([*lines, "", f"{verdict} {next_command(findings)}"])


# --- Judgements: a fact in, a finding out ----------------------------------------------------------------------------


def judge_python(version: Sequence[int], least: Sequence[int]) -> Finding:
    fact = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if tuple(version[: len(least)]) < tuple(least):
        wanted = ".".join(map(str, least))
        return Finding("python", "STOP", fact, f"install Python {wanted} or newer and run make setup with it")
    return Finding("python", "ok", fact)


def judge_packages(wanted: Mapping[str, tuple[int, ...]], installed: Mapping[str, str]) -> list[Finding]:
    """One finding a missing or old package; one for all when none is."""
    findings = []
    for name, least in wanted.items():
        at_least = f" >= {'.'.join(map(str, least))}" if least else ""
        if name not in installed:
            findings.append(Finding(name, "STOP", f"not installed, needs {name}{at_least}", "make setup"))
        elif numbers_in(installed[name]) < least:
            findings.append(Finding(name, "STOP", f"{installed[name]}, needs {name}{at_least}", "make setup"))
    return findings or [Finding("packages", "ok", ", ".join(f"{name} {installed[name]}" for name in wanted))]


def judge_torch(answer: Mapping[str, Any] | None, error: str, num_driver_gpus: int) -> Finding:
    if answer is None:
        return Finding(
            "torch", "STOP", f"cannot be imported: {error}", "make setup (TORCH=system takes the machine's own)"
        )
    if answer["gpus"]:
        (name, memory_bytes), count = answer["gpus"][0], len(answer["gpus"])
        return Finding("torch", "ok", f"{count} x {name}, {memory_bytes / GIB:.0f} GiB, CUDA {answer['cuda']}")
    if num_driver_gpus:
        fact = f"the driver shows {num_driver_gpus} GPUs, but torch (CUDA {answer['cuda']}) can use none"
        return Finding(
            "torch", "note", fact, "update the NVIDIA driver or make setup TORCH=system; until then runs use the CPU"
        )
    return Finding("torch", "ok", "no GPU: runs use the CPU")


def judge_compiler(compiler: str | None, ninja: str | None) -> Finding:
    missing = " and ".join(name for name, path in (("C++ compiler", compiler), ("ninja", ninja)) if path is None)
    if missing:
        fact = f"no {missing}: engine.compile cannot be true, all else works"
        return Finding("compiler", "note", fact, "install g++ (ninja comes with make setup)")
    return Finding("compiler", "ok", f"{compiler}, {ninja}")


def judge_disk(folder: Path, writable: bool, free_bytes: int) -> Finding:
    fact = f"{free_bytes / GIB:.1f} GiB free in {folder}"
    if not writable:
        return Finding("disk", "STOP", f"{folder} may not be written by this user", "set run.folder to one that may")
    if free_bytes < GIB:
        return Finding("disk", "STOP", fact, "free some space, or set run.folder to another disk; the demo needs 1 GiB")
    if free_bytes < 20 * GIB:
        return Finding("disk", "note", fact, "enough for the demo; a checkpoint of ViT-L is 4 GiB, of ViT-H 8 GiB")
    return Finding("disk", "ok", fact)


def judge_shared_memory(total_bytes: int) -> Finding:
    fact = f"{total_bytes / GIB:.2f} GiB in /dev/shm"
    if total_bytes < GIB:
        cure = (
            "the loader's workers pass batches through it: start the container with --shm-size=8g or set data.workers=0"
        )
        return Finding("shm", "note", fact, cure)
    return Finding("shm", "ok", fact)


def judge_memory(available_bytes: int) -> Finding:
    fact = f"{available_bytes / GIB:.1f} GiB available"
    if available_bytes < GIB:
        return Finding("memory", "STOP", fact, "end other programs; a rank needs 1 GiB before it has a model")
    if available_bytes < 4 * GIB:
        return Finding("memory", "note", fact, "start few ranks, with data.workers=0")
    return Finding("memory", "ok", fact)


def judge_open_files(limit: int) -> Finding:
    if 0 <= limit < 1024:
        return Finding("files", "note", f"{limit} open files allowed", "ulimit -n 4096: every worker opens shards")
    return Finding("files", "ok", "any number of open files" if limit < 0 else f"{limit} open files allowed")


def judge_locks(locks: Sequence[Path]) -> Finding:
    if locks:
        cure = f"the next build waits for it without end: rm {' '.join(map(str, locks))}"
        return Finding("builds", "note", f"locks left over from killed builds: {len(locks)}", cure)
    return Finding("builds", "ok", "no lock left over from a killed build")


def judge_slurm(sbatch: str | None, partitions: str | None) -> Finding:
    if sbatch is None:
        return Finding("slurm", "ok", "not here: start runs with python -m launch local")
    if not partitions:
        fact = f"{sbatch} is here, but no controller answers sinfo"
        return Finding("slurm", "note", fact, "set SLURM_CONF, or do without: python -m launch local")
    names = ", ".join(f"{name} ({nodes} nodes)" for name, nodes in (line.split() for line in partitions.splitlines()))
    return Finding("slurm", "ok", f"partitions {names}")


# --- Facts -----------------------------------------------------------------------------------------------------------


def requirements(pyproject: Path) -> dict[str, tuple[int, ...]]:
    """The packages that the project needs, each with its least version."""
    found = {}
    for line in tomllib.loads(pyproject.read_text())["project"]["dependencies"]:
        name, _, least = line.partition(">=")
        found[name.strip()] = numbers_in(least)
    return found


def requires_python(pyproject: Path) -> tuple[int, ...]:
    """The least Python version of the project."""
    return numbers_in(tomllib.loads(pyproject.read_text())["project"]["requires-python"])


def numbers_in(version: str) -> tuple[int, ...]:
    """The numbers of a release: (2, 15, 0) for `2.15.0+cu132`."""
    release = re.search(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()


def installed_versions() -> dict[str, str]:
    """Every installed distribution's version, by its normalised name."""
    return {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in metadata.distributions()}


def ask_torch(limit_s: float = 120.0) -> tuple[dict[str, Any] | None, str]:
    """What torch says of CUDA and GPUs, asked in a process of its own; or None and its error."""
    question = [sys.executable, "-c", TORCH_QUESTION]
    try:
        asked = subprocess.run(question, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {limit_s:g} s"
    if asked.returncode != 0:
        return None, (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
    answer: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return answer, ""


def first_found(*programs: str) -> str | None:
    """The path of the first of these programs that a run would find."""
    return next((path for program in programs if (path := shutil.which(program, path=path_with_scripts()))), None)


def available_memory_bytes(meminfo: str) -> int:
    """MemAvailable of /proc/meminfo."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def extensions_folder() -> Path:
    """Where torch builds its extensions."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))


def stale_locks(folder: Path, now_s: float, age_s: float = 3600.0) -> list[Path]:
    """Build locks older than any build: pytorch/pytorch#189245."""
    return [lock for lock in sorted(folder.glob("*/*/lock")) if now_s - lock.stat().st_mtime > age_s]
