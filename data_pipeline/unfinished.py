"""A packing that is not finished yet: a folder beside OUT, in which one command or many parts work.

.OUT.partial/                  until OUT is whole
  request.json                 what is packed, and how; any other command is refused
  SPLIT/listing/               the shuffled listing of a set (shuffled.py)
  SPLIT/notes/NAME.json        a finished shard (shard_writer.py)
  set/ or set/SPLIT/           tars and indices; `set` becomes OUT
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_pipeline import manifest
from data_pipeline.listing import Listing
from data_pipeline.shard_writer import WRITING, Note, ShardTask
from data_pipeline.shuffled import Places, Shuffled

_REQUEST_FILE = "request.json"
_LISTING = ".listing"  # ends the name of a folder in which a listing is being made

Option = str | int | float | list[str] | None


class SetPlan(NamedTuple):
    """One of the sets that a packing makes."""

    folder: str  # inside OUT; empty for OUT itself
    split: str
    num_images: int
    num_shards: int
    listing_sha256: str


class Request(NamedTuple):
    """What is packed, and how."""

    options: dict[str, Option]  # as typed
    parts: int
    classes: tuple[str, ...]
    multi_label: bool
    ignored: dict[str, int]
    sets: tuple[SetPlan, ...]

    @property
    def packing(self) -> str:
        """A digest of all that decides the bytes of a shard."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


class ChosenSet(NamedTuple):
    """The images of a listing that form a set, in the order of their shuffle, and where shards begin and end."""

    folder: str
    split: str
    order: Places
    cuts: Places


def folder_of(out: Path) -> Path:
    """Where the packing of `out` lies until it is whole."""
    return out.parent / f".{out.name}.partial"


@dataclass(frozen=True)
class Unfinished:
    """The folder of a packing, and what it was asked for."""

    folder: Path
    request: Request

    @classmethod
    def load(cls, out: Path) -> "Unfinished | None":
        """The unfinished packing of `out`, if there is one."""
        folder = folder_of(out)
        try:
            tree = json.loads((folder / _REQUEST_FILE).read_bytes())
        except FileNotFoundError:
            return None
        sets = tuple(SetPlan(*each) for each in tree["sets"])
        return cls(folder, Request(**{**tree, "classes": tuple(tree["classes"]), "sets": sets}))

    @classmethod
    def open(
        cls,
        out: Path,
        options: Mapping[str, Option],
        parts: int,
        make: Callable[[], tuple[Listing, list[ChosenSet]]],
    ) -> "Unfinished":
        """Go on with the unfinished packing of `out`, or begin one with the listing that `make` makes.

        ValueError when one was begun by another command."""
        found = cls.load(out)
        if found is None:
            cls._begin(out, dict(options), parts, *make())
            found = cls.load(out)  # ours, or that of another part which was quicker
            assert found
        found._check({**options, "part": f"I/{parts}"})
        return found

    @classmethod
    def _begin(cls, out: Path, options: dict[str, Option], parts: int, listing: Listing, sets: list[ChosenSet]) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        apart = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_LISTING, dir=out.parent))
        try:
            plans = []
            for each in sets:
                shuffled = Shuffled.write(apart / each.split / "listing", listing, each.order, each.cuts)
                (apart / each.split / "notes").mkdir()
                (apart / "set" / each.folder).mkdir(parents=True)
                plans.append(SetPlan(each.folder, each.split, len(each.order), len(each.cuts) - 1, shuffled.sha256()))
            request = Request(options, parts, listing.classes, listing.multi_label, listing.ignored, tuple(plans))
            (apart / _REQUEST_FILE).write_text(json.dumps(request._asdict(), indent=1) + "\n")
            try:
                apart.rename(folder_of(out))
            except OSError:
                if cls.load(out) is None:
                    raise
        finally:
            shutil.rmtree(apart, ignore_errors=True)

    def _check(self, options: dict[str, Option]) -> None:
        begun = {**self.request.options, "part": f"I/{self.request.parts}"}
        for key, value in options.items():
            if begun.get(key) != value:
                raise ValueError(
                    f"{self.folder}: an unfinished packing with {key} {begun.get(key)}, not {value}; "
                    f"finish it as it was begun, or remove that folder"
                )
        for each in self.request.sets:
            if self._listing(each).sha256() != each.listing_sha256:
                raise ValueError(f"{self.folder}: its listing of {each.split} is damaged; remove that folder")

    def clear_part(self, part: int) -> None:
        """Remove what a part was writing when it was stopped."""
        for each in self.request.sets:
            for begun in (self.folder / each.split / "notes").glob(f"{WRITING}{part}.*"):
                shutil.rmtree(begun, ignore_errors=True)

    def _listing(self, each: SetPlan) -> Shuffled:
        return Shuffled(self.folder / each.split / "listing")

    def set_folder(self, each: SetPlan) -> Path:
        """Where the shards of a set lie until it is whole."""
        return self.folder / "set" / each.folder

    def tasks(self) -> Iterator[tuple[int, ShardTask]]:
        """Every shard of every set, dealt to the parts in turn, with the number of its set."""
        packing, at = self.request.packing, 0
        for set_number, each in enumerate(self.request.sets):
            listing = self._listing(each)
            for number in range(each.num_shards):
                name = f"{each.split}-{number:06d}"
                task = ShardTask(
                    listing=listing,
                    number=number,
                    multi_label=self.request.multi_label,
                    tar=self.set_folder(each) / f"{name}.tar",
                    note=self.folder / each.split / "notes" / f"{name}.json",
                    packing=packing,
                    part=at % self.request.parts,
                )
                yield set_number, task
                at += 1

    def notes(self) -> list[list[Note]]:
        """The notes of every set; ValueError naming the parts that are missing or of another packing."""
        notes: list[list[Note]] = [[] for _ in self.request.sets]
        missing, foreign = set[int](), set[str]()
        expected = set[Path]()
        for set_number, task in self.tasks():
            note = Note.load(task.note)
            if note and note.packing != task.packing:
                foreign.add(task.tar.name)
            elif note is None or not _has_its_size(task.tar, note):
                missing.add(task.part + 1)
            else:
                notes[set_number].append(note)
            expected |= {task.tar, task.note}
        for each in self.request.sets:
            found = {*self.set_folder(each).glob("*.tar"), *(self.folder / each.split / "notes").glob("*.json")}
            foreign |= {path.name for path in found - expected}
        if foreign:
            raise ValueError(f"{self.folder}: {', '.join(sorted(foreign)[:10])} of another packing; remove them")
        if missing:
            parts = ", ".join(f"{part}/{self.request.parts}" for part in sorted(missing)[:10])
            raise ValueError(f"{self.folder}: not finished: part {parts}; run pack ... --part again with those")
        return notes

    def close(self, out: Path) -> None:
        """Let the sets appear as `out`, and remove what is left."""
        (self.folder / "set").rename(out)
        clear(out)


def clear(out: Path) -> None:
    """Remove what packing left beside `out`."""
    shutil.rmtree(folder_of(out), ignore_errors=True)
    for beside in out.parent.iterdir():
        if beside.name.startswith(f".{out.name}.") and beside.name.endswith(_LISTING):
            shutil.rmtree(beside, ignore_errors=True)


def _has_its_size(tar: Path, note: Note) -> bool:
    if note.shard is None:
        return True
    index = tar.with_name(manifest.index_name(tar.name))
    try:
        return (tar.stat().st_size, index.stat().st_size) == (note.shard.bytes, note.shard.index_bytes)
    except OSError:
        return False
