"""Stages of webdataset's own behind our order."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipeline.dictionaries import dictionaries
from data_pipeline.plan import Plan
from data_pipeline.samples import SampleError, SampleSet
from tests.data_pipeline.coded import COUNTS, label_of, number_of

BATCH, STOP = 10, 10  # 100 places: an epoch of 97 images and a little more


@pytest.fixture
def plan(coded_samples: SampleSet) -> Plan:
    return Plan(coded_samples.shard_samples, coded_samples.block_samples, 1, BATCH, 3)


def test_stages_of_webdataset_follow_in_the_order_of_the_plan(coded_samples: SampleSet, plan: Plan) -> None:
    def small(image: Image.Image) -> Image.Image:
        return image.resize((8, 8))

    pipeline = webdataset.DataPipeline(
        partial(dictionaries, coded_samples, plan, 0, STOP),
        webdataset.decode("pil"),
        webdataset.to_tuple("png;webp", "cls", "__place__"),
        webdataset.map_tuple(small),
        webdataset.batched(BATCH),
    )
    batches = list(pipeline)
    assert len(batches) == STOP
    for step, (images, labels, places) in enumerate(batches):
        planned = plan.batch(step)
        assert np.array_equal(places, planned.place)
        pixels_B3HW = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
        assert np.array_equal(label_of(pixels_B3HW), labels)
        read = [coded_samples.read(*at) for at in zip(planned.shard.tolist(), planned.row.tolist(), strict=True)]
        assert [sample.labels for sample in read] == [(label,) for label in labels]
    epoch = [
        (int(label), int(number_of(np.asarray(image).transpose(2, 0, 1))))
        for images, labels, places in batches
        for image, label, place in zip(images, labels, places, strict=True)
        if place < 97
    ]
    assert sorted(epoch) == [(label, number) for label, count in enumerate(COUNTS) for number in range(count)]


def test_a_dictionary_is_webdataset_s_own_of_that_sample(coded: Path, coded_samples: SampleSet, plan: Plan) -> None:
    theirs = {
        (sample["__url__"], sample["__key__"]): sample
        for sample in webdataset.WebDataset(sorted(map(str, coded.glob("*.tar"))), shardshuffle=False)
    }
    for ours in dictionaries(coded_samples, plan, 0, STOP):
        found = theirs[ours["__url__"], ours["__key__"]]
        assert isinstance(ours.pop("__place__"), int)
        assert ours == {name: found[name] for name in found if name != "__local_path__"}


def test_ranks_share_a_batch_and_any_step_can_be_the_first(coded_samples: SampleSet, plan: Plan) -> None:
    whole = [sample["__place__"] for sample in dictionaries(coded_samples, plan, 4, 7)]
    assert whole == [place for step in (4, 5, 6) for place in plan.batch(step).place]
    for step in range(4, 7):
        shares = [
            sample["__place__"]
            for rank in range(3)
            for sample in dictionaries(coded_samples, plan, step, step + 1, rank, 3)
        ]
        assert shares == plan.batch(step).place.tolist()


def test_lists_of_labels_come_as_json_and_keys_with_folders_stay_whole(multi_label_set: Path) -> None:
    samples = SampleSet.open(multi_label_set)
    source = partial(dictionaries, samples, Plan(samples.shard_samples, 4, 0, 4, 1), 0, 1)
    found = list(webdataset.DataPipeline(source, webdataset.decode("pil"), webdataset.to_tuple("__key__", "json")))
    assert sorted(found, key=lambda pair: pair[0]) == [
        ("a/0", {"labels": [0]}),
        ("a/1", {"labels": [1, 5]}),
        ("a/2", {"labels": []}),
        ("a/3", {"labels": [4, 3, 2]}),
    ]


def test_wrong_bytes_are_an_error_and_no_other_sample(coded: Path, tmp_path: Path) -> None:
    for path in coded.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"ustar", b"wrong"))
    samples = SampleSet.open(tmp_path)
    plan = Plan(samples.shard_samples, samples.block_samples, 1, 1, 1)
    with pytest.raises(SampleError, match="holds no tar header"):
        next(dictionaries(samples, plan, 0, 1))
