"""Small packed sets that several tests read. A coded image is one flat colour that names its class and number, so that
a picture and its label can be held against each other wherever they come out: crops and resizes leave the colour."""

from pathlib import Path

import pytest
from PIL import Image

from data_pipeline import manifest
from data_pipeline.pack import PackOptions, pack
from data_pipeline.samples import SampleSet
from data_pipeline.sources import ClassFolders, Digits

CLASSES = ("ant", "bee", "cat", "dog", "eel")
COUNTS = (23, 11, 31, 17, 15)  # 97 images: a prime number


def colour(label: int, number: int) -> tuple[int, int, int]:
    return 50 * label + 5, 2 * number + 3, 77


def write_coded(root: Path) -> Path:
    for label, (name, count) in enumerate(zip(CLASSES, COUNTS, strict=True)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            suffix = ("png", "webp", "bmp")[number % 3]
            image = Image.new("RGB", (9 + number % 4, 8), colour(label, number))
            image.save(root / name / f"{number:03d}.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    return root


@pytest.fixture(scope="session")
def coded_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coded(tmp_path_factory.mktemp("source"))


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
