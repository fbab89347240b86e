"""The samples of one packed set, or of several that form one: what they are called, and their bytes by (shard, row)."""

import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline import manifest
from data_pipeline.index import NO_LABEL, TAR_HEADER_BYTES, Rows, load_rows
from data_pipeline.manifest import Manifest, ManifestError
from data_pipeline.random import Purpose, permutation

# Each takes two file descriptors (the tar and the mapped index), of the 1,024 that a process usually has.
MAX_OPEN_SHARDS = 128


class SampleError(Exception):
    """A sample's bytes are not what its index says, or are no image; names the sample."""


class Sample(NamedTuple):
    """One image as it lies in its shard."""

    key: str  # SHARD/KEY
    suffix: str  # jpg, jpeg, png, webp
    image_bytes: bytes
    labels: tuple[int, ...]  # exactly one, unless the set is multi-label


@dataclass(frozen=True)
class _ShardFiles:
    """Where a shard lies and what its manifest promises."""

    name: str  # as it stands in keys
    tar: Path
    index: Path
    samples: int
    bytes: int
    sha256: str
    num_classes: int


class _OpenShard:
    """A shard's tar and index, open. The last reader's reference closes the file, so no thread reads a closed one."""

    def __init__(self, files: _ShardFiles) -> None:
        try:
            self.descriptor = os.open(files.tar, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ManifestError(f"{files.tar}: {error.strerror}; the manifest names it: copy the set again") from None
        size_bytes = os.fstat(self.descriptor).st_size
        if size_bytes != files.bytes:
            raise ManifestError(
                f"{files.tar}: has {size_bytes} bytes, not {files.bytes} as in the manifest; copy the set again"
            )
        self.rows = load_rows(files.index, files.samples, files.num_classes, files.bytes)

    def __del__(self) -> None:
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)


# One cache a process: open files neither travel to workers nor differ between the sets that a process reads.
_open_shard = lru_cache(maxsize=MAX_OPEN_SHARDS)(_OpenShard)


@dataclass(frozen=True)
class SampleSet:
    """Samples by (shard, row). Opening it reads manifests only; shards open as they are read. It can be pickled."""

    folders: tuple[Path, ...]
    classes: tuple[str, ...]
    multi_label: bool
    block_samples: int
    _shards: tuple[_ShardFiles, ...]
    _kept_rows: tuple[npt.NDArray[np.int64], ...] | None = None  # a subset's rows of each shard

    @classmethod
    def open(cls, folders: Path | Sequence[Path]) -> "SampleSet":
        """The set of one packed folder, or of several one after the other.

        Raises ManifestError for a folder that is no packed set, ValueError for folders that do not go together."""
        folders = (folders,) if isinstance(folders, Path) else tuple(folders)
        # Not resolve(): a link's own name is the way out when two folders have one name.
        names = [folder.absolute().name for folder in folders]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two folders of one set are named {name}, and keys are FOLDER/SHARD/KEY; "
                    f"rename one, or link it under another name"
                )
        manifests = [manifest.load(folder) for folder in folders]
        first = manifests[0]
        for folder, other in zip(folders[1:], manifests[1:], strict=True):
            _check_same(folders[0], first.classes, folder, other.classes)
            if other.multi_label != first.multi_label:
                raise ValueError(f"{folders[0]} and {folder}: one has a label an image and one has lists; use one kind")
        shards = [
            _shard_files(folder, each, f"{name}/" if len(folders) > 1 else "")
            for folder, name, each in zip(folders, names, manifests, strict=True)
        ]
        return cls(
            folders=folders,
            classes=first.classes,
            multi_label=first.multi_label,
            block_samples=min(each.block_samples for each in manifests),
            _shards=tuple(files for group in shards for files in group),
        )

    @property
    def num_samples(self) -> int:
        """Images in the set."""
        return sum(self.shard_samples)

    @property
    def num_classes(self) -> int:
        """Labels run from 0 to num_classes - 1."""
        return len(self.classes)

    @property
    def shard_samples(self) -> tuple[int, ...]:
        """Images of each shard: with `block_samples`, all that a plan needs."""
        if self._kept_rows is None:
            return tuple(files.samples for files in self._shards)
        return tuple(len(rows) for rows in self._kept_rows)

    @property
    def shard_names(self) -> tuple[str, ...]:
        """The shards' names as they stand in keys."""
        return tuple(files.name for files in self._shards)

    @property
    def identity(self) -> str:
        """A digest of all that decides which sample is at a (shard, row): two runs with one identity see one set."""
        digest = hashlib.sha256(f"{self.block_samples} {self.multi_label} {self.classes}".encode())
        for shard, files in enumerate(self._shards):
            digest.update(f"\n{files.name} {files.sha256}".encode())
            if self._kept_rows is not None:
                digest.update(self._kept_rows[shard].tobytes())
        return digest.hexdigest()

    def check(self) -> None:
        """Every shard and index exists with its size, or ManifestError."""
        for folder in self.folders:
            manifest.check_shards(folder, manifest.load(folder))

    def check_labels(self, num_classes: int) -> None:
        """ValueError when a head of `num_classes` outputs has none for some label of this set."""
        if num_classes < self.num_classes:
            raise ValueError(
                f"head.num_classes = {num_classes}, but {_names(self.folders)} has {self.num_classes} classes "
                f"(labels 0 to {self.num_classes - 1}); leave it out to take the set's"
            )

    def key(self, shard: int, row: int) -> str:
        """SHARD/KEY of a sample."""
        return f"{self._shards[shard].name}/{self._record(shard, row)['key'].decode()}"

    def labels(self) -> npt.NDArray[np.int32]:
        """The labels of every sample [N, K], in the order of the set, filled up with -1; reads every index."""
        return stack_labels([self.rows(shard)["labels"] for shard in range(len(self._shards))])

    def locate(self, place: int) -> tuple[int, int]:
        """The (shard, row) of the sample at `place` in the order of the set."""
        ends = np.cumsum(self.shard_samples)
        shard = int(np.searchsorted(ends, place, side="right"))
        return shard, place - int(ends[shard]) + self.shard_samples[shard]

    def tar(self, shard: int) -> Path:
        """Where a shard lies."""
        return self._shards[shard].tar

    def rows(self, shard: int) -> Rows:
        """The index of a shard, as far as it belongs to this set."""
        rows = _open_shard(self._shards[shard]).rows
        return rows if self._kept_rows is None else rows[self._kept_rows[shard]]

    def read(self, shard: int, row: int) -> Sample:
        """A sample's bytes, by offset; SampleError when they are not the bytes that were indexed."""
        files = self._shards[shard]
        record = self._record(shard, row)
        key = f"{files.name}/{record['key'].decode()}"
        offset, size_bytes = int(record["image_offset"]), int(record["image_bytes"])
        descriptor = _open_shard(files).descriptor
        try:
            member = os.pread(descriptor, TAR_HEADER_BYTES + size_bytes, offset - TAR_HEADER_BYTES)
        except OSError as error:
            raise SampleError(f"{key}: cannot read {files.tar}: {error.strerror}") from None
        if zlib.crc32(member) != record["crc32"]:
            raise SampleError(f"{key}: {files.tar} at byte {offset} {_difference(member, record)}; copy the set again")
        labels = tuple(label for label in record["labels"].tolist() if label != NO_LABEL)
        return Sample(key, record["suffix"].decode(), member[TAR_HEADER_BYTES:], labels)

    def subset_per_class(self, count: int, seed: int) -> "SampleSet":
        """The set of exactly `count` images of each class, chosen by seed; ValueError when a class has fewer."""
        if self.multi_label:
            raise ValueError(f"{_names(self.folders)}: images have lists of labels; a subset per class needs one label")
        labels = self.labels()[:, 0]
        kept = []
        for label, name in enumerate(self.classes):
            of_class = np.flatnonzero(labels == label)
            if len(of_class) < count:
                raise ValueError(
                    f"{_names(self.folders)}: class {name} has {len(of_class)} images, {count} a class are asked for; "
                    f"ask for {len(of_class)} or fewer"
                )
            kept.append(of_class[permutation(len(of_class), seed, Purpose.SUBSET, label)[:count]])
        chosen = np.sort(np.concatenate(kept))
        starts = np.cumsum([0, *self.shard_samples[:-1]])
        of_shards = np.split(chosen, np.searchsorted(chosen, starts[1:]))
        rows = [each - start for each, start in zip(of_shards, starts, strict=True)]
        if self._kept_rows is not None:
            rows = [whole[each] for whole, each in zip(self._kept_rows, rows, strict=True)]
        return replace(self, _kept_rows=tuple(rows))

    def _record(self, shard: int, row: int) -> np.void:
        if self._kept_rows is not None:
            row = int(self._kept_rows[shard][row])
        record: np.void = _open_shard(self._shards[shard]).rows[row]
        return record


