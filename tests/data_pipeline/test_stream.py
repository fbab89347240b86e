import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.config import AugmentConfig
from data_pipeline.decode import decode
from data_pipeline.manifest import ManifestError
from data_pipeline.plan import Plan, max_share
from data_pipeline.samples import SampleError, SampleSet
from data_pipeline.stream import Batch, TrainStream, eval_batches
from tests.data_pipeline.coded import label_of, number_of

SEED, BATCH, LANES = 11, 10, 6
TRANSFORM = TrainTransform(AugmentConfig(), (8, 6), SEED)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose


def plan_of(samples: SampleSet) -> Plan:
    return Plan(samples.shard_samples, samples.block_samples, SEED, BATCH, LANES)


def stream(
    samples: SampleSet,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
    threads: int = 1,
    start_method: str | None = None,
) -> TrainStream:
    rows = max_share(BATCH, ranks) + 1  # one more than needed: every batch has padding
    return TrainStream(samples, plan_of(samples), TRANSFORM, rank, ranks, rows, workers, threads, start_method)


def planned_keys(samples: SampleSet, step: int, rank: int, ranks: int) -> list[str]:
    places = plan_of(samples).share(step, rank, ranks)
    return [samples.key(shard, row) for shard, row in zip(places.shard, places.row, strict=True)]


def real_images(batches: Sequence[Batch]) -> torch.Tensor:
    return torch.cat([batch.images_B3HW[: len(batch.keys)] for batch in batches])


@pytest.fixture(scope="module")
def one_rank(coded_samples: SampleSet) -> list[Batch]:
    """Two epochs and a bit, loaded in the simplest way."""
    return list(stream(coded_samples).batches(0, 21))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_comes_out_is_the_plan_whatever_ranks_and_workers(
    coded_samples: SampleSet, one_rank: list[Batch], ranks: int, workers: int
) -> None:
    drained = [list(stream(coded_samples, rank, ranks, workers).batches(0, 21)) for rank in range(ranks)]
    for step in range(21):
        at_step = [batches[step] for batches in drained]
        assert [batch.step for batch in at_step] == [step] * ranks
        for rank, batch in enumerate(at_step):
            assert batch.keys == planned_keys(coded_samples, step, rank, ranks)
        whole = one_rank[step]
        assert torch.equal(real_images(at_step), real_images([whole]))
        for column in ("labels", "places"):
            parts = [getattr(batch, column)[: len(batch.keys)] for batch in at_step]
            assert torch.equal(torch.cat(parts), getattr(whole, column)[: len(whole.keys)])


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_other_ways_to_start_workers_change_nothing(
    coded_samples: SampleSet, one_rank: list[Batch], start_method: str
) -> None:
    found = list(stream(coded_samples, workers=1, start_method=start_method).batches(3, 6))
    assert [batch.keys for batch in found] == [batch.keys for batch in one_rank[3:6]]
    assert torch.equal(real_images(found), real_images(one_rank[3:6]))


def test_decoding_threads_change_nothing(coded_samples: SampleSet, one_rank: list[Batch]) -> None:
    found = list(stream(coded_samples, threads=4).batches(0, 5))
    assert [batch.keys for batch in found] == [batch.keys for batch in one_rank[:5]]
    assert torch.equal(real_images(found), real_images(one_rank[:5]))


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_in_the_middle_gives_the_tail(coded_samples: SampleSet, one_rank: list[Batch], workers: int) -> None:
    tail = list(stream(coded_samples, workers=workers).batches(13, 21))
    assert [batch.step for batch in tail] == list(range(13, 21))
    assert [batch.keys for batch in tail] == [batch.keys for batch in one_rank[13:]]
    assert torch.equal(real_images(tail), real_images(one_rank[13:]))


@pytest.mark.parametrize("workers", [0, 2])
def test_passed_over_steps_are_not_loaded_and_shift_no_other(
    coded_samples: SampleSet, one_rank: list[Batch], workers: int
) -> None:
    found = list(stream(coded_samples, workers=workers).batches(2, 8, skip=(3, 6, 100)))
    assert [batch.step for batch in found] == [2, 4, 5, 7]
    assert [batch.keys for batch in found] == [one_rank[step].keys for step in (2, 4, 5, 7)]


