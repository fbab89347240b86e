"""Small packed sets that several tests read."""

import json
from pathlib import Path

import pytest

from data_pipeline import manifest
from data_pipeline.foreign import index_shards
from data_pipeline.pack import PackOptions, pack
from data_pipeline.samples import SampleSet
from data_pipeline.sources import ClassFolders, Digits
from tests.data_pipeline.coded import write_coded
from tests.data_pipeline.shards import png, write_shard


@pytest.fixture(scope="session")
def coded_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coded(tmp_path_factory.mktemp("source") / "coded")


@pytest.fixture(scope="session")
def coded(coded_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """97 coded images in shards of 23 and blocks of 8."""
    folder = tmp_path_factory.mktemp("packed") / "coded"
    pack(ClassFolders(coded_source), folder, PackOptions(shard_samples=23, seed=3))
    manifest.save(folder, manifest.load(folder).model_copy(update={"block_samples": 8}))
    return folder


@pytest.fixture(scope="session")
def coded_samples(coded: Path) -> SampleSet:
    return SampleSet.open(coded)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 3 with a hold-out: the sets train and val."""
    folder = tmp_path_factory.mktemp("packed") / "digits"
    pack(Digits(), folder, PackOptions(hold_out=0.1, shard_samples=200), classes=["0", "1", "2", "3"])
    return folder


@pytest.fixture(scope="session")
def broken_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images, of which number 3 was broken before it was indexed."""
    folder = tmp_path_factory.mktemp("broken")
    images = [png(), png(), png(), png()[:-40], png()]
    samples = {str(number): {"cls": b"0", "png": image} for number, image in enumerate(images)}
    index_shards([write_shard(folder / "shard.tar", samples)], folder)
    return folder


@pytest.fixture(scope="session")
def multi_label_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with 1, 2, 0 and 3 labels of 6."""
    folder = tmp_path_factory.mktemp("multi")
    labels = [[0], [1, 5], [], [4, 3, 2]]
    samples = {
        f"a/{number}": {"json": json.dumps({"labels": each}).encode(), "png": png()}
        for number, each in enumerate(labels)
    }
    index_shards([write_shard(folder / "shard.tar", samples)], folder)
    return folder
