"""The shuffled listing of a set, on disk: made once, then read slice by slice by every part and worker.

names.bin    the names one behind the other, place 0 first
ends.npy     int64 [N + 1]: name i is bytes ends[i] .. ends[i + 1] of names.bin
labels.npy   int32 [N, K], as in Listing
cuts.npy     int64 [S + 1]: shard s holds places cuts[s] .. cuts[s + 1]
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.index import NO_LABEL
from data_pipeline.listing import Listing

_NAMES, _ENDS, _LABELS, _CUTS = "names.bin", "ends.npy", "labels.npy", "cuts.npy"
_WRITTEN_AT_ONCE = 2**12

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shuffled:
    """A listing in the order of its shuffle, cut into shards."""

    folder: Path

    @classmethod
    def write(cls, folder: Path, listing: Listing, order: Places, cuts: Places) -> "Shuffled":
        """Put the images `order` of a listing into a new folder, cut at `cuts`."""
        folder.mkdir(parents=True)
        ends = np.zeros(len(order) + 1, np.int64)
        with (folder / _NAMES).open("wb") as file:
            for start in range(0, len(order), _WRITTEN_AT_ONCE):
                names = [listing.names[place] for place in order[start : start + _WRITTEN_AT_ONCE].tolist()]
                file.write(b"".join(names))
                ends[start + 1 : start + 1 + len(names)] = [len(name) for name in names]
            file.flush()
            os.fsync(file.fileno())
        np.cumsum(ends, out=ends)
        for name, column in ((_ENDS, ends), (_LABELS, listing.labels[order]), (_CUTS, cuts)):
            np.save(folder / name, column, allow_pickle=False)
        return cls(folder)

    @property
    def num_shards(self) -> int:
        """Shards that the set is cut into."""
        return len(self._load(_CUTS)) - 1

    def places(self, shard: int) -> tuple[int, int]:
        """The first place of a shard, and the first behind it."""
        first, stop = self._load(_CUTS)[shard : shard + 2].tolist()
        return first, stop

    def images(self, shard: int) -> list[tuple[bytes, list[int]]]:
        """The names and labels of a shard, place by place."""
        first, stop = self.places(shard)
        ends = self._load(_ENDS)[first : stop + 1].tolist()
        with (self.folder / _NAMES).open("rb") as file:
            file.seek(ends[0])
            names = file.read(ends[-1] - ends[0])
        labels = self._load(_LABELS)[first:stop].tolist()
        return [
            (names[start - ends[0] : end - ends[0]], [label for label in filled if label != NO_LABEL])
            for start, end, filled in zip(ends[:-1], ends[1:], labels, strict=True)
        ]

    def sha256(self) -> str:
        """A digest of all of it."""
        digest = hashlib.sha256()
        for name in (_NAMES, _ENDS, _LABELS, _CUTS):
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _load(self, name: str) -> npt.NDArray[np.int64]:
        loaded: npt.NDArray[np.int64] = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        return loaded
