"""A manifest and an index for shards that were made elsewhere: img2dataset, timm, open_clip, webdataset itself."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline import index, manifest
from data_pipeline.manifest import Manifest, Shard
from data_pipeline.progress import Progress
from data_pipeline.readers import write_timm
from data_pipeline.scan import ShardError, scan
from data_pipeline.spread import spread


class _Task(NamedTuple):
    tar: Path
    out: Path
    num_classes: int | None


class _Result(NamedTuple):
    shard: Shard
    multi_label: bool
    max_label: int


def index_shards(
    tars: Sequence[Path], out: Path, split: str = "train", classes: Sequence[str] | None = None, workers: int = 1
) -> Manifest:
    """Index `tars` in the order given, into the folder `out`; the shards themselves stay where they are.

    Without `classes` the classes are called by their numbers, 0 to the highest label. Raises ValueError naming the
    member for a shard that is damaged or not made of labelled images, and leaves nothing behind."""
    if (out / manifest.FILE_NAME).exists():
        raise ValueError(f"{out}: has a {manifest.FILE_NAME} already; remove it, or index into another folder")
    for tar in tars:
        if not tar.is_file():
            raise ValueError(f"{tar}: no such shard; name the tar files to index")
    manifest.check_names([tar.name for tar in tars])
    existed = out.is_dir()
    out.mkdir(parents=True, exist_ok=True)
    tasks = [_Task(tar, out, len(classes) if classes else None) for tar in tars]
    results: list[_Result] = []
    try:
        with Progress("indexing", len(tasks), "shards") as progress:
            for result in spread(_index, tasks, workers):
                results.append(result)
                progress.advance(1)
        kinds = {result.multi_label for result in results}
        if len(kinds) > 1:
            raise ShardError(f"{out}: some shards have a label an image and some have lists; index them apart")
        names = classes or [str(label) for label in range(max(result.max_label for result in results) + 1)]
        indexed = Manifest(
            split=split,
            classes=tuple(names),
            multi_label=kinds.pop(),
            shards=tuple(result.shard for result in results),
        )
        write_timm(out, indexed)
        manifest.save(out, indexed)
    except BaseException:
        for tar in tars:
            (out / manifest.index_name(tar.name)).unlink(missing_ok=True)
        if not existed:
            shutil.rmtree(out)
        raise
    return indexed


def _index(task: _Task) -> _Result:
    found = scan(task.tar)
    labels = found.rows["labels"]
    max_label = int(labels.max())
    if task.num_classes is not None and max_label >= task.num_classes:
        key = found.rows["key"][labels.max(axis=1).argmax()].decode()
        raise ShardError(f"{task.tar}: {key} has label {max_label}, outside the {task.num_classes} of --classes")
    index.save_rows(task.out / manifest.index_name(task.tar.name), found.rows)
    beside = task.tar.parent.resolve() == task.out.resolve()
    name = task.tar.name if beside else str(task.tar.absolute())
    return _Result(manifest.describe(name, task.out, len(found.rows)), found.multi_label, max_label)
