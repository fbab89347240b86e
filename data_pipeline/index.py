"""The index of a shard, `NAME.index.npy`: a NumPy structured array, one row a sample, in the order of the shard.

    format        u1         1, in every row: np.load() of the file alone tells what it is
    key           S*         the sample's key, as in the tar
    labels        <i4 [K]    its labels, filled up with -1 (K = the most that any sample of the shard has; 1 for `.cls`)
    image_offset  <u8        where the image's bytes start in the tar; its 512-byte tar header stands right before them
    image_bytes   <u4        how many they are
    crc32         <u4        CRC-32 over that header and the image: a row never meets another sample's bytes
    suffix        S4         jpg, jpeg, png or webp
    source        S*         the path it was packed from, relative to the source (empty for shards made elsewhere)

It is memory-mapped, so that a run over 300 million images opens only the shards under its lanes. Labels are read from
here and not from the tar, which is safe because `verify` compares the two.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import FORMAT, ManifestError

NO_LABEL = -1
TAR_HEADER_BYTES = 512

Rows = npt.NDArray[np.void]


def make_rows(
    keys: Sequence[bytes],
    labels: Sequence[Sequence[int]],
    image_offsets: Sequence[int],
    image_bytes: Sequence[int],
    crc32: Sequence[int],
    suffixes: Sequence[bytes],
    sources: Sequence[bytes],
) -> Rows:
    """The rows of an index from its columns."""
    num_labels = max((len(each) for each in labels), default=1)
    rows = np.zeros(len(keys), dtype=_dtype(keys, max(num_labels, 1), sources))
    rows["format"] = FORMAT
    rows["key"] = keys
    rows["labels"] = NO_LABEL
    for row, each in zip(rows, labels, strict=True):
        row["labels"][: len(each)] = each
    rows["image_offset"] = image_offsets
    rows["image_bytes"] = image_bytes
    rows["crc32"] = crc32
    rows["suffix"] = suffixes
    rows["source"] = sources
    return rows


def save_rows(path: Path, rows: Rows) -> None:
    """Write an index."""
    with path.open("wb") as file:
        np.save(file, rows, allow_pickle=False)


def load_rows(path: Path, num_samples: int, num_classes: int, shard_bytes: int) -> Rows:
    """The rows of an index, memory-mapped; ManifestError when they are not what the manifest promises."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ManifestError(f"{path}: not a readable index ({error}); pack or index the set again") from None
    fields = rows.dtype.names or ()
    found = int(rows["format"][0]) if "format" in fields and rows.size else None
    if found != FORMAT or fields != _dtype([b"k"], 1, [b""]).names:
        raise ManifestError(f"{path}: index format = {found}; this version reads format {FORMAT}: index the set again")
    if rows.shape != (num_samples,):
        raise ManifestError(
            f"{path}: {rows.size} rows where the manifest has {num_samples} samples; index the set again"
        )
    labels = rows["labels"]
    if labels.min() < NO_LABEL or labels.max() >= num_classes:
        worst = labels.max() if labels.max() >= num_classes else labels.min()
        raise ManifestError(f"{path}: label {worst} outside the set's {num_classes} classes; index the set again")
    if int((rows["image_offset"] + rows["image_bytes"]).max()) > shard_bytes:
        raise ManifestError(f"{path}: an image ends behind its shard's {shard_bytes} bytes; index the set again")
    return cast(Rows, rows)


def _dtype(keys: Sequence[bytes], num_labels: int, sources: Sequence[bytes]) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("format", "u1"),
            ("key", f"S{max(map(len, keys), default=1)}"),
            ("labels", "<i4", (num_labels,)),
            ("image_offset", "<u8"),
            ("image_bytes", "<u4"),
            ("crc32", "<u4"),
            ("suffix", "S4"),
            ("source", f"S{max(1, *map(len, sources)) if sources else 1}"),
        ]
    )
