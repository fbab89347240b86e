"""What all ranks agree on: small values gathered from each, and work that succeeds on all of them or fails on all.

Values travel as JSON, so that nothing that another rank sent is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar, cast

from launch.world import World

T = TypeVar("T")


def gather(world: World, value: Any) -> list[Any]:
    """Every rank's JSON value, in the order of the ranks, on every rank; called by all of them together."""
    if world.size == 1:
        return [json.loads(json.dumps(value))]
    import torch
    import torch.distributed as dist

    mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(world.device)
    lengths = torch.empty(world.size, dtype=torch.int64, device=world.device)
    dist.all_gather_into_tensor(lengths, torch.tensor([mine.numel()], device=world.device))
    longest = int(lengths.max())
    padded = torch.zeros(longest, dtype=torch.uint8, device=world.device)
    padded[: mine.numel()] = mine
    everyone = torch.empty(world.size * longest, dtype=torch.uint8, device=world.device)
    dist.all_gather_into_tensor(everyone, padded)
    rows = everyone.view(world.size, longest).cpu()
    return [json.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths.tolist(), strict=True)]


def all_succeed(world: World, what: str, work: Callable[[], T]) -> list[T]:
    """Do this rank's part of `work` and gather everyone's JSON results; when a part failed, raise RuntimeError on every
    rank, naming it."""
    result, fault = None, None
    try:
        result = work()
    except Exception as error:
        fault, cause = f"{type(error).__name__}: {error}", error
    outcomes = gather(world, [result, fault])
    failed = [(rank, text) for rank, (_, text) in enumerate(outcomes) if text]
    if failed:
        rank, text = failed[0]
        raise RuntimeError(f"{what} failed on rank {rank}: {text}") from (cause if fault else None)
    return [each for each, _ in outcomes]


def once(world: World, what: str, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 alone while the others wait; its JSON result on every rank, or RuntimeError on every rank."""
    return cast(T, all_succeed(world, what, lambda: work() if world.rank == 0 else None)[0])
