"""What this host has to give, found without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def num_cores(cgroup_cpu: Path = CGROUP_CPU) -> int:
    """Cores that this process may use: its affinity, and a container's quota where that is less."""
    cores = len(os.sched_getaffinity(0))
    if cgroup_cpu.exists():
        quota_us, period_us = cgroup_cpu.read_text().split()
        if quota_us != "max":
            cores = min(cores, max(1, int(quota_us) // int(period_us)))
    return cores


def num_gpus(env: Mapping[str, str] = os.environ) -> int:
    """NVIDIA GPUs that the driver shows and CUDA_VISIBLE_DEVICES leaves."""
    listed = output_of("nvidia-smi", "-L")
    present = sum(line.startswith("GPU ") for line in listed.splitlines()) if listed else 0
    if "CUDA_VISIBLE_DEVICES" not in env:
        return present
    names = [name.strip() for name in env["CUDA_VISIBLE_DEVICES"].split(",")]
    visible = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))  # CUDA reads no further
    return min(present, visible)


def compiler(for_gpu: bool) -> str | None:
    """The compiler that torch.compile would call: Triton's for a GPU ($CC, gcc, clang), else Inductor's ($CXX, g++)."""
    chosen, names = ("CC", ("gcc", "clang")) if for_gpu else ("CXX", ("g++",))
    found = [shutil.which(name) for name in (os.environ.get(chosen), *names) if name]
    return next((path for path in found if path), None)


def path_with_scripts(env: Mapping[str, str] = os.environ) -> str:
    """PATH with this interpreter's own programs first (ninja, torchrun): nobody has to activate an environment."""
    return os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])


def output_of(*command: str, limit_s: float = 20.0) -> str | None:
    """What a program prints, or None when it is not there, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return None
