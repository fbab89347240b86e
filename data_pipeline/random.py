"""Random numbers that are a pure function of (seed, purpose, counter): raw Philox-4x64-10 words.

No library's `permutation` or `shuffle` is used anywhere in the order of the data, because their streams may change with
a version. NumPy promises the raw words (NEP 19), and a test holds them against Random123's published vectors.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

SEED_LIMIT = 2**64


class Purpose(IntEnum):
    """What the words are for; it is half of the key, so that two uses never share a stream."""

    BLOCKS = 1  # the order of the blocks in an epoch
    SAMPLES = 2  # the order of the samples inside a block in an epoch
    AUGMENT = 3  # the crop and the flip of a place
    PACK = 4  # the shuffled listing at packing
    HOLD_OUT = 5  # which images of a class are held out at packing
    SUBSET = 6  # which images of a class a subset keeps
    DROPOUT = 7  # what a rank drops in a step


def words(seed: int, purpose: Purpose, *counter: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` raw 64-bit words of the stream (seed, purpose, counter); at most three counters, each below 2^64."""
    assert 0 <= seed < SEED_LIMIT, seed
    assert len(counter) <= 3, counter
    # The lowest counter word is Philox's own and runs within the stream; ours sit above it.
    state = sum(word << 64 * (place + 1) for place, word in enumerate(counter))
    generator = np.random.Philox(key=seed | int(purpose) << 64, counter=state)
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def uniform(seed: int, purpose: Purpose, *counter: int, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1): the upper 53 bits of each word."""
    return (words(seed, purpose, *counter, count=count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, seed: int, purpose: Purpose, *counter: int) -> npt.NDArray[np.int64]:
    """A permutation of range(size): the stable argsort of `size` words."""
    return np.argsort(words(seed, purpose, *counter, count=size), kind="stable")
