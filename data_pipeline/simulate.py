"""A training run on paper: what the plan does with a set of any size, without an image.

The real `Plan` is asked, over shards of equal size that exist only as counts. At most SAMPLED_STEPS steps and
SAMPLED_RANKS ranks are looked at, spread evenly, and for repeats about SAMPLED_LANES lanes; of a small run every batch.

Seen on two busy cores with 300 million samples in 30,000 shards and 4,096 ranks: a rank finds its place in 0.07 to 0.21
seconds with 14 to 33 MB, from 64 lanes and batches of 4,096 to 65,536 lanes and batches of 1,048,576.
"""

import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import BLOCK_SAMPLES
from data_pipeline.plan import Plan, max_share
from data_pipeline.samples import MAX_OPEN_SHARDS

SAMPLED_STEPS = 8
SAMPLED_RANKS = 8
ENUMERATED_STEPS, ENUMERATED_PLACES = 2**10, 2**21
SAMPLED_LANES = 2**10

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """The set and the run to imagine; ValueError for one that no run could have."""

    samples: int
    shards: int
    ranks: int
    workers: int
    batch: int
    steps: int
    lanes: int = 64
    image_bytes: int = 110_000  # the mean of ImageNet's JPEGs
    step_seconds: float = 1.0
    ranks_per_node: int = 8

    def __post_init__(self) -> None:
        if self.shards > self.samples:
            raise ValueError(f"--shards {self.shards}: more than the {self.samples} samples; a shard has at least one")
        if self.ranks > self.batch:
            raise ValueError(f"--ranks {self.ranks}: more than the {self.batch} samples of a batch; raise --batch")
        if self.workers < 0:
            raise ValueError(f"--workers {self.workers}: 0 (in the loop itself) or more processes")
        if not self.step_seconds > 0:
            raise ValueError(f"--step-seconds {self.step_seconds}: a time above 0, in seconds")


@dataclass(frozen=True)
class Simulation:
    """What came out; "most" is over the sampled ranks and steps."""

    epochs: float
    batches_looked_at: int  # of job.steps
    ranks_looked_at: int  # of job.ranks
    seen_least: int  # times that a sample is seen in the run: by the rarest ...
    seen_most: int  # ... and by the most frequent one
    places_looked_at: int  # for repeats
    repeats_in_an_epoch: int  # found among them
    rank_images_most: int  # a step
    rank_shards_most: int  # that a rank reads in one step
    rank_open_files_limit: int  # a tar and an index a shard, in every worker
    rank_bytes_per_s: float
    node_bytes_per_s: float
    plan_bytes: int  # the most that a rank's plan took while it found its place
    place_seconds: float  # the most that a rank took from nothing to its place
    next_seconds: float  # the most for the step after


def simulate(job: Job) -> Simulation:
    """Run the plan of `job` at some steps of some ranks."""
    enumerated = job.steps <= ENUMERATED_STEPS and max(job.samples, job.steps * job.batch) <= ENUMERATED_PLACES
    steps = _spread(job.steps, job.steps if enumerated else SAMPLED_STEPS)
    ranks = _spread(job.ranks, SAMPLED_RANKS)
    place_seconds, next_seconds, shards_most, plan_bytes = 0.0, 0.0, 0, 0
    for rank, step in zip(ranks, np.resize(_spread(job.steps, SAMPLED_STEPS), len(ranks)).tolist(), strict=True):
        started_s = time.perf_counter()
        plan = _plan(job)
        places = plan.share(step, rank, job.ranks)
        there_s = time.perf_counter()
        plan.share(step + 1, rank, job.ranks)
        place_seconds = max(place_seconds, there_s - started_s)
        next_seconds = max(next_seconds, time.perf_counter() - there_s)
        shards_most = max(shards_most, len(np.unique(places.shard)))
        plan_bytes = max(plan_bytes, _plan_bytes(job, step, rank))
    images = max_share(job.batch, job.ranks)
    rank_bytes_per_s = images * job.image_bytes / job.step_seconds
    least, most, looked_at, repeats = _seen(job, steps)
    return Simulation(
        epochs=job.steps * job.batch / job.samples,
        batches_looked_at=len(steps),
        ranks_looked_at=len(ranks),
        seen_least=least,
        seen_most=most,
        places_looked_at=looked_at,
        repeats_in_an_epoch=repeats,
        rank_images_most=images,
        rank_shards_most=shards_most,
        rank_open_files_limit=2 * min(MAX_OPEN_SHARDS, job.shards) * max(job.workers, 1),
        rank_bytes_per_s=rank_bytes_per_s,
        node_bytes_per_s=rank_bytes_per_s * min(job.ranks_per_node, job.ranks),
        plan_bytes=plan_bytes,
        place_seconds=place_seconds,
        next_seconds=next_seconds,
    )


