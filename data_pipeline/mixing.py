"""How well the classes of a set are mixed. An epoch shuffles blocks, and the samples inside each: a block that holds a
few classes only is trained on as it stands."""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.index import NO_LABEL
from data_pipeline.samples import SampleSet, stack_labels

Ints = npt.NDArray[np.int64]

MIXED_WELL = 0.9  # from here on a set passes for shuffled
JUDGED_BLOCKS = 64


class Mixing(NamedTuple):
    """The judgement of a set."""

    figure: float  # about 1: as a shuffled set, which is the expectation; near 0: sorted by class
    well: bool

    def __str__(self) -> str:
        shown = f"{self.figure:.2f} of a shuffled set's"
        if self.well:
            return shown
        return (
            f"{shown}, under {MIXED_WELL}: training would see class after class; "
            "pack the images again with: python -m data_pipeline pack"
        )


def mixing(labels: npt.NDArray[np.int32], block_of: Ints, num_classes: int) -> Mixing:
    """How well samples are mixed: the chance that two of all share a label, over the chance that two of one block do.

    `labels` [N, K] filled up with -1; `block_of` [N]. A figure under MIXED_WELL that chance alone can bring about, in a
    set with a handful of images a class, is taken for well."""

    def num_pairs(counts: Ints) -> float:
        return float((counts * (counts - 1.0)).sum()) / 2

    sample = np.nonzero(labels != NO_LABEL)[0]
    label = labels[labels != NO_LABEL].astype(np.int64)
    alike_in_set = num_pairs(np.bincount(label, minlength=num_classes))
    alike_in_blocks = num_pairs(np.unique(block_of[sample] * num_classes + label, return_counts=True)[1])
    if alike_in_blocks == 0:
        return Mixing(1.0, True)  # no two of a block share a label: it cannot be mixed better
    expected = alike_in_set / num_pairs(np.array([len(labels)])) * num_pairs(np.bincount(block_of))
    figure = expected / alike_in_blocks
    by_chance = 3 * math.sqrt(expected + 1)  # three standard deviations of a count of rare pairs
    return Mixing(figure, figure >= MIXED_WELL or alike_in_blocks - expected <= by_chance)


def mixing_of(samples: SampleSet) -> Mixing:
    """The mixing of JUDGED_BLOCKS blocks spread over a set: it costs the same for any number of shards."""
    num_blocks = -(-np.asarray(samples.shard_samples) // samples.block_samples)
    ends = np.cumsum(num_blocks)
    chosen = np.unique(np.linspace(0, ends[-1] - 1, JUDGED_BLOCKS).astype(np.int64))
    shards = np.searchsorted(ends, chosen, side="right")
    starts = (chosen - (ends - num_blocks)[shards]) * samples.block_samples
    blocks = [
        samples.rows(shard)["labels"][start : start + samples.block_samples]
        for shard, start in zip(shards.tolist(), starts.tolist(), strict=True)
    ]
    block_of = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    return mixing(stack_labels(blocks), block_of, samples.num_classes)


def warn_of_mixing(samples: SampleSet) -> None:
    """One line on standard error when a set to train on is not mixed well."""
    found = mixing_of(samples)
    if not found.well:
        print(f"warning: {', '.join(map(str, samples.folders))}: mixing {found}", file=sys.stderr)


def blocks_of(shard_samples: Sequence[int], block_samples: int) -> Ints:
    """The number of each sample's block, in the order of the set."""
    parts = [np.arange(samples) // block_samples for samples in shard_samples]
    firsts = np.cumsum([0, *(part[-1] + 1 for part in parts[:-1])])
    return np.concatenate([part + first for part, first in zip(parts, firsts, strict=True)])
