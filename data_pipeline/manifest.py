"""`manifest.json`: what a packed set is, shard by shard.

    {"format": 1, "written_by": "vit-at-scale 0.1.0", "split": "train", "classes": ["cat", "dog"], "multi_label": false,
     "block_samples": 1024, "seed": 0, "rejected": 0,
     "shards": [{"name": "train-000000.tar", "samples": 8192, "bytes": 912343040, "sha256": "...",
                 "index_bytes": 811136, "index_sha256": "..."}]}

`name` is a path: beside the manifest, or anywhere for shards made elsewhere. The index of shard NAME.tar is
NAME.index.npy beside the manifest (`index.py`). `format` speaks for manifest and index together.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FORMAT = 1
WRITTEN_BY = "vit-at-scale 0.1.0"
FILE_NAME = "manifest.json"
BLOCK_SAMPLES = 1024

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ManifestError(ValueError):
    """A set's manifest is missing, unreadable, or does not match the files it names."""


class Shard(BaseModel):
    """One tar file and its index."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: Sha256
    index_bytes: int = Field(gt=0)
    index_sha256: Sha256


class Manifest(BaseModel):
    """A packed set: class names in the order of their labels, and the shards in the order of their samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    written_by: str = WRITTEN_BY
    split: str
    classes: tuple[str, ...] = Field(min_length=1)
    multi_label: bool = False
    block_samples: int = Field(default=BLOCK_SAMPLES, gt=0)
    seed: int | None = None  # of the packing shuffle; None for shards made elsewhere
    rejected: int = Field(default=0, ge=0)  # images that could not be read at packing
    shards: tuple[Shard, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_name_a_shard(self) -> Self:
        check_names([shard.name for shard in self.shards])
        return self

    @property
    def num_samples(self) -> int:
        """Images in the set."""
        return sum(shard.samples for shard in self.shards)


def load(folder: Path) -> Manifest:
    """The manifest of a packed folder; ManifestError when it is missing, broken or of an unknown format."""
    path = folder / FILE_NAME
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{folder}: {_why_no_manifest(folder)}") from None
    except (ValueError, OSError) as error:
        raise ManifestError(f"{path}: not a readable manifest ({error}); pack or index the set again") from None
    found = tree.get("format") if isinstance(tree, dict) else None
    if found != FORMAT:
        writer = tree.get("written_by", "an unknown version") if isinstance(tree, dict) else "an unknown version"
        raise ManifestError(
            f"{path}: format = {found!r}, written by {writer}; this version reads format {FORMAT}: "
            f"read it with {writer}, or pack the set again"
        )
    try:
        return Manifest.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{path}: {where}: {first['msg']}; pack or index the set again") from None


def save(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json`, complete or not at all."""
    temporary = folder / f".{FILE_NAME}.{os.getpid()}"
    # One shard a line: a manifest of 30,000 shards is still something to look at and to diff.
    shards = ",\n  ".join(shard.model_dump_json() for shard in manifest.shards)
    head = manifest.model_dump_json(exclude={"shards"})[:-1]
    with temporary.open("w") as file:
        file.write(f'{head},\n "shards": [\n  {shards}\n]}}\n')
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / FILE_NAME)


def check_shards(folder: Path, manifest: Manifest) -> None:
    """Every shard and index exists with the manifest's size, or ManifestError. Hashes are `verify`'s."""
    wrong = []
    for shard in manifest.shards:
        for name, size_bytes in ((shard.name, shard.bytes), (index_name(shard.name), shard.index_bytes)):
            try:
                found_bytes = (folder / name).stat().st_size
            except OSError:
                wrong.append(f"{name} is missing")
                continue
            if found_bytes != size_bytes:
                wrong.append(f"{name} has {found_bytes} bytes, not {size_bytes}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ManifestError(
            f"{folder}: the manifest does not match its shards: {wrong[0]}{more}; copy or pack the set again"
        )


def describe(name: str, folder: Path, samples: int) -> Shard:
    """The manifest's entry for a shard and its index as they lie on disk; reads both from end to end."""
    tar, index = folder / name, folder / index_name(name)
    return Shard(
        name=name,
        samples=samples,
        bytes=tar.stat().st_size,
        sha256=sha256_of(tar),
        index_bytes=index.stat().st_size,
        index_sha256=sha256_of(index),
    )


def stem(shard_name: str) -> str:
    """What a shard is called in keys: its file name without `.tar`."""
    return PurePath(shard_name).stem


def index_name(shard_name: str) -> str:
    """The file name of a shard's index, beside the manifest."""
    return f"{stem(shard_name)}.index.npy"


def check_names(shard_names: Sequence[str]) -> None:
    """ValueError when two shards would have one name in keys."""
    for name, count in Counter(map(stem, shard_names)).items():
        if count > 1:
            raise ValueError(
                f"two shards are named {name}, and keys need one name a shard; rename one, or index it apart"
            )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _why_no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"no such folder; make it with: python -m data_pipeline pack SOURCE {folder}"
    inside = sorted(child.parent.name for child in folder.glob(f"*/{FILE_NAME}"))
    if inside:
        return f"not a packed set itself, but {', '.join(inside)} inside it are: name one of those"
    if any(folder.glob("*.tar")):
        return (
            f"holds tars but no {FILE_NAME}; make it with: python -m data_pipeline index {folder}/*.tar --out {folder}"
        )
    return f"not a packed set (no {FILE_NAME}); make one with: python -m data_pipeline pack SOURCE OUT"
