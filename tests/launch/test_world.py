"""Whoever starts the ranks, each finds its place; whatever is missing or contradictory is named.

The `.env` files under environments/ are whole sets of variables, captured from torchrun 2.15 and from a Slurm 22.05 of
three hosts (host, user and folder names changed): what a rank really sees is full of variables that say something else.
"""

import socket
import sys
from pathlib import Path

import pytest

from launch.world import LOOPBACK, PORTS, World, WorldError, expand_counts, expand_hosts, free_port

ENVIRONMENTS = Path(__file__).parent / "environments"
ALONE: dict[str, int | str] = {"rank": 0, "size": 1, "local_rank": 0, "local_size": 1, "master_addr": LOOPBACK}


def captured(name: str, **changes: str | None) -> dict[str, str]:
    env = dict(line.split("=", 1) for line in (ENVIRONMENTS / f"{name}.env").read_text().splitlines())
    env.update({key: value for key, value in changes.items() if value is not None})
    return {key: value for key, value in env.items() if changes.get(key, "") is not None}


def place(rank: int, size: int, local_rank: int, local_size: int, master_addr: str) -> dict[str, int | str]:
    return {"rank": rank, "size": size, "local_rank": local_rank, "local_size": local_size, "master_addr": master_addr}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("torchrun_rank1", place(1, 2, 1, 2, "localhost")),
        ("srun_in_sbatch_rank3", place(3, 5, 1, 2, "gpu1")),
        ("srun_in_sbatch_rank4", place(4, 5, 0, 1, "gpu1")),  # the third host has one task, the others two
        ("srun_in_salloc_rank3", place(3, 4, 1, 2, "gpu1")),
        ("srun_of_one_task", ALONE),  # inside a job of five tasks
        ("sbatch_shell", ALONE),
        ("salloc_shell", ALONE),
        ("salloc_shell_as_interactive_step", ALONE),
    ],
)
def test_place_of_a_rank(environment: str, expected: dict[str, int | str]) -> None:
    world = World.detect(captured(environment))
    assert {name: getattr(world, name) for name in expected} == expected


def test_no_launcher_is_one_rank() -> None:
    world = World.detect({"PATH": "/bin", "WORLD_SIZE": "1"})
    assert place(world.rank, world.size, world.local_rank, world.local_size, world.master_addr) == ALONE
    assert world.master_port in PORTS


def test_torchrun_inside_a_slurm_step_is_torchruns() -> None:
    both = captured("srun_in_sbatch_rank3") | captured("torchrun_rank1")
    assert World.detect(both) == World.detect(captured("torchrun_rank1"))


def test_ports_agree_between_ranks_and_differ_between_jobs_and_steps() -> None:
    ranks = [World.detect(captured(f"srun_in_sbatch_rank{rank}")) for rank in (3, 4)]
    assert ranks[0].master_port == ranks[1].master_port
    others = [
        World.detect(captured("srun_in_sbatch_rank3", SLURM_JOB_ID=job, SLURM_STEP_ID=step)).master_port
        for job, step in [("1", "0"), ("2", "0"), ("1", "1"), ("999999999", "3")]
    ]
    assert len(set(others)) == 4 and set(others) <= set(PORTS)


def test_a_users_own_rendezvous_is_respected() -> None:
    world = World.detect(captured("srun_in_sbatch_rank3", MASTER_ADDR="10.1.2.3", MASTER_PORT="4567"))
    assert (world.master_addr, world.master_port) == ("10.1.2.3", 4567)


