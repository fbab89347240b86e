import numpy as np
import pytest

from data_pipeline.random import Purpose, permutation, uniform, words

WORD = 2**64


def philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, section 5.3, written out."""
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * counter[0], WORD)
        high1, low1 = divmod(0xCA5A826395121157 * counter[2], WORD)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B97F4A7C15) % WORD, (key[1] + 0xBB67AE8584CAA73B) % WORD]
    return counter


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]),
        (
            [WORD - 1] * 4,
            [WORD - 1] * 2,
            [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
        ),
    ],
)
def test_the_reference_gives_the_published_vectors(counter: list[int], key: list[int], expected: list[int]) -> None:
    """Random123, tests/kat_vectors."""
    assert philox_4x64_10(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 7, WORD - 1])
def test_words_are_raw_philox_words(seed: int) -> None:
    found = words(seed, Purpose.SAMPLES, 5, WORD - 1, count=6).tolist()
    first = philox_4x64_10([1, 5, WORD - 1, 0], [seed, Purpose.SAMPLES])
    second = philox_4x64_10([2, 5, WORD - 1, 0], [seed, Purpose.SAMPLES])
    assert found == first + second[:2]


def test_streams_differ_in_seed_purpose_and_counter() -> None:
    streams = [
        words(0, Purpose.BLOCKS, 1, count=4),
        words(1, Purpose.BLOCKS, 1, count=4),
        words(0, Purpose.SAMPLES, 1, count=4),
        words(0, Purpose.BLOCKS, 2, count=4),
        words(0, Purpose.BLOCKS, 0, 1, count=4),
    ]
    assert len({tuple(stream.tolist()) for stream in streams}) == len(streams)


def test_uniform_is_the_upper_bits_and_covers_zero_to_one() -> None:
    numbers = uniform(3, Purpose.AUGMENT, count=4000)
    assert numbers[0] == (int(words(3, Purpose.AUGMENT, count=1)[0]) >> 11) / 2**53
    assert 0 <= numbers.min() < 0.001 < 0.999 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02


def test_a_permutation_has_everything_once_and_every_order_alike() -> None:
    assert sorted(permutation(1000, 0, Purpose.PACK).tolist()) == list(range(1000))
    orders = [tuple(permutation(3, 0, Purpose.PACK, trial).tolist()) for trial in range(3000)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 500).max() < 100  # five standard deviations
