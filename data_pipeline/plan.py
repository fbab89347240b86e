"""Which sample is in which batch: a pure function of (the set's counts, seed, batch, lanes, step).

    samples of the set, in blocks                  [0 0 0][1 1 1][2 2 2][3 3]
    S_e, epoch e: blocks permuted, samples inside  [2 2 2][0 0 0][3 3][1 1 1]        all N samples once
    cut into L lanes                               lane 0: 2 2 2 0    lane 1: 0 0 3 3    lane 2: 1 1 1
    places of the epoch, one lane after the other  lane 0, 1, 2, 0, 1, 2, ...
    batches of B places                            places t*B .. (t+1)*B - 1, running on from epoch to epoch

Inside a batch the places stand in the order (lane, place) and are cut at even positions into one share a rank. The
number of ranks, workers and micro-batches never enters; nor need N, L, B and the number of ranks divide one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.random import Purpose, permutation

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Samples in the order in which they are fed; four columns of one length."""

    place: Ints  # g = epoch * N + place in the epoch: the number that random choices are keyed by
    shard: Ints
    row: Ints  # in the shard
    lane: Ints

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, which: slice | Ints) -> "Places":
        return Places(*(getattr(self, column.name)[which] for column in fields(self)))


class Shares(Protocol):
    """Anything that says which places a rank gets at a step."""

    def share(self, step: int, rank: int, ranks: int) -> Places: ...


class _Epoch(NamedTuple):
    blocks: Ints  # the blocks in the order of this epoch
    first: Ints  # where each of them starts in S_e


class Plan:
    """The batches of a training run."""

    def __init__(self, shard_samples: Sequence[int], block_samples: int, seed: int, batch: int, lanes: int) -> None:
        """`shard_samples[s]` samples are in shard s; blocks of at most `block_samples` never cross a shard."""
        assert min(block_samples, batch, lanes) > 0, (block_samples, batch, lanes)
        self.num_samples = sum(shard_samples)
        if self.num_samples == 0:
            raise ValueError("a plan of 0 samples: the set is empty; pack some images, or select fewer away")
        self.seed, self.batch_samples = seed, batch
        self.lanes = min(lanes, self.num_samples)

        sizes = np.asarray(shard_samples, dtype=np.int64)
        num_blocks = -(-sizes // block_samples)
        self._block_shard = np.repeat(np.arange(len(sizes)), num_blocks)
        first_block = np.cumsum(num_blocks) - num_blocks
        self._block_row = (np.arange(num_blocks.sum()) - first_block[self._block_shard]) * block_samples
        self._block_size = np.minimum(sizes[self._block_shard] - self._block_row, block_samples)

        # Lane l is a run of ceil((N - l) / L) samples: the first N mod L lanes have one more.
        shortest, longer = divmod(self.num_samples, self.lanes)
        lane = np.arange(self.lanes)
        self._lane_start = lane * shortest + np.minimum(lane, longer)

        # What the last share used: the next one uses nearly the same epochs and blocks.
        self._epochs: dict[int, _Epoch] = {}
        self._block_orders: dict[tuple[int, int], Ints] = {}

    def batch(self, step: int) -> Places:
        """The places of batch `step`, sorted by (lane, place); any step costs what step 0 costs."""
        return self.share(step, 0, 1)

    def share(self, step: int, rank: int, ranks: int) -> Places:
        """The run of batch `step` that `rank` of `ranks` feeds; only the blocks in it are looked up."""
        place = step * self.batch_samples + np.arange(self.batch_samples)
        lane = place % self.num_samples % self.lanes
        order = np.lexsort((place, lane))
        order = order[_cut(self.batch_samples, rank, ranks) : _cut(self.batch_samples, rank + 1, ranks)]
        place, lane = place[order], lane[order]

        epoch, in_epoch = np.divmod(place, self.num_samples)
        position = self._lane_start[lane] + in_epoch // self.lanes  # in S_e
        block, offset = np.empty_like(position), np.empty_like(position)
        self._epochs = {e: self._epochs.get(e) or self._epoch(e) for e in np.unique(epoch).tolist()}
        for e, (blocks, first) in self._epochs.items():
            here = epoch == e
            nth = np.searchsorted(first, position[here], side="right") - 1
            block[here], offset[here] = blocks[nth], position[here] - first[nth]
        row = self._block_row[block] + self._shuffled(epoch, block, offset)
        return Places(place, self._block_shard[block], row, lane)

    def _epoch(self, epoch: int) -> _Epoch:
        blocks = permutation(len(self._block_size), self.seed, Purpose.BLOCKS, epoch)
        sizes = self._block_size[blocks]
        return _Epoch(blocks, np.cumsum(sizes) - sizes)

    def _shuffled(self, epoch: Ints, block: Ints, offset: Ints) -> Ints:
        """Where the sample at `offset` of a block's shuffled order stands in the block."""
        num_blocks = len(self._block_size)
        used, which = np.unique(epoch * num_blocks + block, return_inverse=True)
        keys = [divmod(each, num_blocks) for each in used.tolist()]
        self._block_orders = {key: self._order(key) for key in keys}
        sizes = self._block_size[used % num_blocks]
        start = np.cumsum(sizes) - sizes
        orders = [np.empty(0, dtype=np.int64), *self._block_orders.values()]  # a share may have no places
        row: Ints = np.concatenate(orders)[start[which] + offset]
        return row

    def _order(self, key: tuple[int, int]) -> Ints:
        if key in self._block_orders:
            return self._block_orders[key]
        epoch, block = key
        return permutation(int(self._block_size[block]), self.seed, Purpose.SAMPLES, epoch, block)


class InOrder:
    """Every sample once, in the order of the set, whatever the ranks: the batches of an evaluation."""

    def __init__(self, shard_samples: Sequence[int], rows: int) -> None:
        """`rows` samples a rank and batch; the last batch is shorter."""
        self._ends = np.cumsum(np.asarray(shard_samples, dtype=np.int64))
        self._rows = rows

    def num_batches(self, ranks: int) -> int:
        """Batches until every sample was fed once; the same on every rank."""
        return -(-int(self._ends[-1]) // (self._rows * ranks))

    def share(self, step: int, rank: int, ranks: int) -> Places:
        """The samples that `rank` of `ranks` feeds in batch `step`; empty where none are left."""
        first = (step * ranks + rank) * self._rows
        place = np.arange(first, min(first + self._rows, int(self._ends[-1])))
        shard = np.searchsorted(self._ends, place, side="right")
        starts = np.concatenate(([0], self._ends[:-1]))
        return Places(place, shard, place - starts[shard], np.zeros_like(place))


def max_share(batch: int, ranks: int) -> int:
    """The most samples that any rank gets of a batch: the rows that every rank's buffer needs."""
    return max(_cut(batch, rank + 1, ranks) - _cut(batch, rank, ranks) for rank in range(ranks))


def _cut(batch: int, rank: int, ranks: int) -> int:
    """Where the share of `rank` starts: even, so that mixup's pairs (2k, 2k + 1) stay on one rank."""
    pairs = -(-batch // 2)
    return min(batch, 2 * (rank * pairs // ranks))
