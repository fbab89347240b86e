"""From the bytes of a tar shard to the rows of its index.

The one reader of whole tars: packing, `index` and `verify` all come through here, so that an index can only ever say
what a scan of the shard says. It trusts nothing: not the end of the file, not the order of members; no links, no
pickles.
"""

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from data_pipeline.index import TAR_HEADER_BYTES, Rows, make_rows

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
LABEL_SUFFIXES = ("cls", "json")
MAX_LABEL_BYTES = 2**20
MAX_IMAGE_BYTES = 2**28


class ShardError(ValueError):
    """A tar is damaged, or is not a shard of labelled images."""


@dataclass(frozen=True)
class Scan:
    """What a shard holds: the rows of its index, and whether its labels are lists."""

    rows: Rows
    multi_label: bool


@dataclass
class _Group:
    """The members of one key."""

    image: tuple[str, tarfile.TarInfo] | None = None
    labels: dict[str, tarfile.TarInfo] = field(default_factory=dict)


def scan(tar: Path, sources: Sequence[bytes] | None = None) -> Scan:
    """Read a shard from end to end; `sources` are the paths its samples came from, in order.

    Raises ShardError naming the member for anything but complete samples: one image and one label a key."""
    with tar.open("rb") as file:
        groups = _groups(tar, file)
        if not groups:
            raise ShardError(f"{tar}: no images in it; a sample is KEY.jpg|png|webp with KEY.cls or KEY.json")
        columns = [_sample(tar, file, key, group) for key, group in groups.items()]
    kinds = {multi for *_, multi in columns}
    if len(kinds) > 1:
        raise ShardError(f"{tar}: some samples have one label and some a list of labels; give all of them lists")
    keys, labels, offsets, sizes, checksums, suffixes, _ = zip(*columns, strict=True)
    rows = make_rows(keys, labels, offsets, sizes, checksums, suffixes, sources or [b""] * len(keys))
    return Scan(rows, kinds.pop())


def members(tar: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar open as `file`; ShardError for anything else in it, and for a damaged or cut-off one."""
    file_bytes = tar.stat().st_size
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // TAR_HEADER_BYTES) * TAR_HEADER_BYTES
                if end > file_bytes:
                    raise ShardError(f"{tar}: cut off inside {member.name}; copy or make the shard again")
                if member.isdir():
                    continue
                if not member.isreg():
                    raise ShardError(f"{tar}: {member.name} is a link or a device; a shard holds plain files only")
                yield member
    except tarfile.TarError as error:
        raise ShardError(
            f"{tar}: not a plain tar ({error}); unpack a compressed one, copy a damaged one again"
        ) from None
    # tarfile takes a damaged header for the end of the archive; the end is two blocks of zeros and nothing but zeros.
    file.seek(end)
    rest = file.read()
    if len(rest) < 2 * TAR_HEADER_BYTES or rest.strip(b"\0"):
        raise ShardError(f"{tar}: damaged or cut off behind byte {end}; copy or make the shard again")


def _groups(tar: Path, file: BinaryIO) -> dict[str, _Group]:
    """The members by key, wherever they stand: webdataset's naming, where the suffix starts at the name's first dot."""
    groups: dict[str, _Group] = {}
    for member in members(tar, file):
        _file_away(tar, member, groups)
    return groups


def _file_away(tar: Path, member: tarfile.TarInfo, groups: dict[str, _Group]) -> None:
    folder, slash, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    if suffix not in IMAGE_SUFFIXES + LABEL_SUFFIXES:
        return
    group = groups.setdefault(folder + slash + stem, _Group())
    if suffix in group.labels or (suffix in IMAGE_SUFFIXES and group.image):
        raise ShardError(f"{tar}: {member.name}: the key stands twice in the shard; keys must differ")
    if suffix in IMAGE_SUFFIXES:
        group.image = suffix, member
    else:
        group.labels[suffix] = member


def _sample(tar: Path, file: BinaryIO, key: str, group: _Group) -> tuple[bytes, list[int], int, int, int, bytes, bool]:
    if group.image is None:
        raise ShardError(f"{tar}: {key} has a label but no image ({', '.join(IMAGE_SUFFIXES)})")
    if not group.labels:
        raise ShardError(f"{tar}: {key} has an image but no label ({key}.cls or {key}.json)")
    suffix, image = group.image
    if not 0 < image.size <= MAX_IMAGE_BYTES:
        raise ShardError(f"{tar}: {image.name} has {image.size} bytes; an image has 1 to {MAX_IMAGE_BYTES}")
    label_kind = "cls" if "cls" in group.labels else "json"
    labels, multi_label = _labels(tar, file, group.labels[label_kind], label_kind)
    file.seek(image.offset_data - TAR_HEADER_BYTES)
    checksum = zlib.crc32(file.read(TAR_HEADER_BYTES + image.size))
    return key.encode(), labels, image.offset_data, image.size, checksum, suffix.encode(), multi_label


def _labels(tar: Path, file: BinaryIO, member: tarfile.TarInfo, kind: str) -> tuple[list[int], bool]:
    file.seek(member.offset_data)
    text = file.read(min(member.size, MAX_LABEL_BYTES))
    try:
        if kind == "cls":
            labels, multi_label = [int(text)], False
        else:
            tree = json.loads(text)
            multi_label = "labels" in tree
            labels = list(tree["labels"]) if multi_label else [tree["label"]]
    except (ValueError, KeyError, TypeError):
        rule = "a whole number" if kind == "cls" else '{"label": 3} or {"labels": [3, 7]}'
        raise ShardError(f"{tar}: {member.name} holds {text[:40]!r}; it must be {rule}") from None
    for label in labels:
        if type(label) is not int or not 0 <= label < 2**31:
            raise ShardError(f"{tar}: {member.name} has the label {label!r}; a label is a whole number from 0")
    if len(set(labels)) < len(labels):
        raise ShardError(f"{tar}: {member.name} has a label twice: {labels}")
    return labels, multi_label
