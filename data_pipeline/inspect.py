"""What is in a packed set: counts, sizes, classes, and how well its samples are mixed."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline import manifest
from data_pipeline.decode import STORED_FORMATS
from data_pipeline.index import NO_LABEL
from data_pipeline.samples import SampleSet

Ints = npt.NDArray[np.int64]

MIXED_WELL = 0.9
MEASURED_IMAGES = 256
MAX_SHOWN_CLASSES = 40


@dataclass(frozen=True)
class Report:
    """A set in numbers."""

    folder: str
    split: str
    samples: int
    classes: int
    multi_label: bool
    shards: int
    blocks: int
    rejected: int
    image_bytes: int  # of all images together
    image_bytes_median: int
    width_px: tuple[int, int, int]  # lowest, median and highest of MEASURED_IMAGES images
    height_px: tuple[int, int, int]
    images_of_class: dict[str, int]
    mixing: float  # about 1: as a shuffled set; near 0: sorted by class


def inspect(folder: Path) -> Report:
    """The numbers of a packed set; reads every index and the headers of some images."""
    packed = manifest.load(folder)
    samples = SampleSet.open(folder)
    labels = samples.labels()
    image_bytes = np.concatenate([samples.rows(shard)["image_bytes"] for shard in range(len(packed.shards))])
    block_of = blocks_of(samples.shard_samples, samples.block_samples)
    counts = np.bincount(labels[labels != NO_LABEL], minlength=samples.num_classes)
    sizes_px = _sizes_px(samples)
    return Report(
        folder=str(folder),
        split=packed.split,
        samples=packed.num_samples,
        classes=len(packed.classes),
        multi_label=packed.multi_label,
        shards=len(packed.shards),
        blocks=int(block_of[-1]) + 1,
        rejected=packed.rejected,
        image_bytes=int(image_bytes.sum(dtype=np.int64)),
        image_bytes_median=int(np.median(image_bytes)),
        width_px=_spread([width for width, _ in sizes_px]),
        height_px=_spread([height for _, height in sizes_px]),
        images_of_class=dict(zip(packed.classes, counts.tolist(), strict=True)),
        mixing=mixing(labels, block_of, samples.num_classes),
    )


def blocks_of(shard_samples: Sequence[int], block_samples: int) -> Ints:
    """The number of each sample's block, in the order of the set."""
    parts = [np.arange(samples) // block_samples for samples in shard_samples]
    firsts = np.cumsum([0, *(part[-1] + 1 for part in parts[:-1])])
    return np.concatenate([part + first for part, first in zip(parts, firsts, strict=True)])


def mixing(labels: npt.NDArray[np.int32], block_of: Ints, num_classes: int) -> float:
    """How well a set is shuffled: the chance that two samples of it share a label, over the chance that two of one
    block do. About 1 for a shuffled set (that is its expectation); 1 / num_classes for a sorted one.

    `labels` [N, K] filled up with -1; `block_of` [N]."""

    def num_pairs(counts: Ints) -> float:
        return float((counts * (counts - 1.0)).sum())

    sample = np.nonzero(labels != NO_LABEL)[0]
    label = labels[labels != NO_LABEL].astype(np.int64)
    alike_in_set = num_pairs(np.bincount(label, minlength=num_classes))
    alike_in_blocks = num_pairs(np.unique(block_of[sample] * num_classes + label, return_counts=True)[1])
    if alike_in_blocks == 0:
        return 1.0  # no two of a block share a label: it cannot be mixed better
    return alike_in_set / num_pairs(np.array([len(labels)])) / (alike_in_blocks / num_pairs(np.bincount(block_of)))


def text(report: Report) -> str:
    """The report for a reader."""
    counts = sorted(report.images_of_class.items(), key=lambda item: -item[1])
    widest = max(counts[0][1], 1)
    shown = counts if len(counts) <= MAX_SHOWN_CLASSES else counts[: MAX_SHOWN_CLASSES // 2]
    cure = "" if report.mixing >= MIXED_WELL else "; training would see class after class: pack the images again"
    lines = [
        f"{report.folder}: {report.samples} images, {report.classes} classes, split {report.split}",
        f"  shards   {report.shards} ({report.image_bytes / 2**20:.1f} MiB of images), {report.blocks} blocks",
        f"  images   {report.image_bytes_median} bytes (median), width {_range(report.width_px)} px, "
        f"height {_range(report.height_px)} px; {report.rejected} rejected at packing",
        f"  mixing   {report.mixing:.2f} of a shuffled set's{cure}",
        f"  classes  {counts[-1][1]} to {counts[0][1]} images, {report.samples / report.classes:.1f} on average",
    ]
    lines += [f"    {count:>9}  {'#' * round(30 * count / widest):30}  {name}" for name, count in shown]
    if len(shown) < len(counts):
        lines.append(f"    ... and {len(counts) - len(shown)} classes more (--json has all)")
    return "\n".join(lines)


def _sizes_px(samples: SampleSet) -> list[tuple[int, int]]:
    """Width and height of MEASURED_IMAGES images spread over the set, without those that are broken."""
    sizes = []
    for place in np.unique(np.linspace(0, samples.num_samples - 1, MEASURED_IMAGES).astype(np.int64)).tolist():
        sample = samples.read(*samples.locate(place))
        try:
            sizes.append(Image.open(io.BytesIO(sample.image_bytes), formats=STORED_FORMATS).size)
        except OSError:
            continue  # `verify` names it
    return sizes


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    if not values:
        return 0, 0, 0
    return min(values), int(np.median(values)), max(values)


def _range(low_median_high: tuple[int, int, int]) -> str:
    low, median, high = low_median_high
    return str(low) if low == high else f"{low}-{high} (median {median})"