def test_labels_and_keys_travel_with_their_pixels(coded_samples: SampleSet, one_rank: list[Batch]) -> None:
    source_of = {
        coded_samples.key(shard, row): coded_samples.rows(shard)[row]["source"].decode()
        for shard, count in enumerate(coded_samples.shard_samples)
        for row in range(count)
    }
    for batch in one_rank:
        real = batch.images_B3HW[: len(batch.keys)].numpy()
        assert np.array_equal(label_of(real), batch.labels[: len(batch.keys)])
        for key, label, number in zip(batch.keys, label_of(real), number_of(real), strict=True):
            assert source_of[key].startswith(f"{coded_samples.classes[label]}/{number:03d}.")


def test_pixels_are_the_transformed_image_of_the_place(coded_samples: SampleSet, one_rank: list[Batch]) -> None:
    for step in (0, 9, 20):  # of three epochs
        places = plan_of(coded_samples).batch(step)
        for row in range(len(places)):
            sample = coded_samples.read(places.shard[row], places.row[row])
            expected = TRANSFORM(decode(sample.image_bytes), int(places.place[row])).transpose(2, 0, 1)
            assert np.array_equal(one_rank[step].images_B3HW[row], expected)
            assert one_rank[step].places[row] == places.place[row]


def test_an_epoch_has_every_sample_once(coded_samples: SampleSet, one_rank: list[Batch]) -> None:
    rows = [
        (place, key)
        for batch in one_rank
        for place, key in zip(batch.places.tolist(), batch.keys, strict=False)
        if place < 2 * 97
    ]
    for epoch in range(2):
        assert len({key for place, key in rows if place // 97 == epoch}) == 97


def test_padding_has_no_weight_no_place_and_no_key(coded_samples: SampleSet) -> None:
    ranks = 3
    for rank in range(ranks):
        batch = next(stream(coded_samples, rank, ranks).batches(0, 1))
        real = len(batch.keys)
        assert batch.weights.tolist() == [1.0] * real + [0.0] * (5 - real)
        assert batch.places[real:].tolist() == [-1] * (5 - real)
        assert batch.places[:real].min() >= 0
        assert not batch.images_B3HW[real:].any()
        assert not batch.labels[real:].any()


def test_shapes_kinds_and_the_range_of_pixels(one_rank: list[Batch]) -> None:
    batch = one_rank[0]
    assert batch.images_B3HW.shape == (11, 3, 8, 6)
    assert batch.images_B3HW.dtype == torch.uint8
    assert batch.labels.dtype == batch.places.dtype == torch.int64
    assert batch.weights.dtype == torch.float32
    expected = (batch.images_B3HW.double() - 127.5) / 127.5  # vit_jax/input_pipeline.py
    assert batch.pixels().dtype == torch.float32
    assert torch.allclose(batch.pixels().double(), expected, atol=1e-7)
    assert torch.equal(batch.to("cpu").images_B3HW, batch.images_B3HW)


def test_micro_batches_are_the_batch_in_order(coded_samples: SampleSet) -> None:
    rows = 12
    batch = next(TrainStream(coded_samples, plan_of(coded_samples), TRANSFORM, 0, 1, rows).batches(0, 1))
    micro = batch.micro(4)
    assert [len(each.keys) for each in micro] == [4, 4, 2]
    assert [key for each in micro for key in each.keys] == batch.keys
    for column in ("images_B3HW", "labels", "weights", "places"):
        assert torch.equal(torch.cat([getattr(each, column) for each in micro]), getattr(batch, column))


def test_the_stream_leaves_global_random_numbers_alone(coded_samples: SampleSet) -> None:
    """Otherwise dropout would depend on where a run was restarted."""
    torch.manual_seed(0)
    random.seed(0)
    expected = torch.rand(3), random.random()
    torch.manual_seed(0)
    random.seed(0)
    for workers in (0, 1):
        list(stream(coded_samples, workers=workers).batches(0, 2))
        list(eval_batches(coded_samples, EvalTransform((4, 4)), 0, 1, rows=50, workers=workers))
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_each_image_once(coded_samples: SampleSet, ranks: int, workers: int) -> None:
    drained = [
        list(eval_batches(coded_samples, EvalTransform((5, 5)), rank, ranks, rows=7, workers=workers))
        for rank in range(ranks)
    ]
    assert len({len(batches) for batches in drained}) == 1
    everything = [batch for batches in drained for batch in batches]
    assert all(batch.images_B3HW.shape == (7, 3, 5, 5) for batch in everything)
    keys = sorted(key for batch in everything for key in batch.keys)
    assert keys == sorted(
        coded_samples.key(shard, row) for shard, count in enumerate(coded_samples.shard_samples) for row in range(count)
    )
    assert sum(batch.weights.sum().item() for batch in everything) == 97
    for batch in everything:
        real = batch.images_B3HW[: len(batch.keys)].numpy()
        assert np.array_equal(label_of(real), batch.labels[: len(batch.keys)])


def test_evaluation_squeezes_images_as_stored(digits: Path) -> None:
    samples = SampleSet.open(digits / "val")
    batch = next(eval_batches(samples, EvalTransform((8, 8)), 0, 1, rows=4))
    sums = batch.images_B3HW.sum(dim=(1, 2, 3))
    assert (sums > 0).all()
    assert batch.labels.max() < 4


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_cannot_be_decoded_stops_the_stream_by_name(broken_set: Path, workers: int) -> None:
    samples = SampleSet.open(broken_set)
    with pytest.raises(SampleError, match=r"^shard/3: broken image: [^\n]+$"):
        list(eval_batches(samples, EvalTransform((4, 4)), 0, 1, rows=3, workers=workers))


def test_workers_have_ended_when_an_error_arrives(broken_set: Path) -> None:
    samples = SampleSet.open(broken_set)
    with pytest.raises(SampleError):
        list(eval_batches(samples, EvalTransform((4, 4)), 0, 1, rows=3, workers=2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_not_the_manifest_s_stops_the_stream_by_name(coded: Path, tmp_path: Path, workers: int) -> None:
    copy = shutil.copytree(coded, tmp_path / "copy")
    (copy / "train-000003.tar").unlink()
    with pytest.raises(ManifestError, match=r"^[^\n]*train-000003.tar: No such file or directory[^\n]*$"):
        list(stream(SampleSet.open(copy), workers=workers).batches(0, 10))


def test_lists_of_labels_become_rows_of_ones(multi_label_set: Path) -> None:
    samples = SampleSet.open(multi_label_set)
    assert samples.multi_label
    batch = next(eval_batches(samples, EvalTransform((4, 4)), 0, 1, rows=5))
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [
        [1, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    with pytest.raises(ValueError, match="images have lists of labels; a subset per class needs one label"):
        samples.subset_per_class(1, seed=0)


LOOP = """
import sys, time
from pathlib import Path
from data_pipeline.augment import EvalTransform
from data_pipeline.plan import Plan
from data_pipeline.samples import SampleSet
from data_pipeline.stream import TrainStream

samples = SampleSet.open(Path(sys.argv[1]))
plan = Plan(samples.shard_samples, samples.block_samples, 0, 8, 4)
for batch in TrainStream(samples, plan, EvalTransform((8, 8)), 0, 1, 8, workers=2).batches(0, 10**6):
    print(batch.step, flush=True)
    time.sleep(0.01)
"""


def test_ctrl_c_ends_the_workers_and_leaves_one_traceback(coded: Path) -> None:
    """A terminal sends it to the whole group; only the loop's own process says something."""
    loop = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(coded)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert loop.stdout
    assert loop.stdout.readline() == "0\n"
    os.killpg(loop.pid, signal.SIGINT)
    _, errors = loop.communicate(timeout=30)  # returns when the last process that holds the pipes is gone
    assert errors.count("Traceback") == 1
    assert "KeyboardInterrupt" in errors
