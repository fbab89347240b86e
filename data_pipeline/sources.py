"""Where the images to be packed come from: a folder of class folders, or the digits that come with the project.

A source is small and can be pickled: workers get it with the names of their samples, never the whole listing.
"""

import difflib
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

_STORED_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
_OTHER_ENDINGS = (".avif", ".bmp", ".gif", ".jp2", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff")
IMAGE_ENDINGS = frozenset(_STORED_ENDINGS + _OTHER_ENDINGS)
SPLIT_NAMES = ("train", "val", "valid", "validation", "test")

DIGITS = "digits"
_DIGITS_FILE = Path(__file__).parent / "digits" / "digits.npz"


class Listing(NamedTuple):
    """Every image of a source, class after class."""

    classes: tuple[str, ...]
    labels: npt.NDArray[np.int32]  # [N]
    names: npt.NDArray[np.bytes_]  # [N], what the source reads an image by
    ignored: dict[str, int]  # files that are no images, by the ending of their name


class Source(Protocol):
    """Images with labels, each under a name."""

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """All images, or those of `classes`, numbered in that order; the same whenever the source is the same."""

    def read(self, name: bytes) -> bytes:
        """The bytes of an image file; OSError when they cannot be had."""

    def size_bytes(self, name: bytes) -> int:
        """How many bytes read() returns, without reading them."""


def open_source(source: str, split: str | None) -> Source:
    """The source that a user named: `digits`, or a folder; of a folder with a split NAME inside, that one."""
    if source == DIGITS:
        return Digits()
    root = Path(source)
    if not root.is_dir():
        raise ValueError(f"{source}: no such folder; SOURCE is a folder of class folders, or the word {DIGITS}")
    if split and _is_split(root / split):
        root = root / split
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
        chosen = _choose(found, classes)
        labels: list[int] = []
        names: list[bytes] = []
        empty: list[str] = []
        ignored: Counter[str] = Counter()
        for label, name in enumerate(chosen):
            images, others = self._files(name)
            if not images:
                empty.append(name)
            names += images
            labels += [label] * len(images)
            ignored += others
        if empty:
            raise ValueError(
                f"{self.root}: no images in the class folder{'s' * (len(empty) > 1)} {', '.join(empty)}; "
                f"fill or remove, or choose the others with --classes"
            )
        return Listing(chosen, np.array(labels, np.int32), np.array(names), dict(ignored))

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
        chosen = _choose([str(digit) for digit in range(10)], classes)
        _, digits = _load_digits()
        places = [np.flatnonzero(digits == int(name)) for name in chosen]
        labels = np.repeat(np.arange(len(chosen), dtype=np.int32), [len(each) for each in places])
        names = [f"{digits[place]}/{place:04d}.png".encode() for each in places for place in each]
        return Listing(chosen, labels, np.array(names), {})

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


def _is_split(folder: Path) -> bool:
    """A folder of folders; a class folder may well be called `train`, but has images in it."""
    if not folder.is_dir():
        return False
    children = list(folder.iterdir())
    return any(child.is_dir() for child in children) and not any(
        child.suffix.lower() in IMAGE_ENDINGS for child in children
    )


def _choose(found: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return tuple(found)
    for name in classes:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(found[:10])}"
            raise ValueError(f"--classes {name}: the source has no such class; {hint}")
        if list(classes).count(name) > 1:
            raise ValueError(f"--classes {name}: named twice; a class has one label")
    return tuple(classes)


@cache
def _load_digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    with np.load(_DIGITS_FILE, allow_pickle=False) as file:
        return file["images"], file["labels"]
