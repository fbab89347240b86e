"""A run on paper against the same run counted by hand."""

import time
from collections import Counter

import numpy as np
import pytest

from data_pipeline import simulate as simulate_module
from data_pipeline.plan import Places, Plan
from data_pipeline.simulate import Job, simulate

SMALL = Job(samples=97, shards=5, ranks=3, workers=2, batch=10, steps=29, lanes=4, step_seconds=0.5, ranks_per_node=2)
LARGE = Job(samples=300_000_000, shards=30_000, ranks=4096, workers=4, batch=32_768, steps=100_000, lanes=16_384)


def test_a_small_run_is_counted_through() -> None:
    plan = Plan([20, 20, 19, 19, 19], 1024, 0, 10, 4)
    times: Counter[tuple[int, int]] = Counter()
    for step in range(29):
        batch = plan.batch(step)
        times.update(zip(batch.shard.tolist(), batch.row.tolist(), strict=True))
    found = simulate(SMALL)
    assert len(times) == 97
    assert (found.seen_least, found.seen_most) == (min(times.values()), max(times.values())) == (2, 3)
    assert found.epochs == pytest.approx(290 / 97)
    assert (found.batches_looked_at, found.ranks_looked_at) == (29, 3)
    assert (found.places_looked_at, found.repeats_in_an_epoch) == (290, 0)


def test_samples_that_a_short_run_never_sees_are_counted() -> None:
    found = simulate(Job(samples=97, shards=5, ranks=1, workers=0, batch=10, steps=9))
    assert (found.seen_least, found.seen_most) == (0, 1)


def test_what_a_rank_reads_and_holds_open() -> None:
    found = simulate(SMALL)
    assert found.rank_images_most == 4  # ten places are five pairs: 2, 4 and 4
    assert found.rank_bytes_per_s == 4 * 110_000 / 0.5
    assert found.node_bytes_per_s == 2 * found.rank_bytes_per_s
    assert found.rank_open_files_limit == 2 * 5 * 2  # a tar and an index of five shards, in two workers
    assert simulate(Job(97, 1, 1, 0, 10, 29)).rank_shards_most == 1
    assert simulate(Job(1000, 1000, 2, 0, 100, 29)).rank_shards_most == 50  # a shard of its own for every sample


def test_repeats_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a plan that is broken: every batch reads row 0 of shard 0."""

    class Broken(Plan):
        def share(self, step: int, rank: int, ranks: int) -> Places:
            share = super().share(step, rank, ranks)
            return Places(share.place, np.zeros_like(share.shard), np.zeros_like(share.row), share.lane)

    monkeypatch.setattr(simulate_module, "Plan", Broken)
    found = simulate(SMALL)
    assert found.repeats_in_an_epoch == 290 - 3  # one a sample of each of three epochs
    assert (found.seen_least, found.seen_most) == (0, 290)


def test_300_million_samples_and_4096_ranks_take_seconds_and_little_memory() -> None:
    """A rank finds its place at any step in under a second and 300 MB; the simulation itself is as bounded."""
    started_s = time.perf_counter()
    found = simulate(LARGE)
    assert time.perf_counter() - started_s < 60
    assert found.place_seconds < 1
    assert 2.4e6 < found.plan_bytes < 30e6  # the order of the blocks, and a few of theirs; not those of every lane
    assert (found.batches_looked_at, found.ranks_looked_at) == (8, 8)
    assert (found.places_looked_at, found.repeats_in_an_epoch) == (8 * 32_768 // 16, 0)  # 1,024 of 16,384 lanes
    assert (found.seen_least, found.seen_most) == (10, 11)
    assert (found.rank_images_most, found.rank_shards_most) == (8, 4)
