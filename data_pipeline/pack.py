"""Images to a packed set: shuffled, standard WebDataset tars with a manifest and an index.

    SOURCE --listing--> classes, labels, names   [--hold-out--> train, val]   --shuffle, cut--> one task a shard
    task --read, decode once, write--> train-000000.tar, its index, its rejects   --> manifest.json, rejects.jsonl

What goes where is settled before the first image is read: a sample's key is its place in the shuffled listing, and an
image that is rejected leaves its shard shorter and every other key as it was. So the same listing and seed give the
same bytes, whatever the number of workers.
"""

import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline import decode, index, manifest
from data_pipeline.listing import Listing, Source
from data_pipeline.manifest import Manifest, Shard
from data_pipeline.progress import Progress
from data_pipeline.random import SEED_LIMIT, Purpose, permutation
from data_pipeline.readers import write_clip_benchmark, write_timm
from data_pipeline.scan import scan
from data_pipeline.spread import spread

VAL = "val"
REJECTS_FILE = "rejects.jsonl"
SHARD_SAMPLES = 8 * manifest.BLOCK_SAMPLES
MAX_SAMPLES = 10**9  # a key has nine digits

_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


class PackError(Exception):
    """Packing stopped while running."""


@dataclass(frozen=True)
class PackOptions:
    """How to pack; ValueError for numbers out of range."""

    split: str = "train"
    hold_out: float | None = None  # share of each class that becomes the set `val`
    shard_samples: int = SHARD_SAMPLES
    shard_mib: float | None = None  # instead of shard_samples
    seed: int = 0
    workers: int = 1
    max_rejects: float = 0.01  # share of the images

    def __post_init__(self) -> None:
        if not self.split or set(self.split) & set("/.\0") or self.split != self.split.strip():
            raise ValueError(f"--split {self.split!r}: it names files, so it has no slash, dot or outer blanks")
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            raise ValueError(f"--hold-out {self.hold_out}: a share of each class, between 0 and 1, such as 0.1")
        if self.hold_out is not None and self.split == VAL:
            raise ValueError(f"--hold-out makes a set {VAL!r} beside the one named by --split; give that another name")
        if self.shard_samples < 1:
            raise ValueError(f"--shard-samples {self.shard_samples}: a shard has at least 1 image")
        if self.shard_mib is not None and self.shard_mib <= 0:
            raise ValueError(f"--shard-mib {self.shard_mib}: a size above 0, in MiB")
        if not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"--seed {self.seed}: a whole number from 0 to 2^64 - 1")
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: at least 1 process")
        if not 0 <= self.max_rejects < 1:
            raise ValueError(f"--max-rejects {self.max_rejects}: a share of the images, from 0 to below 1")


class Reject(NamedTuple):
    """An image that was not packed."""

    source: str
    class_name: str
    reason: str


Places = npt.NDArray[np.int64]  # of images in a listing


class Packed(NamedTuple):
    """A set that was packed."""

    folder: Path
    manifest: Manifest
    rejects: list[Reject]


class Packing(NamedTuple):
    """What packing left: the sets, and the files of the source that are no images, by the ending of their name."""

    sets: list[Packed]
    ignored: dict[str, int]


class _ShardTask(NamedTuple):
    """One shard to write: its samples are places first_place, first_place + 1, ... of the shuffled listing."""

    tar: Path
    source: Source
    first_place: int
    names: list[bytes]
    labels: npt.NDArray[np.int32]  # [n, K], as in Listing
    multi_label: bool


class _ShardResult(NamedTuple):
    shard: Shard | None  # None when every image was rejected
    num_tried: int
    rejects: list[tuple[str, list[int], str]]  # source, labels, reason


def pack(source: Source, out: Path, options: PackOptions, classes: Sequence[str] | None = None) -> Packing:
    """Pack `source` into `out`: one set, or with a hold-out the sets out/SPLIT and out/val.

    `out` appears complete or not at all. Raises ValueError before any work for a wrong source or an existing `out`,
    PackError when more images are unreadable than `options.max_rejects` allows."""
    if out.exists():
        raise ValueError(f"{out}: exists already; remove it, or pack into another folder")
    listing = source.listing(classes)
    if len(listing.names) > MAX_SAMPLES:
        raise ValueError(f"{len(listing.names)} images: a set has at most {MAX_SAMPLES}; pack parts of it")
    if options.hold_out is None:
        parts = {Path(): (options.split, np.arange(len(listing.names)))}
    else:
        train, val = _hold_out(listing, options.hold_out, options.seed)
        parts = {Path(options.split): (options.split, train), Path(VAL): (VAL, val)}

    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with Progress("packing", len(listing.names)) as progress:
            packed = [
                _pack_set(source, partial / folder, split, listing, chosen, options, progress)
                for folder, (split, chosen) in parts.items()
            ]
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    sets = [each._replace(folder=out / each.folder.relative_to(partial)) for each in packed]
    return Packing(sets, listing.ignored)


def _hold_out(listing: Listing, share: float, seed: int) -> tuple[Places, Places]:
    """The images kept and the images held out: of each class the rounded share, but never all of it.

    Images with lists of labels are of no one class: of those it is a share of all."""
    num_images = len(listing.names)
    groups = [np.arange(num_images)]
    if not listing.multi_label:
        by_class = np.argsort(listing.labels[:, 0], kind="stable")
        counts = np.bincount(listing.labels[:, 0], minlength=len(listing.classes))
        groups = np.split(by_class, np.cumsum(counts)[:-1])
    held = np.zeros(num_images, dtype=bool)
    for number, group in enumerate(groups):
        count = min(round(share * len(group)), len(group) - 1)
        if count > 0:
            held[group[permutation(len(group), seed, Purpose.HOLD_OUT, number)[:count]]] = True
    if not held.any():
        raise ValueError(f"--hold-out {share}: not one image of {num_images}; hold out a larger share")
    return np.flatnonzero(~held), np.flatnonzero(held)


