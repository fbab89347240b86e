"""Who this process is among the ranks of its job: found once, in one place, whoever started it.

    started by                            found in
    torchrun, python -m launch local      RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    srun (one task a rank)                SLURM_STEP_*, SLURM_PROCID, SLURM_LOCALID, SLURM_NODEID
    a shell, inside a job or not          nothing: one rank by itself

The shell of sbatch or salloc carries SLURM_NTASKS of the whole job too; only a numbered *step* says that ranks exist.
"""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
PORTS = range(20_000, 30_000)  # under Linux's ephemeral ports (32768 and up): no outgoing connection sits on one
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # from here on Slurm numbers the batch script, salloc's shell and the like (slurm.h)
START_RANKS = "start the ranks with `python -m launch local --ranks N`, torchrun or srun"


class WorldError(ValueError):
    """The environment does not say consistently which rank this is."""


@dataclass(frozen=True)
class World:
    """One rank's place in its job; `local` counts the ranks of this host only."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    master_addr: str
    master_port: int

    @classmethod
    def detect(cls, env: Mapping[str, str] = os.environ) -> World:
        """This process's place; raises WorldError when the variables are incomplete or contradict each other."""
        if "RANK" in env or "LOCAL_RANK" in env:
            return cls._from_torchrun(env)
        if _in_step_of_ranks(env):
            return cls._from_slurm(env)
        if env.get("WORLD_SIZE", "1") != "1":
            size = env["WORLD_SIZE"]
            raise WorldError(f"WORLD_SIZE={size}, but RANK is not set: unset it to run one rank, or {START_RANKS}")
        return cls(rank=0, size=1, local_rank=0, local_size=1, master_addr=LOOPBACK, master_port=free_port())

    @classmethod
    def _from_torchrun(cls, env: Mapping[str, str]) -> World:
        size = _number(env, "WORLD_SIZE", range(1, 1 << 31))
        local_size = _number(env, "LOCAL_WORLD_SIZE", range(1, size + 1))
        return cls(
            rank=_number(env, "RANK", range(size)),
            size=size,
            local_rank=_number(env, "LOCAL_RANK", range(local_size)),
            local_size=local_size,
            master_addr=_text(env, "MASTER_ADDR"),
            master_port=_number(env, "MASTER_PORT", range(1, 1 << 16)),
        )

    @classmethod
    def _from_slurm(cls, env: Mapping[str, str]) -> World:
        size = _number(env, "SLURM_STEP_NUM_TASKS", range(1, 1 << 31))
        rank = _number(env, "SLURM_PROCID", range(size))
        nodelist, tasks = _text(env, "SLURM_STEP_NODELIST"), _text(env, "SLURM_STEP_TASKS_PER_NODE")
        hosts, tasks_per_host = expand_hosts(nodelist), expand_counts(tasks)
        if len(hosts) != len(tasks_per_host) or sum(tasks_per_host) != size:
            raise WorldError(
                f"SLURM_STEP_TASKS_PER_NODE={tasks} does not share SLURM_STEP_NUM_TASKS={size} among "
                f"SLURM_STEP_NODELIST={nodelist}: do not set Slurm's own variables by hand"
            )
        if env.get("WORLD_SIZE", str(size)) != str(size):
            raise WorldError(
                f"WORLD_SIZE={env['WORLD_SIZE']}, but SLURM_STEP_NUM_TASKS={size}: unset it, srun says it by itself"
            )
        host = _number(env, "SLURM_NODEID", range(len(hosts)))
        if rank == 0 and host != 0 and not env.get("MASTER_ADDR"):
            raise WorldError(
                f"SLURM_NODEID={host}: rank 0 is not on the first host of SLURM_STEP_NODELIST={nodelist}, where "
                "the others look for it; leave srun's --distribution alone or set MASTER_ADDR to the host of task 0"
            )
        local_size = tasks_per_host[host]
        return cls(
            rank=rank,
            size=size,
            local_rank=_number(env, "SLURM_LOCALID", range(local_size)),
            local_size=local_size,
            # Not SLURM_LAUNCH_NODE_IPADDR: that is where srun was typed, maybe a login node.
            master_addr=env.get("MASTER_ADDR") or (hosts[0] if len(hosts) > 1 else LOOPBACK),
            master_port=_number(env, "MASTER_PORT", range(1, 1 << 16))
            if env.get("MASTER_PORT")
            else _port_of_step(env),
        )

    @property
    def device(self) -> str:
        """This rank's torch device: `cuda:N`, or `cpu` without a GPU or with DS_ACCELERATOR=cpu.

        Raises WorldError when this host has several GPUs, but fewer than ranks.
        """
        if os.environ.get("DS_ACCELERATOR") == "cpu":
            return "cpu"
        import torch

        num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if num_gpus <= 1:  # one: srun --gpus-per-task=1 shows each rank its own GPU, as number 0
            return "cuda:0" if num_gpus else "cpu"
        if self.local_rank >= num_gpus:
            raise WorldError(
                f"rank {self.rank} is number {self.local_rank} on this host, which shows {num_gpus} GPUs: "
                f"start at most {num_gpus} ranks a host, or set DS_ACCELERATOR=cpu"
            )
        return f"cuda:{self.local_rank}"

    def variables(self) -> dict[str, str]:
        """The place in torchrun's variables, which every library reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }

    def export(self, env: MutableMapping[str, str] = os.environ) -> None:
        """Put the place into the environment, where torch and deepspeed look for it: neither knows Slurm."""
        env.update(self.variables())


def free_port() -> int:
    """A TCP port that nobody on this host listens on at the moment."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
                return port
            except OSError:
                continue
    raise OSError(f"none of 100 ports tried in {PORTS.start} .. {PORTS.stop - 1} is free on this host")


def expand_hosts(nodelist: str) -> list[str]:
    """Slurm's short form of host names, written out: `gpu[001-002,7],login` is gpu001, gpu002, gpu7, login."""
    hosts = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        expanded = [""]
        for plain, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", name):
            choices = [plain] if plain else [number for part in ranges.split(",") for number in _numbers(part)]
            expanded = [head + tail for head in expanded for tail in choices]
        hosts += expanded
    return hosts


def _numbers(part: str) -> list[str]:
    first, _, last = part.partition("-")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]


def expand_counts(counts: str) -> list[int]:
    """Slurm's short form of numbers per host, written out: `2(x3),1` is 2, 2, 2, 1."""
    return [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]


def _in_step_of_ranks(env: Mapping[str, str]) -> bool:
    return "SLURM_STEP_ID" in env and _number(env, "SLURM_STEP_ID", range(1 << 32)) < FIRST_SPECIAL_STEP


def _port_of_step(env: Mapping[str, str]) -> int:
    """A port that all ranks derive alike; jobs, and steps of one job, that share a host get different ones."""
    job, step = _number(env, "SLURM_JOB_ID", range(1 << 32)), _number(env, "SLURM_STEP_ID", range(FIRST_SPECIAL_STEP))
    return PORTS[(job + 997 * step) % len(PORTS)]


def _text(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise WorldError(f"{name} is not set, though this process was started as one of several ranks: {START_RANKS}")
    return env[name]


def _number(env: Mapping[str, str], name: str, allowed: range) -> int:
    text = _text(env, name)
    if not text.isdecimal() or int(text) not in allowed:
        rule = f"must be a whole number from {allowed.start} to {allowed.stop - 1}"
        raise WorldError(f"{name}={text}: {rule}; {START_RANKS}")
    return int(text)
