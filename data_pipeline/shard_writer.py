"""One shard, from its slice of the shuffled listing to a tar, its index and a note that says it is finished.

Shard and index are written apart and take their names when they are whole; the note comes last. A shard with a note
that fits its bytes is kept, so that packing goes on where it was stopped.
"""

import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from data_pipeline import decode, index, manifest
from data_pipeline.listing import Source
from data_pipeline.manifest import Shard
from data_pipeline.scan import scan
from data_pipeline.shuffled import Shuffled

WRITING = ".writing."  # begins the name of a folder in which a part writes a shard
_SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


class Recode(NamedTuple):
    """Store every image as a JPEG of at most this size."""

    short_side_px: int
    quality: int


class ShardTask(NamedTuple):
    """A shard to write."""

    listing: Shuffled
    number: int
    multi_label: bool
    tar: Path  # where it goes; its index goes beside it
    note: Path  # where its note goes
    packing: str  # the digest of all that decides its bytes
    part: int  # 0 to N - 1


class Note(NamedTuple):
    """A finished shard."""

    packing: str
    part: int
    num_tried: int
    shard: Shard | None  # None when every image was rejected
    rejects: list[tuple[str, list[int], str]]  # source, labels, reason

    def save(self, path: Path) -> None:
        """Write it, complete or not at all."""
        tree = {**self._asdict(), "shard": self.shard and self.shard.model_dump()}
        temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
        with temporary.open("w") as file:
            json.dump(tree, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)

    @classmethod
    def load(cls, path: Path) -> "Note | None":
        """The note of a shard; None when there is none that can be read."""
        try:
            tree = json.loads(path.read_bytes())
            return cls(**{**tree, "shard": tree["shard"] and Shard.model_validate(tree["shard"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None


def finish_shard(source: Source, recode: Recode | None, task: ShardTask) -> Note:
    """The note of a shard that was finished before and lies there with every byte, or else of the one written now."""
    found = Note.load(task.note)
    if found and found.packing == task.packing and (found.shard is None or _lies_there(task.tar, found.shard)):
        return found
    apart = Path(tempfile.mkdtemp(prefix=f"{WRITING}{task.part}.", dir=task.note.parent))
    try:
        note = _write(source, recode, task, apart / task.tar.name)
        if note.shard:
            for name in (manifest.index_name(task.tar.name), task.tar.name):
                (apart / name).rename(task.tar.with_name(name))
        note.save(task.note)
    finally:
        shutil.rmtree(apart, ignore_errors=True)
    return note


def _lies_there(tar: Path, shard: Shard) -> bool:
    try:
        return manifest.describe(tar.name, tar.parent, shard.samples) == shard
    except (OSError, ValueError):  # an empty file is no shard
        return False


def _write(source: Source, recode: Recode | None, task: ShardTask, tar: Path) -> Note:
    from webdataset import TarWriter  # brings torch along, which `pack --help` and a refusal do without

    images = task.listing.images(task.number)
    first_place, _ = task.listing.places(task.number)
    rejects: list[tuple[str, list[int], str]] = []
    sources: list[bytes] = []
    with tar.open("wb") as file:
        # No owner and no time of day: the same samples are the same bytes.
        with TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
            for place, (name, labels) in enumerate(images, start=first_place):
                try:
                    suffix, image_bytes = stored_form(source.read(name), recode)
                except (OSError, decode.DecodeError) as error:
                    rejects.append((os.fsdecode(name), labels, str(error)))
                    continue
                label = {"json": _json(labels)} if task.multi_label else {"cls": str(labels[0]).encode()}
                writer.write({"__key__": f"{place:09d}", **label, suffix: image_bytes})
                sources.append(name)
        file.flush()
        os.fsync(file.fileno())
    if not sources:
        return Note(task.packing, task.part, len(images), None, rejects)
    index.save_rows(tar.with_name(manifest.index_name(tar.name)), scan(tar, sources).rows)
    shard = manifest.describe(tar.name, tar.parent, len(sources))
    return Note(task.packing, task.part, len(images), shard, rejects)


def _json(labels: list[int]) -> bytes:
    return json.dumps({"labels": labels}).encode()


def stored_form(image_bytes: bytes, recode: Recode | None = None) -> tuple[str, bytes]:
    """The suffix and bytes that an image is stored with, once it has been decoded from end to end.

    JPEG, PNG and WebP stay as they are; any other format becomes a PNG of the very pixels that training would see.
    With `recode` all become JPEGs of those pixels, a longer short side reduced (bicubic), a shorter one left."""
    image, image_format = decode.load(image_bytes, decode.PACKED_FORMATS)
    file = io.BytesIO()
    if recode:
        scale = recode.short_side_px / min(image.size)
        if scale < 1:
            width_px, height_px = (max(1, round(side_px * scale)) for side_px in image.size)
            image = image.resize((width_px, height_px), Image.Resampling.BICUBIC)
        image.save(file, "JPEG", quality=recode.quality)
        return "jpg", file.getvalue()
    if image_format in _SUFFIXES:
        return _SUFFIXES[image_format], image_bytes
    image.save(file, "PNG")
    return "png", file.getvalue()