def stack_labels(parts: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """Labels [N, K] of several shards or blocks as one array, filled up with -1 to the widest K."""
    widest = max((part.shape[1] for part in parts), default=1)
    filled = [np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=NO_LABEL) for part in parts]
    return np.concatenate(filled)


def check_same_classes(train: SampleSet, val: SampleSet) -> None:
    """ValueError showing the first difference when two sets number their classes differently."""
    _check_same(train.folders[0], train.classes, val.folders[0], val.classes)
    if train.multi_label != val.multi_label:
        raise ValueError(
            f"{train.folders[0]} and {val.folders[0]}: one has a label an image and one has lists; use sets of one kind"
        )


def _check_same(folder: Path, classes: tuple[str, ...], other_folder: Path, other_classes: tuple[str, ...]) -> None:
    if classes == other_classes:
        return
    label = next((at for at, (a, b) in enumerate(zip(classes, other_classes, strict=False)) if a != b), None)
    if label is None:
        difference = f"{len(classes)} and {len(other_classes)} classes"
    else:
        difference = f"label {label} is {classes[label]!r} in one and {other_classes[label]!r} in the other"
    raise ValueError(
        f"{folder} and {other_folder} differ in their classes: {difference}; pack both with the same --classes"
    )


def _shard_files(folder: Path, each: Manifest, prefix: str) -> list[_ShardFiles]:
    return [
        _ShardFiles(
            name=prefix + manifest.stem(shard.name),
            tar=folder / shard.name,
            index=folder / manifest.index_name(shard.name),
            samples=shard.samples,
            bytes=shard.bytes,
            sha256=shard.sha256,
            num_classes=len(each.classes),
        )
        for shard in each.shards
    ]


def _difference(member: bytes, record: np.void) -> str:
    """What stands where a sample was indexed."""
    if len(member) < TAR_HEADER_BYTES + record["image_bytes"]:
        return f"ends after {len(member)} of {TAR_HEADER_BYTES + record['image_bytes']} bytes"
    try:
        found = tarfile.TarInfo.frombuf(member[:TAR_HEADER_BYTES], "utf-8", "replace").name
    except tarfile.TarError:
        return "holds no tar header"
    expected = f"{record['key'].decode()}.{record['suffix'].decode()}"
    return f"holds {found}" if found != expected else "holds other bytes than were indexed"


def _names(folders: tuple[Path, ...]) -> str:
    return ", ".join(str(folder) for folder in folders)
