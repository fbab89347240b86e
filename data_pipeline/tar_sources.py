"""Tars as a source, read where they lie: members by their place, nothing is extracted.

A name is TAR/MEMBER@OFFSET+BYTES, so that reading it needs no list of members.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from data_pipeline import manifest
from data_pipeline.index import NO_LABEL
from data_pipeline.listing import IMAGE_ENDINGS, Lister, Listing, choose
from data_pipeline.scan import LABEL_SUFFIXES, ShardError, members, scan


def holds_labels(tar: Path) -> bool:
    """Whether a tar has labels beside its images, as a shard does, told by its first two files."""
    with tar.open("rb") as file:
        first = [member.name for member, _ in zip(members(tar, file), range(2), strict=False)]
    return any(PurePath(name).suffix[1:].lower() in LABEL_SUFFIXES for name in first)


@dataclass(frozen=True)
class ClassTars:
    """ROOT/CLASS.tar of images: one tar a class, as ImageNet's training images are distributed."""

    root: Path

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """See Source; ValueError for a damaged tar, or one without images."""
        chosen = choose(sorted(tar.stem for tar in self.root.glob("*.tar")), classes)
        lister = Lister(chosen, multi_label=False)
        ignored: Counter[str] = Counter()
        for class_name in chosen:
            tar = self.root / f"{class_name}.tar"
            num_images = 0
            with tar.open("rb") as file:
                for member in members(tar, file):
                    ending = PurePath(member.name).suffix.lower()
                    if ending not in IMAGE_ENDINGS:
                        ignored[ending or member.name] += 1
                        continue
                    lister.add(_name(tar, member.name, member.offset_data, member.size), [class_name])
                    num_images += 1
            if not num_images:
                raise ShardError(f"{tar}: no images in it; remove it, or choose the others with --classes")
        return lister.listing()._replace(ignored=dict(ignored))

    def read(self, name: bytes) -> bytes:
        """See Source."""
        return _read(self.root, name)

    def size_bytes(self, name: bytes) -> int:
        """See Source."""
        return _place(name)[2]


@dataclass(frozen=True)
class Shards:
    """ROOT/*.tar of KEY.jpg|png|webp with KEY.cls|json, made elsewhere or here, to be shuffled and packed again.

    Classes are called as the manifest beside the tars has it; by their numbers where there is none."""

    root: Path

    def listing(self, classes: Sequence[str] | None) -> Listing:
        """See Source; ValueError for a tar that is damaged, or not made of labelled images."""
        tars = sorted(self.root.glob("*.tar"))
        scans = [scan(tar) for tar in tars]
        if len({found.multi_label for found in scans}) > 1:
            raise ShardError(f"{self.root}: some tars have a label an image and some have lists; pack them apart")
        if (self.root / manifest.FILE_NAME).exists():
            all_classes = manifest.load(self.root).classes
        else:
            highest = max(int(found.rows["labels"].max()) for found in scans)
            all_classes = tuple(str(label) for label in range(highest + 1))
        chosen = choose(all_classes, classes)
        lister = Lister(chosen, scans[0].multi_label)
        for tar, found in zip(tars, scans, strict=True):
            for row in found.rows:
                labels = [all_classes[label] for label in row["labels"].tolist() if label != NO_LABEL]
                member = f"{row['key'].decode()}.{row['suffix'].decode()}"
                lister.add(_name(tar, member, int(row["image_offset"]), int(row["image_bytes"])), labels)
        return lister.listing()

    def read(self, name: bytes) -> bytes:
        """See Source."""
        return _read(self.root, name)

    def size_bytes(self, name: bytes) -> int:
        """See Source."""
        return _place(name)[2]


def _name(tar: Path, member: str, offset: int, size_bytes: int) -> bytes:
    return os.fsencode(f"{tar.name}/{member}@{offset}+{size_bytes}")


def _place(name: bytes) -> tuple[str, int, int]:
    """The tar's file name, the member's offset in it, and its size in bytes."""
    member, _, place = name.rpartition(b"@")
    offset, _, size_bytes = place.partition(b"+")
    return os.fsdecode(member.partition(b"/")[0]), int(offset), int(size_bytes)


def _read(root: Path, name: bytes) -> bytes:
    tar, offset, size_bytes = _place(name)
    with (root / tar).open("rb") as file:
        file.seek(offset)
        found = file.read(size_bytes)
    if len(found) < size_bytes:
        raise OSError(f"{tar} ends inside it; copy the tar again")
    return found
