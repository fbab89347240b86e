"""The order of the data as text: what each rank sees, batch by batch, without opening an image."""

from collections.abc import Iterator
from typing import TypedDict

from data_pipeline.plan import Plan
from data_pipeline.samples import SampleSet


class _Rank(TypedDict):
    batch: int
    rank: int


class Line(_Rank, total=False):
    """The keys that a rank feeds; `micro_batch` counts from 0 where micro-batches are asked for."""

    micro_batch: int
    keys: list[str]


def order(
    samples: SampleSet, plan: Plan, first: int, stop: int, ranks: int = 1, micro_batch: int | None = None
) -> Iterator[Line]:
    """A line for each rank (and micro-batch of `micro_batch` samples) of batches first .. stop - 1."""
    for step in range(first, stop):
        for rank in range(ranks):
            places = plan.share(step, rank, ranks)
            keys = [samples.key(shard, row) for shard, row in zip(places.shard, places.row, strict=True)]
            if micro_batch is None:
                yield {"batch": step, "rank": rank, "keys": keys}
                continue
            for number, start in enumerate(range(0, len(keys), micro_batch)):
                yield {"batch": step, "rank": rank, "micro_batch": number, "keys": keys[start : start + micro_batch]}
