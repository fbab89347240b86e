"""Every image of a source, by name and label, before any is read."""

import difflib
from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline.index import NO_LABEL

_STORED_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
_OTHER_ENDINGS = (".avif", ".bmp", ".gif", ".jp2", ".pbm", ".pgm", ".pnm", ".ppm", ".tif", ".tiff")
IMAGE_ENDINGS = frozenset(_STORED_ENDINGS + _OTHER_ENDINGS)


class Names:
    """Names one behind the other in one buffer: ten million of them cost their own bytes and eight more each."""

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("Q", (0,))
        for name in names:
            self.append(name)

    def append(self, name: bytes) -> None:
        """One more name."""
        self._bytes += name
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> bytes:
        return bytes(self._bytes[self._ends[place] : self._ends[place + 1]])

    def tolist(self) -> list[bytes]:
        """All of them."""
        return [self[place] for place in range(len(self))]


class Listing(NamedTuple):
    """Every image of a source."""

    classes: tuple[str, ...]
    multi_label: bool
    labels: npt.NDArray[np.int32]  # [N, K], filled up with -1; K is 1 unless multi_label
    names: Names  # N, what the source reads an image by
    ignored: dict[str, int]  # files that are no images, by the ending of their name


class Source(Protocol):
    """Images with labels, each under a name. Small, and can be pickled: it goes to every worker."""

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """All images, or those of `classes`, numbered in that order; the same whenever the source is the same."""

    def read(self, name: bytes) -> bytes:
        """The bytes of an image file; OSError when they cannot be had."""

    def size_bytes(self, name: bytes) -> int:
        """How many bytes read() returns, without reading them."""


class Lister:
    """Collects images with the names of their classes, as a source comes by them.

    The classes are those of `chosen` in that order, and labels of others are passed over: an image that has no label
    but those is left out. Without `chosen` they are all that come by, sorted."""

    def __init__(self, chosen: Sequence[str] | None, multi_label: bool) -> None:
        self._chosen = None if chosen is None else dict.fromkeys(chosen)
        self._multi_label = multi_label
        self._names = Names()
        self._labels = array("i")
        self._num_labels = array("I")
        self._numbers: dict[str, int] = {}  # of the classes, in the order they were met

    def add(self, name: bytes, labels: Sequence[str]) -> None:
        """One more image."""
        numbers = [self._numbers.setdefault(label, len(self._numbers)) for label in labels]
        if self._chosen is not None and labels:
            numbers = [number for label, number in zip(labels, numbers, strict=True) if label in self._chosen]
            if not numbers:
                return
        self._names.append(name)
        self._labels.extend(numbers)
        if self._multi_label:
            self._num_labels.append(len(numbers))

    @property
    def found(self) -> list[str]:
        """The classes that came by, sorted."""
        return _sorted(self._numbers)

    def listing(self) -> Listing:
        """What was collected."""
        classes = tuple(self.found if self._chosen is None else self._chosen)
        numbers = {name: number for number, name in enumerate(classes)}
        renumbered = np.array([numbers.get(name, NO_LABEL) for name in self._numbers], np.int32)
        flat = renumbered[np.frombuffer(self._labels, np.int32)] if self._labels else np.zeros(0, np.int32)
        if not self._multi_label:
            return Listing(classes, False, flat[:, None], self._names, {})
        counts = np.frombuffer(self._num_labels, np.uint32)
        filled = np.full((len(counts), max(1, int(counts.max(initial=0)))), NO_LABEL, np.int32)
        filled[np.arange(filled.shape[1]) < counts[:, None]] = flat
        return Listing(classes, True, filled, self._names, {})


def choose(found: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes asked for, or all that were found; ValueError for one that is not there, or stands twice."""
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


def _sorted(names: Iterable[str]) -> list[str]:
    """By number where all are numbers, so that class 10 comes behind class 9; else by character."""
    listed = sorted(names)
    if all(name.isascii() and name.isdecimal() for name in listed):
        return sorted(listed, key=int)
    return listed