def text(job: Job, found: Simulation) -> str:
    """The simulation for a reader."""
    looked = f"{found.batches_looked_at:,} of {job.steps:,} batches"
    counted = "counted" if found.batches_looked_at == job.steps else "by the rule of the plan"
    return "\n".join(
        (
            f"{job.steps:,} steps of {job.batch:,}: {found.epochs:.2f} epochs of {job.samples:,} samples in "
            f"{job.shards:,} shards; looked at {looked}, {found.ranks_looked_at:,} of {job.ranks:,} ranks",
            f"  coverage  each sample {found.seen_least} to {found.seen_most} times ({counted}); "
            f"{found.repeats_in_an_epoch} repeats inside an epoch in {found.places_looked_at:,} places",
            f"  a rank    {found.rank_images_most:,} images a step from {found.rank_shards_most:,} shards; at most "
            f"{found.rank_open_files_limit:,} open files in {max(job.workers, 1)} processes",
            f"  reading   {found.rank_bytes_per_s / 1e6:,.1f} MB/s a rank, {found.node_bytes_per_s / 1e6:,.1f} MB/s a "
            f"node of {min(job.ranks_per_node, job.ranks)}, at {job.step_seconds:g} s a step and "
            f"{job.image_bytes:,} bytes an image",
            f"  plan      {found.plan_bytes / 1e6:,.1f} MB a process; {found.place_seconds:.3f} s to find a place, "
            f"{found.next_seconds:.3f} s for the step after",
        )
    )


def _plan(job: Job) -> Plan:
    return Plan(_shard_samples(job).tolist(), BLOCK_SAMPLES, seed=0, batch=job.batch, lanes=job.lanes)


def _shard_samples(job: Job) -> Ints:
    shorter, longer = divmod(job.samples, job.shards)
    return shorter + (np.arange(job.shards) < longer)


def _plan_bytes(job: Job, step: int, rank: int) -> int:
    tracemalloc.start()
    try:
        _plan(job).share(step, rank, job.ranks)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _seen(job: Job, steps: Sequence[int]) -> tuple[int, int, int, int]:
    """The fewest and the most times that a sample is seen; the places looked at in `steps`, and their repeats inside an
    epoch."""
    plan = _plan(job)
    # The first part of a batch is always that of the same lanes, so that steps can be held against each other.
    parts = 1 if len(steps) == job.steps else -(-min(job.lanes, job.batch) // SAMPLED_LANES)
    shares = [plan.share(step, 0, parts) for step in steps]
    sizes = _shard_samples(job)
    first = np.cumsum(sizes) - sizes
    sample = np.concatenate([first[share.shard] + share.row for share in shares])
    epoch = np.concatenate([share.place for share in shares]) // job.samples
    repeats = len(sample) - len(np.unique(epoch * job.samples + sample))
    if len(steps) == job.steps:
        times = np.bincount(sample, minlength=job.samples)
        return int(times.min()), int(times.max()), len(sample), repeats
    least, rest = divmod(job.steps * job.batch, job.samples)
    return least, least + (rest > 0), len(sample), repeats


def _spread(count: int, at_most: int) -> list[int]:
    """At most `at_most` of range(count), the first and the last among them."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(count, at_most)).astype(np.int64)).tolist()
    return chosen
