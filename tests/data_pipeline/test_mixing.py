from pathlib import Path

import numpy as np
import pytest

from data_pipeline import mixing as mixing_module
from data_pipeline.foreign import index_shards
from data_pipeline.index import Rows
from data_pipeline.mixing import MIXED_WELL, blocks_of, mixing, mixing_of, warn_of_mixing
from data_pipeline.samples import SampleSet
from tests.data_pipeline.shards import png, write_shard


def test_mixing_of_a_shuffled_set_is_one_and_of_a_sorted_one_little() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 500).astype(np.int32)[:, None]
    block_of = blocks_of((5_000, 5_000), 256)
    assert mixing(labels, block_of, 20).figure == pytest.approx(1 / 20, rel=0.35)
    shuffled = [mixing(rng.permutation(labels), block_of, 20).figure for _ in range(20)]
    assert np.mean(shuffled) == pytest.approx(1, abs=0.01)
    assert np.std(shuffled) < 0.02
    half = np.concatenate([rng.permutation(labels[:5_000]), rng.permutation(labels[5_000:])])
    assert mixing(half, block_of, 20).figure == pytest.approx(0.5, abs=0.02)  # two shuffled halves of ten classes each


def test_mixing_counts_pairs_as_it_says() -> None:
    labels = np.array([[0, 1], [0, -1], [1, 2], [0, 2]], dtype=np.int32)
    block_of = np.array([0, 0, 1, 1])
    # Ordered pairs that share a label, of 12 in the set: label 0 has 6, 1 has 2, 2 has 2; of 4 within a block: 2 and 2.
    assert mixing(labels, block_of, 3).figure == pytest.approx((10 / 12) / (4 / 4))


def test_blocks_without_a_pair_cannot_be_mixed_better() -> None:
    labels = np.arange(6, dtype=np.int32)[:, None]
    assert mixing(labels, blocks_of((6,), 3), 6) == (1, True)


def test_blocks_end_with_their_shard() -> None:
    assert blocks_of((5, 2, 4), 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4]


def test_a_figure_that_chance_explains_is_no_reproach() -> None:
    """In small shuffled sets the figure is often under the mark; sorted ones of the same size are told apart."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 5).astype(np.int32)[:, None]
    block_of = blocks_of((100, 100), 8)
    shuffled = [mixing(rng.permutation(labels), block_of, 40) for _ in range(300)]
    assert sum(each.figure < MIXED_WELL for each in shuffled) > 60
    assert sum(not each.well for each in shuffled) <= 2
    assert not mixing(labels, block_of, 40).well


@pytest.fixture
def sorted_set(tmp_path: Path) -> SampleSet:
    """Twelve shards of twelve images of one class each, in blocks of 5."""
    image = png()
    tars = [
        write_shard(
            tmp_path / f"{shard:02d}.tar",
            {str(key): {"json": b'{"labels": [%d]}' % shard, "png": image} for key in range(12)},
        )
        for shard in range(12)
    ]
    index_shards(tars, tmp_path)
    samples = SampleSet.open(tmp_path)
    return type(samples)(**{**vars(samples), "block_samples": 5})


def test_a_set_is_judged_from_blocks_spread_over_it(sorted_set: SampleSet, monkeypatch: pytest.MonkeyPatch) -> None:
    block_of = blocks_of(sorted_set.shard_samples, sorted_set.block_samples)
    assert mixing_of(sorted_set) == mixing(sorted_set.labels(), block_of, 12)  # 36 blocks: all are looked at
    monkeypatch.setattr(mixing_module, "JUDGED_BLOCKS", 4)
    read: list[int] = []
    rows = SampleSet.rows

    def counted(samples: SampleSet, shard: int) -> Rows:
        read.append(shard)
        return rows(samples, shard)

    monkeypatch.setattr(SampleSet, "rows", counted)
    # Blocks 0, 11, 23 and 35: of shards 0, 3, 7 and 11, with 5, 2, 2 and 2 images.
    alike_in_blocks = 10 + 1 + 1 + 1
    expected = alike_in_blocks / (11 * 10 / 2) * alike_in_blocks
    figure, well = mixing_of(sorted_set)
    assert figure == pytest.approx(expected / alike_in_blocks)
    assert not well
    assert read == [0, 3, 7, 11]


def test_a_subset_is_judged_by_its_own_rows(coded_samples: SampleSet) -> None:
    assert mixing_of(coded_samples.subset_per_class(3, seed=0)).well


def test_a_badly_mixed_set_is_warned_of_and_a_shuffled_one_is_not(
    sorted_set: SampleSet, coded_samples: SampleSet, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_mixing(coded_samples)
    assert capsys.readouterr() == ("", "")
    warn_of_mixing(sorted_set)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"warning: {sorted_set.folders[0]}: mixing 0.08 of a shuffled set's, under 0.9: training would see class after "
        "class; pack the images again with: python -m data_pipeline pack\n"
    )
