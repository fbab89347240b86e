"""What is in a packed set: counts, sizes, classes, and how well its samples are mixed."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline import manifest
from data_pipeline.decode import STORED_FORMATS
from data_pipeline.index import NO_LABEL
from data_pipeline.mixing import Mixing, blocks_of, mixing
from data_pipeline.samples import SampleSet

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
    mixing: float  # as `mixing.py` has it
    mixed_well: bool


def inspect(folder: Path) -> Report:
    """The numbers of a packed set; reads every index and the headers of some images."""
    packed = manifest.load(folder)
    samples = SampleSet.open(folder)
    labels = samples.labels()
    image_bytes = np.concatenate([samples.rows(shard)["image_bytes"] for shard in range(len(packed.shards))])
    block_of = blocks_of(samples.shard_samples, samples.block_samples)
    counts = np.bincount(labels[labels != NO_LABEL], minlength=samples.num_classes)
    mixed = mixing(labels, block_of, samples.num_classes)
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
        mixing=mixed.figure,
        mixed_well=mixed.well,
    )


def text(report: Report) -> str:
    """The report for a reader."""
    counts = sorted(report.images_of_class.items(), key=lambda item: -item[1])
    widest = max(counts[0][1], 1)
    shown = counts if len(counts) <= MAX_SHOWN_CLASSES else counts[: MAX_SHOWN_CLASSES // 2]
    lines = [
        f"{report.folder}: {report.samples} images, {report.classes} classes, split {report.split}",
        f"  shards   {report.shards} ({report.image_bytes / 2**20:.1f} MiB of images), {report.blocks} blocks",
        f"  images   {report.image_bytes_median} bytes (median), width {_range(report.width_px)} px, "
        f"height {_range(report.height_px)} px; {report.rejected} rejected at packing",
        f"  mixing   {Mixing(report.mixing, report.mixed_well)}",
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
