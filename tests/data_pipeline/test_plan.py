import json
import math
import os
import random
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from data_pipeline.plan import InOrder, Places, Plan, max_share
from data_pipeline.random import Purpose, words

GOLDEN = Path(__file__).parent.parent / "golden"


class Case(NamedTuple):
    shard_samples: tuple[int, ...]
    block_samples: int
    seed: int
    batch: int
    lanes: int


def random_cases(count: int) -> list[Case]:
    chance = random.Random(0)
    return [
        Case(
            shard_samples=tuple(chance.randint(1, 20) for _ in range(chance.randint(1, 6))),
            block_samples=chance.randint(1, 12),
            seed=chance.getrandbits(64),
            batch=chance.randint(1, 40),
            lanes=chance.randint(1, 30),
        )
        for _ in range(count)
    ]


CASES = random_cases(40)

# The house's words, one sentence after the other, as slowly as they are said.


def by_words(size: int, *stream: int) -> list[int]:
    seed, purpose, *counter = stream
    drawn = words(seed, Purpose(purpose), *counter, count=size).tolist()
    return sorted(range(size), key=lambda at: (drawn[at], at))


@cache
def literal_lanes(case: Case, epoch: int) -> list[list[tuple[int, int]]]:
    blocks = []
    for shard, samples in enumerate(case.shard_samples):
        rows = [(shard, row) for row in range(samples)]
        blocks += [rows[first : first + case.block_samples] for first in range(0, samples, case.block_samples)]
    epoch_order = [
        blocks[block][at]
        for block in by_words(len(blocks), case.seed, Purpose.BLOCKS, epoch)
        for at in by_words(len(blocks[block]), case.seed, Purpose.SAMPLES, epoch, block)
    ]
    num_samples = len(epoch_order)
    num_lanes = min(case.lanes, num_samples)
    lanes = []
    for lane in range(num_lanes):
        length = math.ceil((num_samples - lane) / num_lanes)
        lanes.append(epoch_order[:length])
        epoch_order = epoch_order[length:]
    return lanes


def literal_batch(case: Case, step: int) -> list[tuple[int, int, int, int]]:
    num_samples = sum(case.shard_samples)
    batch = []
    for place in range(step * case.batch, (step + 1) * case.batch):
        epoch, in_epoch = divmod(place, num_samples)
        lanes = literal_lanes(case, epoch)
        lane = in_epoch % len(lanes)
        shard, row = lanes[lane][in_epoch // len(lanes)]
        batch.append((lane, place, shard, row))
    return [(place, shard, row, lane) for lane, place, shard, row in sorted(batch)]


def as_rows(places: Places) -> list[tuple[int, int, int, int]]:
    columns = (places.place, places.shard, places.row, places.lane)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def steps_of_epochs(case: Case, epochs: int) -> int:
    return math.ceil(epochs * sum(case.shard_samples) / case.batch)


@pytest.mark.parametrize("case", CASES)
def test_batches_are_what_the_formula_says(case: Case) -> None:
    plan = Plan(*case)
    for step in [*range(steps_of_epochs(case, 3)), 1000, 3]:
        assert as_rows(plan.batch(step)) == literal_batch(case, step)


@pytest.mark.parametrize("case", CASES)
def test_every_epoch_is_every_sample_once(case: Case) -> None:
    plan = Plan(*case)
    everything = {(shard, row) for shard, samples in enumerate(case.shard_samples) for row in range(samples)}
    rows = sorted(row for step in range(steps_of_epochs(case, 3)) for row in as_rows(plan.batch(step)))
    num_samples = len(everything)
    for epoch in range(3):
        in_epoch = [(shard, row) for place, shard, row, _ in rows if place // num_samples == epoch]
        assert len(in_epoch) == num_samples
        assert set(in_epoch) == everything


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 64])
def test_shares_are_the_batch_cut_at_even_positions(case: Case, ranks: int) -> None:
    plan = Plan(*case)
    shares = [as_rows(plan.share(5, rank, ranks)) for rank in range(ranks)]
    assert list(chain.from_iterable(shares)) == as_rows(plan.batch(5))
    sizes = [len(share) for share in shares]
    starts = np.cumsum([0, *sizes[:-1]])
    assert all(start % 2 == 0 for start, size in zip(starts, sizes, strict=True) if size)
    assert max(sizes) - min(sizes) <= 2
    assert max(sizes) == max_share(case.batch, ranks)


