import hashlib
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from data_pipeline import cifar
from data_pipeline.cifar import Cifar
from data_pipeline.sources import open_source

CIFAR100 = "cifar-100-python"


def write(folder: Path, name: str, content: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return hashlib.md5(content).hexdigest()


def pickled(tree: dict[str, object]) -> bytes:
    """As the Python 2 of 2009 wrote it: every text is a string of bytes, and numpy has its old names."""
    file = io.BytesIO()
    pickler: Any = pickle._Pickler(file, protocol=2)

    def save_string(pickler: Any, text: str | bytes) -> None:
        content = text if isinstance(text, bytes) else text.encode()
        pickler.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        pickler.memoize(text)

    pickler.dispatch = {**pickler.dispatch, bytes: save_string, str: save_string}
    pickler.dump(tree)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-100 of three images, pickled as the official one is, whose MD5s stand in for the official ones."""
    folder = tmp_path / CIFAR100
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    md5s = {
        name: write(folder, name, pickled({"data": pixels, "fine_labels": [1, 0, 1]})) for name in ("train", "test")
    }
    meta = write(folder, "meta", pickled({"fine_label_names": ["train", "apple"]}))
    official = cifar.DISTRIBUTIONS[CIFAR100]
    files = {name: {name: md5} for name, md5 in md5s.items()}
    monkeypatch.setitem(cifar.DISTRIBUTIONS, CIFAR100, official._replace(files=files, meta=("meta", meta)))
    return tmp_path


def test_the_files_are_those_that_torchvision_lists() -> None:
    for kind in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        ours = cifar.DISTRIBUTIONS[kind.base_folder]
        assert ours.files == {"train": dict(kind.train_list), "test": dict(kind.test_list)}
        assert (*ours.meta, ours.names) == (kind.meta["filename"], kind.meta["md5"], kind.meta["key"])


def test_pictures_and_classes_are_torchvision_s(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda _: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    theirs = torchvision.datasets.CIFAR100(small, train=False)
    source = open_source(str(small), "test")
    assert source == open_source(str(small / CIFAR100), "test") == Cifar(small / CIFAR100, "test")
    listing = source.listing(None)
    assert list(listing.classes) == theirs.classes == ["train", "apple"]
    assert listing.names.tolist() == [b"test/00000.png", b"test/00001.png", b"test/00002.png"]
    for name, label, (picture, target) in zip(listing.names.tolist(), listing.labels[:, 0], theirs, strict=True):
        assert label == target
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(name)))), np.asarray(picture))
        assert source.size_bytes(name) == len(source.read(name))
    assert source.listing(["apple"]).names.tolist() == [b"test/00000.png", b"test/00002.png"]
    assert open_source(str(small), None) == Cifar(small / CIFAR100, "train")


def test_other_bytes_than_the_official_ones_are_refused_unopened(small: Path) -> None:
    file = small / CIFAR100 / "train"
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"train: other bytes than the official file \(MD5 .*\); unpack the official"):
        open_source(str(small), "train").listing(None)
    file.unlink()
    with pytest.raises(ValueError, match="train: no such file; unpack the official archive again"):
        Cifar(small / CIFAR100, "train").listing(None)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("attacked",)


def test_a_pickle_that_asks_for_more_is_not_opened(
    small: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    md5 = write(small / CIFAR100, "meta", pickle.dumps(Attack()))
    changed = cifar.DISTRIBUTIONS[CIFAR100]._replace(meta=("meta", md5))
    monkeypatch.setitem(cifar.DISTRIBUTIONS, CIFAR100, changed)
    with pytest.raises(
        ValueError, match=r"meta: asks for posix.mkdir, which no file of images needs; it was not opened"
    ):
        open_source(str(small), "train").listing(None)
    assert not Path("attacked").exists()


def test_what_cannot_be_told_apart_is_refused(small: Path) -> None:
    with pytest.raises(ValueError, match="--split val: cifar-100-python has the splits train and test"):
        open_source(str(small), "val")
    (small / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match="holds cifar-10-batches-py and cifar-100-python; name one of them"):
        open_source(str(small), "train")
