"""Shards as others write theirs."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from webdataset import TarWriter


def write_shard(tar: Path, samples: Iterable[Mapping[str, bytes | str]]) -> Path:
    """A shard written by webdataset as others write theirs."""
    with TarWriter(str(tar), encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    return tar


def png(width_px: int = 8, value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width_px, 8), value).save(file, "PNG")
    return file.getvalue()
