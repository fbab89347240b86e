"""Shards as others write theirs."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from webdataset import TarWriter


def write_shard(tar: Path, samples: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A shard of samples by key, as webdataset writes it."""
    with TarWriter(str(tar), encoder=False, mtime=0) as writer:
        for key, fields in samples.items():
            writer.write({"__key__": key, **fields})
    return tar


def write_tar(tar: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of (name, content), in whatever order others put them."""
    with tarfile.open(tar, "w", format=form) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return tar


def png(width_px: int = 8) -> bytes:
    """A picture of noise: cut off anywhere, it is broken."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, width_px), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()
