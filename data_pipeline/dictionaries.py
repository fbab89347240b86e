"""The samples of a rank as webdataset's dictionaries, in the order of the plan: a first stage for one's own pipeline.

source = functools.partial(dictionaries, SampleSet.open(folder), plan, 0, 1000, rank, ranks)
webdataset.DataPipeline(source, webdataset.decode("pil"), webdataset.to_tuple("jpg;png;webp", "cls"), ...)
"""

import json
from collections.abc import Iterator

from data_pipeline.plan import Shares
from data_pipeline.samples import SampleSet

Dictionary = dict[str, str | bytes | int]


def dictionaries(
    samples: SampleSet, shares: Shares, first: int, stop: int, rank: int = 0, ranks: int = 1
) -> Iterator[Dictionary]:
    """The places of batches first .. stop - 1 that `rank` of `ranks` feeds, one after the other, undecoded:

        {"__key__": "000000123", "__url__": "DIR/train-000000.tar", "__place__": 4711, "jpg": b"...", "cls": b"7"}

    with `json`, {"labels": [...]}, instead of `cls` in a multi-label set; a field is called as its member in the tar.
    `__place__` is the number that random choices are keyed by. Nothing is split over DataLoader workers. Raises
    SampleError for bytes that are not those that were indexed."""
    for step in range(first, stop):
        places = shares.share(step, rank, ranks)
        for place, shard, row in zip(places.place.tolist(), places.shard.tolist(), places.row.tolist(), strict=True):
            sample = samples.read(shard, row)
            if samples.multi_label:
                label = {"json": json.dumps({"labels": sample.labels}).encode()}
            else:
                label = {"cls": str(sample.labels[0]).encode()}
            yield {
                "__key__": sample.key.removeprefix(f"{samples.shard_names[shard]}/"),
                "__url__": str(samples.tar(shard)),
                "__place__": place,
                sample.suffix: sample.image_bytes,
                **label,
            }