def test_a_lane_reads_its_blocks_one_after_the_other() -> None:
    shards, block_samples = (40, 33, 27), 8
    plan = Plan(shards, block_samples, seed=1, batch=20, lanes=5)
    rows = [row for step in range(5) for row in as_rows(plan.batch(step))]  # one epoch of 100
    for lane in range(5):
        blocks = [(shard, row // block_samples) for _, shard, row, at in sorted(rows) if at == lane]
        changes = sum(before != after for before, after in pairwise(blocks))
        assert changes == len(set(blocks)) - 1


def test_lanes_differ_by_at_most_one_sample_in_any_batch() -> None:
    plan = Plan((1000,), 64, seed=0, batch=53, lanes=11)
    for step in range(15):
        counts = np.bincount(plan.batch(step).lane, minlength=11)
        straddles = step * 53 // 1000 != ((step + 1) * 53 - 1) // 1000
        assert counts.max() - counts.min() <= (2 if straddles else 1)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        tuple(Plan((50, 50), 16, seed, batch=100, lanes=1).batch(epoch).row.tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("ranks", [64, 56, 48])
def test_a_job_that_lost_a_host_sees_the_same_batches(ranks: int) -> None:
    plan = Plan((8192,) * 20 + (777,), 1024, seed=0, batch=4096, lanes=64)
    for step in (0, 40, 41, 10**7):
        shares = [plan.share(step, rank, ranks) for rank in range(ranks)]
        assert sorted(place for share in shares for place in share.place.tolist()) == list(
            range(step * 4096, (step + 1) * 4096)
        )
        assert list(chain.from_iterable(map(as_rows, shares))) == as_rows(plan.batch(step))


def test_a_plan_remembers_nothing_that_matters() -> None:
    plan = Plan((30, 31), 7, seed=0, batch=9, lanes=4)
    forward = [as_rows(plan.batch(step)) for step in range(20)]
    backward = [as_rows(plan.batch(step)) for step in reversed(range(20))]
    assert forward == backward[::-1]


def test_a_set_without_samples_has_no_plan() -> None:
    with pytest.raises(ValueError, match=r"a plan of 0 samples: the set is empty"):
        Plan((0, 0), 8, seed=0, batch=4, lanes=2)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("shard_samples", [(7,), (5, 8, 1), (1, 1), (24,)])
def test_in_order_is_each_sample_once_and_equally_many_batches(shard_samples: tuple[int, ...], ranks: int) -> None:
    order = InOrder(shard_samples, rows=4)
    rows = []
    for step in range(order.num_batches(ranks)):
        for rank in range(ranks):
            share = order.share(step, rank, ranks)
            assert len(share) <= 4
            rows += as_rows(share)
    assert [(shard, row) for _, shard, row, _ in rows] == [
        (shard, row) for shard, samples in enumerate(shard_samples) for row in range(samples)
    ]
    assert [place for place, *_ in rows] == list(range(sum(shard_samples)))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("order-*.json")), ids=lambda path: path.stem)
def test_the_order_is_the_one_that_runs_out_there_were_started_with(path: Path) -> None:
    golden = json.loads(path.read_text())
    case = Case(**golden["case"])
    plan = Plan(*case)
    found = {step: [list(row) for row in as_rows(plan.batch(int(step)))] for step in golden["batches"]}
    if os.environ.get("UPDATE_GOLDEN"):
        batches = ",\n  ".join(f'"{step}": {json.dumps(rows)}' for step, rows in found.items())
        path.write_text(f'{{"case": {json.dumps(golden["case"])},\n "batches": {{\n  {batches}}}}}\n')
        pytest.skip("written")
    assert found == golden["batches"], (
        f"The order of the data has changed. Every run that is resumed with this version will see other batches than "
        f"it was started with, and will not notice. If that is meant, raise manifest.FORMAT so that old sets are "
        f"refused, and write {path.name} anew with: UPDATE_GOLDEN=1 python -m pytest tests/data_pipeline/test_plan.py"
    )


def test_three_orders_are_pinned() -> None:
    assert len(list(GOLDEN.glob("order-*.json"))) == 3
