"""Every byte of a packed set against its manifest, every label, every image decoded."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline import manifest
from data_pipeline.decode import DecodeError, decode
from data_pipeline.index import load_rows
from data_pipeline.manifest import ManifestError, Shard
from data_pipeline.progress import Progress
from data_pipeline.scan import ShardError, scan
from data_pipeline.spread import spread

# What the index says of a sample that a scan of its tar must say again; `source` is known from packing alone.
_SCANNED = ["key", "labels", "image_offset", "image_bytes", "crc32", "suffix"]


class Problem(NamedTuple):
    """Something wrong in a set; `key` is None where it is about a whole shard."""

    shard: str
    key: str | None
    problem: str


class _Task(NamedTuple):
    folder: Path
    shard: Shard
    num_classes: int


def verify(folder: Path, workers: int = 1) -> list[Problem]:
    """All that is wrong with a packed set; empty when it is as it was packed. ManifestError without a manifest."""
    found = manifest.load(folder)
    tasks = [_Task(folder, shard, len(found.classes)) for shard in found.shards]
    problems: list[Problem] = []
    with Progress("verifying", found.num_samples) as progress:
        for task, of_shard in zip(tasks, spread(_verify_shard, tasks, workers), strict=True):
            problems += of_shard
            progress.advance(task.shard.samples)
    return problems


def _verify_shard(task: _Task) -> list[Problem]:
    shard = task.shard
    tar, index = task.folder / shard.name, task.folder / manifest.index_name(shard.name)
    name = manifest.stem(shard.name)
    problems = []
    for path, size_bytes, sha256 in ((tar, shard.bytes, shard.sha256), (index, shard.index_bytes, shard.index_sha256)):
        try:
            found_bytes = path.stat().st_size
            if found_bytes != size_bytes:
                problems.append(Problem(name, None, f"{path.name} has {found_bytes} bytes, not {size_bytes}"))
            elif manifest.sha256_of(path) != sha256:
                problems.append(Problem(name, None, f"{path.name} has other bytes than the manifest's sha256"))
        except OSError as error:
            return [*problems, Problem(name, None, f"{path.name}: {error.strerror}")]
    try:
        rows = load_rows(index, shard.samples, task.num_classes, shard.bytes)
        scanned = scan(tar).rows
    except (ManifestError, ShardError) as error:
        return [*problems, Problem(name, None, str(error))]
    if len(rows) != len(scanned) or rows["labels"].shape != scanned["labels"].shape:
        return [*problems, Problem(name, None, "the index does not belong to the shard")]
    descriptor = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for row, found in zip(rows, scanned, strict=True):
            key = row["key"].decode()
            differing = [field for field in _SCANNED if not np.array_equal(row[field], found[field])]
            if differing:
                problems.append(Problem(name, key, f"index and shard differ in {', '.join(differing)}"))
            try:
                decode(os.pread(descriptor, int(found["image_bytes"]), int(found["image_offset"])))
            except DecodeError as error:
                problems.append(Problem(name, key, str(error)))
    finally:
        os.close(descriptor)
    return problems
