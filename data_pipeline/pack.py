"""Images to a packed set: shuffled, standard WebDataset tars with a manifest and an index.

    SOURCE --listing--> classes, labels, names   [--hold-out--> train, val]   --shuffle, cut--> one task a shard
    task --read, decode once, write--> train-000000.tar, its index, its note   --merge--> manifest.json, rejects.jsonl

What goes where is settled before the first image is read: a sample's key is its place in the shuffled listing, and an
image that is rejected leaves its shard shorter and every other key as it was. So the same listing and seed give the
same bytes, whatever the number of workers and parts, and however often packing was stopped and begun again.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline import index, manifest, unfinished
from data_pipeline.listing import Listing, Source
from data_pipeline.manifest import Manifest
from data_pipeline.progress import Progress
from data_pipeline.random import SEED_LIMIT, Purpose, permutation
from data_pipeline.readers import write_clip_benchmark, write_timm
from data_pipeline.shard_writer import Note, Recode, finish_shard
from data_pipeline.shuffled import Places
from data_pipeline.spread import spread
from data_pipeline.unfinished import ChosenSet, Option, SetPlan, Unfinished

VAL = "val"
REJECTS_FILE = "rejects.jsonl"
SHARD_SAMPLES = 8 * manifest.BLOCK_SAMPLES
MAX_REJECTS = 0.01
QUALITY = 90
MAX_SAMPLES = 10**9  # a key has nine digits


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
    max_rejects: float = MAX_REJECTS  # share of the images
    short_side_px: int | None = None  # every image becomes a JPEG of at most this; None leaves them as they are
    quality: int | None = None  # of those JPEGs

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
        _check_max_rejects(self.max_rejects)
        if self.short_side_px is not None and self.short_side_px < 1:
            raise ValueError(f"--short-side {self.short_side_px}: at least 1 pixel")
        if self.quality is not None and self.short_side_px is None:
            raise ValueError(f"--quality {self.quality}: images keep their bytes; give --short-side PX to change them")
        if self.quality is not None and not 1 <= self.quality <= 95:
            raise ValueError(f"--quality {self.quality}: of JPEG, from 1 to 95")

    @property
    def recode(self) -> Recode | None:
        """What becomes of the images; None when they keep their bytes."""
        return None if self.short_side_px is None else Recode(self.short_side_px, self.quality or QUALITY)

    def deciding(self, source: Source, classes: Sequence[str] | None) -> dict[str, Option]:
        """Whatever decides the bytes of the set, by the names that a user knows: what all parts must agree on."""
        by_samples = self.shard_mib is None
        return {
            "SOURCE": repr(source),
            "--classes": None if classes is None else list(classes),
            "--split": self.split,
            "--hold-out": self.hold_out,
            "--shard-samples": self.shard_samples if by_samples else None,
            "--shard-mib": self.shard_mib,
            "--seed": self.seed,
            "--short-side": self.short_side_px,
            "--quality": self.recode.quality if self.recode else None,
        }


def _check_max_rejects(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"--max-rejects {share}: a share of the images, from 0 to below 1")


class Part(NamedTuple):
    """One of the commands that pack a set together: `number` is 1 to `of`."""

    number: int
    of: int


class Reject(NamedTuple):
    """An image that was not packed."""

    source: str
    class_name: str
    reason: str


class Packed(NamedTuple):
    """A set that was packed."""

    folder: Path
    manifest: Manifest
    rejects: list[Reject]


class Packing(NamedTuple):
    """What packing left: the sets, and the files of the source that are no images, by the ending of their name."""

    sets: list[Packed]
    ignored: dict[str, int]


def pack(source: Source, out: Path, options: PackOptions, classes: Sequence[str] | None = None) -> Packing:
    """Pack `source` into `out`: one set, or with a hold-out the sets out/SPLIT and out/val.

    `out` appears complete or not at all. Stopped at any point, the same call goes on with the shards that are finished.
    Raises ValueError before any work for a wrong source, an existing `out` or one that another command has begun;
    PackError when more images are unreadable than `options.max_rejects` allows."""
    try:
        pack_part(source, out, options, Part(1, 1), classes)
        return merge(out, options.max_rejects)
    except PackError as error:
        unfinished.clear(out)
        raise PackError(f"{error}; nothing was kept") from None


def pack_part(source: Source, out: Path, options: PackOptions, part: Part, classes: Sequence[str] | None = None) -> int:
    """Pack the shards of one part, from any machine that sees the folder of `out`; merge() makes the set of them all.

    Returns how many images it tried. Raises as pack() does."""
    if out.exists():
        if not (unfinished.folder_of(out) / "set").exists():
            unfinished.clear(out)
        raise ValueError(f"{out}: exists already; remove it, or pack into another folder")
    begun = Unfinished.open(
        out, options.deciding(source, classes), part.of, lambda: _shuffled_sets(source, options, classes)
    )
    begun.clear_part(part.number - 1)
    mine = [(set_number, task) for set_number, task in begun.tasks() if task.part == part.number - 1]
    num_images = sum(stop - first for first, stop in (task.listing.places(task.number) for _, task in mine))
    notes: list[list[Note]] = [[] for _ in begun.request.sets]
    with Progress("packing", num_images) as progress:
        finish = partial(finish_shard, source, options.recode)
        finished = spread(finish, [task for _, task in mine], options.workers)
        for (set_number, _), note in zip(mine, finished, strict=True):
            notes[set_number].append(note)
            if note.rejects:
                _check_rejects(begun.request.sets[set_number], notes[set_number], options.max_rejects)
            progress.advance(note.num_tried)
    return num_images


def merge(out: Path, max_rejects: float = MAX_REJECTS) -> Packing:
    """Close a set once all its parts are packed: `out` appears.

    Raises ValueError naming parts that are missing or belong to another packing; PackError when more images are
    unreadable than the share `max_rejects`."""
    _check_max_rejects(max_rejects)
    begun = Unfinished.load(out)
    if out.exists():
        raise ValueError(f"{out}: exists already, as a whole; there is nothing to merge")
    if begun is None:
        raise ValueError(
            f"{out}: nothing of it is packed; begin with: python -m data_pipeline pack SOURCE {out} --part 1/N"
        )
    notes = begun.notes()
    for each, of_set in zip(begun.request.sets, notes, strict=True):
        _check_rejects(each, of_set, max_rejects)
    packed = [_close_set(begun, each, of_set) for each, of_set in zip(begun.request.sets, notes, strict=True)]
    begun.close(out)
    sets = [each._replace(folder=out / plan.folder) for each, plan in zip(packed, begun.request.sets, strict=True)]
    return Packing(sets, begun.request.ignored)


def _check_rejects(each: SetPlan, notes: list[Note], max_rejects: float) -> None:
    rejects = [reject for note in notes for reject in note.rejects]
    if len(rejects) > int(max_rejects * each.num_images):
        first = "; ".join(f"{source}: {reason}" for source, _, reason in rejects[:3])
        remedy = f"; remove them, or pass --max-rejects {share_for(len(rejects), each.num_images)}"
        raise PackError(
            f"{len(rejects)} unreadable images, more than --max-rejects {max_rejects} of {each.num_images} allows. "
            f"The first: {first}{remedy if len(rejects) < each.num_images else ''}"
        )


def share_for(rejects: int, images: int) -> float:
    """The least --max-rejects, in about two digits, that lets `rejects` of `images` pass."""
    unit: int = 10 ** max(2, 1 + math.ceil(-math.log10(rejects / images)))
    parts = rejects * unit // images
    while int(parts / unit * images) < rejects:
        parts += 1
    return parts / unit


def _close_set(begun: Unfinished, each: SetPlan, notes: list[Note]) -> Packed:
    folder, classes = begun.set_folder(each), begun.request.classes
    rejects = [
        Reject(name, ", ".join(classes[label] for label in labels), reason)
        for note in notes
        for name, labels, reason in note.rejects
    ]
    if rejects:
        with (folder / REJECTS_FILE).open("w") as file:
            file.writelines(json.dumps(reject._asdict()) + "\n" for reject in rejects)
    seed = begun.request.options["--seed"]
    assert isinstance(seed, int)
    packed = Manifest(
        split=each.split,
        classes=classes,
        multi_label=begun.request.multi_label,
        seed=seed,
        rejected=len(rejects),
        shards=tuple(note.shard for note in notes if note.shard),
    )
    write_timm(folder, packed)
    write_clip_benchmark(folder, packed)
    manifest.save(folder, packed)
    return Packed(folder, packed, rejects)


def _shuffled_sets(
    source: Source, options: PackOptions, classes: Sequence[str] | None
) -> tuple[Listing, list[ChosenSet]]:
    listing = source.listing(classes)
    if not len(listing.names):
        raise ValueError(f"no images of the classes {', '.join(listing.classes[:10])}; choose others with --classes")
    if len(listing.names) > MAX_SAMPLES:
        raise ValueError(f"{len(listing.names)} images: a set has at most {MAX_SAMPLES}; pack parts of it")
    chosen: dict[tuple[str, str], Places | None] = {("", options.split): None}  # all of them
    if options.hold_out is not None:
        train, val = _hold_out(listing, options.hold_out, options.seed)
        chosen = {(options.split, options.split): train, (VAL, VAL): val}
    sets = []
    for (folder, split), places in chosen.items():
        order = permutation(len(listing.names) if places is None else len(places), options.seed, Purpose.PACK)
        if places is not None:
            order = places[order]
        sets.append(ChosenSet(folder, split, order, _cuts(source, listing, order, options)))
    return listing, sets


def _cuts(source: Source, listing: Listing, order: Places, options: PackOptions) -> Places:
    """Where each shard begins in `order`, and where the last one ends."""
    if options.shard_mib is None:
        begins = np.arange(0, len(order), options.shard_samples)
    else:
        sizes_bytes = (_tar_bytes(source.size_bytes(listing.names[place])) for place in order)
        ends_mib = np.cumsum(np.fromiter(sizes_bytes, np.int64, len(order))) / 2**20
        # A shard is full with the image that crosses a multiple of its size.
        _, begins = np.unique(np.concatenate(([0], ends_mib[:-1])) // options.shard_mib, return_index=True)
    return np.append(begins, len(order))


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


def _tar_bytes(image_bytes: int) -> int:
    """What a sample takes in a tar: two headers, the label's block, the image filled up to whole blocks."""
    block = index.TAR_HEADER_BYTES
    return 3 * block + -(-image_bytes // block) * block
