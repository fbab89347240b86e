"""Where the images to be packed come from: by what the user named, the source that reads it."""

import io
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline import cifar, listing_file
from data_pipeline.cifar import Cifar
from data_pipeline.listing import IMAGE_ENDINGS, Listing, Names, Source, choose
from data_pipeline.listing_file import ListingFile
from data_pipeline.tar_sources import ClassTars, Shards, holds_labels

SPLIT_NAMES = ("train", "val", "valid", "validation", "test")

DIGITS = "digits"
_DIGITS_FILE = Path(__file__).parent / "digits" / "digits.npz"


def open_source(source: str, split: str | None) -> Source:
    """The source that a user named: a folder (of one with a split NAME inside, that one), a listing, or `digits`."""
    if source == DIGITS:
        return Digits()
    root = Path(source).absolute()
    if root.is_file():
        if root.suffix not in listing_file.ENDINGS:
            raise ValueError(f"{source}: not a listing; it ends in {', '.join(listing_file.ENDINGS)}")
        return ListingFile(root)
    if not root.is_dir():
        raise ValueError(f"{source}: no such folder; SOURCE is a folder, a listing of images, or the word {DIGITS}")
    if found := cifar.find(root):
        return Cifar(found, split or "train")
    if split and (_is_split(root / split) or _tars(root / split)):
        root = root / split
    if tars := _tars(root):
        return Shards(root) if holds_labels(tars[0]) else ClassTars(root)
    return ClassFolders(root)


@dataclass(frozen=True)
class ClassFolders:
    """ROOT/CLASS/**/image: one folder a class, as torchvision's ImageFolder has it."""

    root: Path

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """See Source; ValueError when there are no class folders, or one of them has no images."""
        found = sorted(child.name for child in self.root.iterdir() if child.is_dir() and child.name[0] != ".")
        if not found:
            raise ValueError(
                f"{self.root}: no class folders in it; put the images of each class in a folder of its own"
            )
        splits = [name for name in SPLIT_NAMES if name in found and _is_split(self.root / name)]
        if splits:
            raise ValueError(f"{self.root}: holds {', '.join(splits)}; name the one to pack with --split {splits[0]}")
        chosen = choose(found, classes)
        labels = array("i")
        names = Names()
        empty: list[str] = []
        ignored: Counter[str] = Counter()
        for label, name in enumerate(chosen):
            images, others = self._files(name)
            if not images:
                empty.append(name)
            for image in images:
                names.append(image)
            labels.extend([label] * len(images))
            ignored += others
        if empty:
            raise ValueError(
                f"{self.root}: no images in the class folder{'s' * (len(empty) > 1)} {', '.join(empty)}; "
                f"fill or remove, or choose the others with --classes"
            )
        return Listing(chosen, False, np.array(labels, np.int32)[:, None], names, dict(ignored))

    def read(self, name: bytes) -> bytes:
        """See Source."""
        return (self.root / os.fsdecode(name)).read_bytes()

    def size_bytes(self, name: bytes) -> int:
        """See Source."""
        try:
            return (self.root / os.fsdecode(name)).stat().st_size
        except OSError:
            return 0  # read() will fail too, and say why

    def _files(self, class_name: str) -> tuple[list[bytes], Counter[str]]:
        """The paths of a class's images, sorted byte by byte, and the endings of its other files."""
        images: list[bytes] = []
        others: Counter[str] = Counter()
        for folder, _, files in os.walk(self.root / class_name, followlinks=True):
            relative = Path(folder).relative_to(self.root)
            for file in files:
                ending = Path(file).suffix.lower()
                if ending in IMAGE_ENDINGS and file[0] != ".":
                    images.append(os.fsencode(relative / file))
                else:
                    others[ending or file] += 1
        return sorted(images), others


@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits as grey PNGs of 8 x 8 pixels (`digits/README.md`)."""

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """See Source."""
        chosen = choose([str(digit) for digit in range(10)], classes)
        _, digits = _load_digits()
        places = [np.flatnonzero(digits == int(name)) for name in chosen]
        labels = np.repeat(np.arange(len(chosen), dtype=np.int32), [len(each) for each in places])
        names = [f"{digits[place]}/{place:04d}.png".encode() for each in places for place in each]
        return Listing(chosen, False, labels[:, None], Names(names), {})

    def read(self, name: bytes) -> bytes:
        """See Source."""
        images, _ = _load_digits()
        levels_HW = images[int(Path(os.fsdecode(name)).stem)]
        file = io.BytesIO()
        Image.fromarray(np.round(levels_HW * (255 / 16)).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    def size_bytes(self, name: bytes) -> int:
        """See Source."""
        return len(self.read(name))


def _tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def _is_split(folder: Path) -> bool:
    """A folder of folders; a class folder may well be called `train`, but has images in it."""
    if not folder.is_dir():
        return False
    children = list(folder.iterdir())
    return any(child.is_dir() for child in children) and not any(
        child.suffix.lower() in IMAGE_ENDINGS for child in children
    )


@cache
def _load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    with np.load(_DIGITS_FILE, allow_pickle=False) as file:
        return file["images"], file["labels"]