def _pack_set(
    source: Source,
    folder: Path,
    split: str,
    listing: Listing,
    chosen: Places,
    options: PackOptions,
    progress: Progress,
) -> Packed:
    folder.mkdir(parents=True)
    max_rejects = int(options.max_rejects * len(chosen))
    shards: list[Shard] = []
    rejects: list[Reject] = []
    tasks = list(_tasks(source, folder, split, listing, chosen, options))
    for result in spread(_write_shard, tasks, options.workers):
        progress.advance(result.num_tried)
        if result.shard:
            shards.append(result.shard)
        rejects += [
            Reject(name, ", ".join(listing.classes[label] for label in labels), reason)
            for name, labels, reason in result.rejects
        ]
        if len(rejects) > max_rejects:
            first = "; ".join(f"{reject.source}: {reject.reason}" for reject in rejects[:3])
            raise PackError(
                f"{len(rejects)} unreadable images, more than --max-rejects {options.max_rejects} "
                f"of {len(chosen)} allows; nothing was kept. The first: {first}"
            )
    if not shards:
        raise PackError(f"none of the {len(chosen)} images of {split} could be read; nothing was kept")
    if rejects:
        with (folder / REJECTS_FILE).open("w") as file:
            file.writelines(json.dumps(reject._asdict()) + "\n" for reject in rejects)
    result_manifest = Manifest(
        split=split,
        classes=listing.classes,
        multi_label=listing.multi_label,
        seed=options.seed,
        rejected=len(rejects),
        shards=tuple(shards),
    )
    write_timm(folder, result_manifest)
    write_clip_benchmark(folder, result_manifest)
    manifest.save(folder, result_manifest)
    return Packed(folder, result_manifest, rejects)


def _tasks(
    source: Source, folder: Path, split: str, listing: Listing, chosen: Places, options: PackOptions
) -> Iterator[_ShardTask]:
    order = chosen[permutation(len(chosen), options.seed, Purpose.PACK)]
    if options.shard_mib is None:
        first_places = np.arange(0, len(order), options.shard_samples)
    else:
        sizes_bytes = (_tar_bytes(source.size_bytes(listing.names[place])) for place in order)
        ends_mib = np.cumsum(np.fromiter(sizes_bytes, np.int64, len(order))) / 2**20
        # A shard is full with the image that crosses a multiple of its size.
        _, first_places = np.unique(np.concatenate(([0], ends_mib[:-1])) // options.shard_mib, return_index=True)
    for number, (first, stop) in enumerate(zip(first_places, [*first_places[1:], len(order)], strict=True)):
        yield _ShardTask(
            tar=folder / f"{split}-{number:06d}.tar",
            source=source,
            first_place=int(first),
            names=[listing.names[place] for place in order[first:stop]],
            labels=listing.labels[order[first:stop]],
            multi_label=listing.multi_label,
        )


def _tar_bytes(image_bytes: int) -> int:
    """What a sample takes in a tar: two headers, the label's block, the image filled up to whole blocks."""
    block = index.TAR_HEADER_BYTES
    return 3 * block + -(-image_bytes // block) * block


def _write_shard(task: _ShardTask) -> _ShardResult:
    from webdataset import TarWriter  # brings torch along, which `pack --help` and a refusal do without

    rejects: list[tuple[str, list[int], str]] = []
    sources: list[bytes] = []
    with task.tar.open("wb") as file:
        # No owner and no time of day: the same samples are the same bytes.
        with TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
            for at, (name, filled) in enumerate(zip(task.names, task.labels.tolist(), strict=True)):
                labels = [label for label in filled if label != index.NO_LABEL]
                try:
                    suffix, image_bytes = stored_form(task.source.read(name))
                except (OSError, decode.DecodeError) as error:
                    rejects.append((os.fsdecode(name), labels, str(error)))
                    continue
                key = f"{task.first_place + at:09d}"
                label = {"json": _json(labels)} if task.multi_label else {"cls": str(labels[0]).encode()}
                writer.write({"__key__": key, **label, suffix: image_bytes})
                sources.append(name)
        file.flush()
        os.fsync(file.fileno())
    if not sources:
        task.tar.unlink()
        return _ShardResult(None, len(task.names), rejects)
    index.save_rows(task.tar.parent / manifest.index_name(task.tar.name), scan(task.tar, sources).rows)
    return _ShardResult(manifest.describe(task.tar.name, task.tar.parent, len(sources)), len(task.names), rejects)


def _json(labels: list[int]) -> bytes:
    return json.dumps({"labels": labels}).encode()


def stored_form(image_bytes: bytes) -> tuple[str, bytes]:
    """The suffix and bytes that an image is stored with, once it has been decoded from end to end.

    JPEG, PNG and WebP stay as they are; any other format becomes a PNG of the very pixels that training would see."""
    image, image_format = decode.load(image_bytes, decode.PACKED_FORMATS)
    if image_format in _SUFFIXES:
        return _SUFFIXES[image_format], image_bytes
    file = io.BytesIO()
    image.save(file, "PNG")
    return "png", file.getvalue()