@pytest.mark.parametrize(
    ("environment", "changes", "message"),
    [
        ("torchrun_rank1", {"RANK": None}, "RANK is not set"),
        ("torchrun_rank1", {"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ("torchrun_rank1", {"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ("torchrun_rank1", {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ("torchrun_rank1", {"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ("torchrun_rank1", {"MASTER_PORT": "0"}, "MASTER_PORT=0: must be a whole number from 1 to 65535"),
        ("torchrun_rank1", {"RANK": "2"}, "RANK=2: must be a whole number from 0 to 1"),
        ("torchrun_rank1", {"RANK": "-1"}, "RANK=-1: must be"),
        ("torchrun_rank1", {"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be"),
        ("torchrun_rank1", {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE=3: must be a whole number from 1 to 2"),
        ("torchrun_rank1", {"LOCAL_RANK": "2"}, "LOCAL_RANK=2: must be a whole number from 0 to 1"),
        ("srun_in_sbatch_rank3", {"SLURM_PROCID": None}, "SLURM_PROCID is not set"),
        ("srun_in_sbatch_rank3", {"SLURM_PROCID": "5"}, "SLURM_PROCID=5: must be a whole number from 0 to 4"),
        ("srun_in_sbatch_rank3", {"SLURM_LOCALID": "2"}, "SLURM_LOCALID=2: must be"),
        ("srun_in_sbatch_rank3", {"SLURM_NODEID": "3"}, "SLURM_NODEID=3: must be"),
        (
            "srun_in_sbatch_rank3",
            {"SLURM_STEP_TASKS_PER_NODE": "2(x3)"},
            r"SLURM_STEP_TASKS_PER_NODE=2\(x3\) does not share",
        ),
        ("srun_in_sbatch_rank3", {"SLURM_STEP_NODELIST": "gpu[1-2]"}, "does not share"),
        ("srun_in_sbatch_rank3", {"WORLD_SIZE": "4"}, "WORLD_SIZE=4, but SLURM_STEP_NUM_TASKS=5"),
        ("srun_in_sbatch_rank3", {"SLURM_PROCID": "0"}, "SLURM_NODEID=1: rank 0 is not on the first host"),
        ("srun_in_sbatch_rank3", {"RANK": "3"}, "WORLD_SIZE is not set"),  # one variable of torchrun's set by hand
        ("sbatch_shell", {"WORLD_SIZE": "5"}, "WORLD_SIZE=5, but RANK is not set"),
    ],
)
def test_what_is_missing_or_contradictory_is_named(
    environment: str, changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(WorldError, match=f"^{message}" if not message.startswith("does") else message):
        World.detect(captured(environment, **changes))


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("gpu[001-003,007],login2", ["gpu001", "gpu002", "gpu003", "gpu007", "login2"]),
        ("gpu1", ["gpu1"]),
        ("a,b-2,c.example.org", ["a", "b-2", "c.example.org"]),
        ("rack[1-2]n[09-10]-ib", ["rack1n09-ib", "rack1n10-ib", "rack2n09-ib", "rack2n10-ib"]),
        ("gpu[98-101]", ["gpu98", "gpu99", "gpu100", "gpu101"]),
    ],
)
def test_expand_hosts(nodelist: str, hosts: list[str]) -> None:
    assert expand_hosts(nodelist) == hosts


def test_expand_counts() -> None:
    assert expand_counts("2(x3),1,8(x2)") == [2, 2, 2, 1, 8, 8]


def test_export_is_what_detect_reads() -> None:
    env: dict[str, str] = captured("srun_in_sbatch_rank3")
    world = World.detect(env)
    world.export(env)
    assert env["RANK"] == "3" and env["LOCAL_WORLD_SIZE"] == "2"
    assert World.detect(env) == world


def test_free_port_can_be_listened_on_and_taken_ones_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", free_port()))
        taken.listen()
        monkeypatch.setattr("random.SystemRandom.sample", lambda self, ports, count: [taken.getsockname()[1]])
        with pytest.raises(OSError, match=r"none of 100 ports tried in 20000 \.\. 29999 is free"):
            free_port()


class FakeTorch:
    def __init__(self, num_gpus: int) -> None:
        self.cuda = self
        self.is_available = lambda: num_gpus > 0
        self.device_count = lambda: num_gpus


@pytest.mark.parametrize(
    ("local_rank", "num_gpus", "device"),
    [(0, 0, "cpu"), (1, 0, "cpu"), (0, 2, "cuda:0"), (1, 2, "cuda:1"), (1, 1, "cuda:0")],
)
def test_device(local_rank: int, num_gpus: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(num_gpus))
    assert World(local_rank, 4, local_rank, 4, LOOPBACK, 1).device == device


def test_device_refuses_too_few_gpus_unless_told_to_use_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(2))
    world = World(7, 8, 3, 4, "gpu1", 1)
    with pytest.raises(
        WorldError, match="rank 7 is number 3 on this host, which shows 2 GPUs: start at most 2 ranks a host"
    ):
        _ = world.device
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert world.device == "cpu"
