"""CIFAR-10 and CIFAR-100 as a source, from the folder that torchvision downloads and unpacks.

The official distribution is pickles. Each file must have the MD5 that torchvision lists, and is then read by an
unpickler that can make arrays, bytes, texts, lists, dictionaries and whole numbers, and nothing else.
Source of names and MD5s: torchvision 0.29, torchvision/datasets/cifar.py.
"""

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.listing import Lister, Listing, choose


class _Distribution(NamedTuple):
    files: dict[str, dict[str, str]]  # MD5 by file name, by split
    meta: tuple[str, str]  # the file with the names of the classes, its MD5
    names: str  # where in it they are
    labels: str  # where in the other files the labels are


DISTRIBUTIONS = {
    "cifar-10-batches-py": _Distribution(
        files={
            "train": {
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
        },
        meta=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        names="label_names",
        labels="labels",
    ),
    "cifar-100-python": _Distribution(
        files={
            "train": {"train": "16019d7e3df5f24257cddd939b257f8d"},
            "test": {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        },
        meta=("meta", "7973b15100ade9c7d40fb424638fde48"),
        names="fine_label_names",
        labels="fine_labels",
    ),
}


def find(root: Path) -> Path | None:
    """The folder of a distribution: `root` itself, or the one inside it; ValueError when both are inside."""
    if root.name in DISTRIBUTIONS:
        return root
    inside = [root / name for name in DISTRIBUTIONS if (root / name).is_dir()]
    if len(inside) > 1:
        raise ValueError(f"{root}: holds {' and '.join(each.name for each in inside)}; name one of them")
    return inside[0] if inside else None


@dataclass(frozen=True)
class Cifar:
    """ROOT/cifar-10-batches-py or ROOT/cifar-100-python (the 100 fine classes), as PNGs of 32 x 32 pixels."""

    folder: Path
    split: str

    def __post_init__(self) -> None:
        if self.split not in self._distribution.files:
            raise ValueError(f"--split {self.split}: {self.folder.name} has the splits train and test")

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """See Source; ValueError for a file that is missing or not the official one."""
        meta, md5 = self._distribution.meta
        class_names = _load(self.folder / meta, md5)[self._distribution.names]
        # In the numbering of the distribution, as everyone's results have it.
        lister = Lister(choose(class_names, classes), multi_label=False)
        for file, md5 in self._distribution.files[self.split].items():
            for row, label in enumerate(_load(self.folder / file, md5)[self._distribution.labels]):
                lister.add(f"{file}/{row:05d}.png".encode(), [class_names[label]])
        return lister.listing()

    def read(self, name: bytes) -> bytes:
        """See Source."""
        file, row = name.decode().removesuffix(".png").split("/")
        pixels_3HW = _load(self.folder / file, self._distribution.files[self.split][file])["data"][int(row)]
        image = io.BytesIO()
        Image.fromarray(pixels_3HW.reshape(3, 32, 32).transpose(1, 2, 0)).save(image, "PNG")
        return image.getvalue()

    def size_bytes(self, name: bytes) -> int:
        """See Source."""
        return len(self.read(name))

    @property
    def _distribution(self) -> _Distribution:
        return DISTRIBUTIONS[self.folder.name]


class _Unpickler(pickle.Unpickler):
    """Makes arrays and plain values; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]  # numpy's own name for it changed with version 2
        raise pickle.UnpicklingError(f"{module}.{name}")


@cache
def _load(path: Path, md5: str) -> dict[str, Any]:
    """What a file of a distribution holds; ValueError unless it is the official one, byte for byte."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; unpack the official archive again") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path}: other bytes than the official file (MD5 {md5}); unpack the official archive again")
    try:
        # The names and keys were written by Python 2, as bytes.
        tree: dict[str, Any] = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: asks for {error}, which no file of images needs; it was not opened") from None
    return tree
