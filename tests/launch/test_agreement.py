"""Values of different lengths arrive whole and in the order of the ranks; one rank's failure is everyone's."""

import pytest
import torch.distributed as dist

from launch.agreement import all_succeed, gather, once
from launch.world import LOOPBACK, World
from tests.ranks import run_ranks

ALONE = World(0, 1, 0, 1, LOOPBACK, 29500)


def agree() -> None:
    dist.init_process_group("gloo")
    world = World.detect()
    assert gather(world, {"rank": world.rank, "text": "ü" * 10**world.rank}) == [
        {"rank": rank, "text": "ü" * 10**rank} for rank in range(3)
    ]
    assert all_succeed(world, "counting", lambda: world.rank * 2) == [0, 2, 4]

    def on_rank_1_and_2() -> None:
        if world.rank:
            raise OSError(28, f"no space on rank {world.rank}")

    with pytest.raises(RuntimeError, match=r"writing failed on rank 1: OSError: \[Errno 28\] no space on rank 1"):
        all_succeed(world, "writing", on_rank_1_and_2)
    assert once(world, "choosing", lambda: f"rank {world.rank}") == "rank 0"
    with pytest.raises(RuntimeError, match="choosing failed on rank 0: ZeroDivisionError"):
        once(world, "choosing", lambda: 1 // world.rank)


def test_three_ranks_agree() -> None:
    run_ranks(3, agree)


def test_alone_a_value_travels_as_json_too() -> None:
    assert gather(ALONE, (1, "a")) == [[1, "a"]]
    with pytest.raises(TypeError):
        gather(ALONE, object())
