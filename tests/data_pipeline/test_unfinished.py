"""Packing in parts, and packing that was stopped: the set is the one that is packed at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline import manifest, shard_writer, unfinished
from data_pipeline import pack as pack_module
from data_pipeline.listing_file import ListingFile
from data_pipeline.pack import PackError, PackOptions, Part, merge, pack, pack_part
from data_pipeline.shard_writer import Note
from data_pipeline.sources import ClassFolders, Digits
from data_pipeline.unfinished import Unfinished
from data_pipeline.verify import verify
from tests.data_pipeline.coded import write_coded
from tests.data_pipeline.shards import png
from tests.data_pipeline.test_pack import hashes

OPTIONS = PackOptions(shard_samples=9, seed=3, hold_out=0.3, max_rejects=0.1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClassFolders:
    """97 coded images, of which two cannot be read."""
    root = write_coded(tmp_path_factory.mktemp("source") / "coded")
    (root / "cat/003.png").write_bytes(b"no image")
    (root / "dog/000.png").write_bytes(png()[:-40])
    return ClassFolders(root)


@pytest.fixture(scope="module")
def at_once(source: ClassFolders, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of the set packed by one command."""
    out = tmp_path_factory.mktemp("at_once") / "out"
    pack(source, out, OPTIONS)
    assert [verify(out / split) for split in ("train", "val")] == [[], []]
    found = hashes(out)
    assert {"train/train-000007.tar", "val/val-000003.tar", "train/rejects.jsonl"} < set(found)
    return found


def rest_beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def test_a_set_packed_in_parts_is_the_set_packed_at_once(
    source: ClassFolders, at_once: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "deep/out"
    tried = [pack_part(source, out, OPTIONS, Part(number, 4)) for number in (3, 1, 4, 2)]
    assert tried == [27, 27, 16, 27]  # twelve shards of 9, but the last of train and of val are shorter
    assert not out.exists()
    packing = merge(out, OPTIONS.max_rejects)
    assert hashes(out) == at_once
    assert [packed.folder for packed in packing.sets] == [out / "train", out / "val"]
    assert rest_beside(out) == []


def test_more_parts_than_shards(source: ClassFolders, tmp_path: Path) -> None:
    options = PackOptions(hold_out=0.3, max_rejects=0.1)
    assert [pack_part(source, tmp_path / "out", options, Part(number, 3)) for number in (1, 2, 3)] == [69, 28, 0]
    assert sum(packed.manifest.num_samples for packed in merge(tmp_path / "out", 0.1).sets) == 95


def test_parts_that_are_missing_are_named(source: ClassFolders, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack_part(source, out, OPTIONS, Part(2, 4))
    with pytest.raises(ValueError, match=r"not finished: part 1/4, 3/4, 4/4; run pack \.\.\. --part again with those"):
        merge(out)
    for number in (1, 3, 4):
        pack_part(source, out, OPTIONS, Part(number, 4))
    (unfinished.folder_of(out) / "set/train/train-000005.tar").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="not finished: part 2/4; run"):
        merge(out)
    assert not out.exists()


def test_parts_of_another_packing_are_named(source: ClassFolders, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for out, seed in ((one, 0), (other, 1)):
        for number in (1, 2):
            pack_part(source, out, PackOptions(shard_samples=30, seed=seed, max_rejects=0.1), Part(number, 2))
    for inside in ("set/train-000001.tar", "set/train-000001.index.npy", "train/notes/train-000001.json"):
        shutil.copy(unfinished.folder_of(other) / inside, unfinished.folder_of(one) / inside)
    with pytest.raises(ValueError, match=r"one\.partial: train-000001.tar of another packing; remove them"):
        merge(one)
    shutil.copy(unfinished.folder_of(other) / "set/train-000000.tar", unfinished.folder_of(other) / "set/more.tar")
    with pytest.raises(ValueError, match=r"other\.partial: more.tar of another packing; remove them"):
        merge(other)
    # The same command puts the foreign shard right.
    pack_part(source, one, PackOptions(shard_samples=30, seed=0, max_rejects=0.1), Part(2, 2))
    assert merge(one, 0.1).sets[0].manifest.num_samples == 95


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 4}, "an unfinished packing with --seed 3, not 4; finish it as it was begun, or remove that folder"),
        ({"shard_mib": 1.0}, "with --shard-samples 9, not None;"),
        ({"short_side_px": 8}, "with --short-side None, not 8;"),
        ({}, "with part I/2, not I/4;"),
    ],
)
def test_another_command_is_refused(
    source: ClassFolders, tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    values = {"shard_samples": 9, "seed": 3, "max_rejects": 0.1}
    pack_part(source, tmp_path / "out", PackOptions(**values), Part(1, 2))  # type: ignore[arg-type]
    before = hashes(tmp_path)
    with pytest.raises(ValueError, match=message):
        pack_part(source, tmp_path / "out", PackOptions(**{**values, **changed}), Part(2, 4))  # type: ignore[arg-type]
    assert hashes(tmp_path) == before


def test_the_listing_is_made_once(source: ClassFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_part(source, tmp_path / "out", OPTIONS, Part(1, 2))

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ClassFolders, "listing", fail)
    pack_part(source, tmp_path / "out", OPTIONS, Part(2, 2))
    listing = unfinished.folder_of(tmp_path / "out") / "train/listing/names.bin"
    listing.write_bytes(listing.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match="its listing of train is damaged; remove that folder"):
        pack_part(source, tmp_path / "out", OPTIONS, Part(2, 2))


def test_the_quicker_of_two_parts_lists(source: ClassFolders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, listing = tmp_path / "out", ClassFolders.listing

    def slow(self: ClassFolders, classes: list[str] | None) -> object:
        monkeypatch.undo()
        pack_part(self, out, OPTIONS, Part(1, 2))
        return listing(self, classes)

    monkeypatch.setattr(ClassFolders, "listing", slow)
    pack_part(source, out, OPTIONS, Part(2, 2))
    assert rest_beside(out) == [".out.partial"]
    merge(out, OPTIONS.max_rejects)


def test_finished_shards_are_kept_and_damaged_ones_are_written_again(
    source: ClassFolders, at_once: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pack_part(source, out, OPTIONS, Part(1, 1))
    folder = unfinished.folder_of(out)
    with (folder / "set/train/train-000002.tar").open("r+b") as file:
        file.write(b"?")  # of the same size
    (folder / "set/train/train-000003.index.npy").unlink()
    (folder / "train/notes/train-000004.json").write_text('{"packing"')
    (folder / "train/notes/train-000005.json").unlink()
    written = []
    write = shard_writer._write

    def watched(*arguments: object) -> Note:
        written.append(arguments[-1].name)  # type: ignore[attr-defined]
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard_writer, "_write", watched)
    pack(source, out, OPTIONS)
    assert written == [f"train-00000{number}.tar" for number in (2, 3, 4, 5)]
    assert hashes(out) == at_once


@pytest.mark.parametrize("hold_out", [None, 0.1])
def test_a_row_of_a_listing_takes_few_bytes(tmp_path: Path, hold_out: float | None) -> None:
    """Ten million rows with paths of 40 bytes stay under 1 GB, the 150 MB of the program itself included."""
    num_rows = 50_000
    (tmp_path / "first.png").write_bytes(png())
    with (tmp_path / "listing.csv").open("w") as file:
        file.write("path,label\nfirst.png,n00000000\n")
        file.writelines(
            f"images/n{row % 999:08d}/n{row % 999:08d}_{row:08d}.JPEG,n{row % 999:08d}\n" for row in range(num_rows)
        )
    source, options = ListingFile(tmp_path / "listing.csv"), PackOptions(hold_out=hold_out)
    tracemalloc.start()
    Unfinished.open(tmp_path / "out", {}, 1, lambda: pack_module._shuffled_sets(source, options, None))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes / num_rows < 90


class Killed(BaseException):
    pass


def test_killed_at_any_point_the_same_command_makes_the_same_set(
    source: ClassFolders, at_once: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change of a name is a point at which what lies on disk changes its meaning: stop at each, then go on."""
    rename, points = Path.rename, 0

    def killing(at: int, before: bool) -> Callable[[Path, Path], Path]:
        count = 0

        def renaming(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            if count == at and before:
                raise Killed
            renamed = rename(self, target)
            if count == at:
                raise Killed
            return renamed

        return renaming

    options = PackOptions(shard_samples=40, seed=3, max_rejects=0.1)
    pack(source, tmp_path / "whole", options)
    whole = hashes(tmp_path / "whole")
    out = tmp_path / "out"
    for at in range(1, 100):
        for before in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(Path, "rename", killing(at, before))
                patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # who is killed cleans nothing up
                try:
                    pack(source, out, options)
                except Killed:
                    points += 1
            if not out.exists():
                pack(source, out, options)
                assert rest_beside(out) == ["whole"]
            assert hashes(out) == whole
            shutil.rmtree(out)
            unfinished.clear(out)
        if points < 2 * at:
            break
    assert points >= 2 * (1 + 3 * 3 + 2)  # the listing; tar, index and note of three shards; the manifest, the set


def test_a_killed_process_leaves_what_the_same_command_goes_on_with(tmp_path: Path) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    for number in range(4):
        (tmp_path / f"source/a/{number}.png").write_bytes(png())
    os.mkfifo(tmp_path / "source/a/4.png")  # reading it waits for ever
    command = [sys.executable, "-m", "data_pipeline", "pack", str(tmp_path / "source"), str(tmp_path / "out")]
    command += ["--shard-samples", "1", "--workers", "1"]
    packing = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".out.partial/train/notes/.writing.*/*.tar")):
        time.sleep(0.05)
    time.sleep(0.2)
    packing.send_signal(signal.SIGKILL)
    packing.wait()
    (tmp_path / "source/a/4.png").unlink()
    (tmp_path / "source/a/4.png").write_bytes(png())
    pack(ClassFolders(tmp_path / "source"), tmp_path / "out", PackOptions(shard_samples=1))
    pack(ClassFolders(tmp_path / "source"), tmp_path / "again", PackOptions(shard_samples=1))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "again")
    assert rest_beside(tmp_path / "out") == ["again", "source"]


def test_what_a_kill_left_beside_a_whole_set_is_cleared_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(Digits(), out, PackOptions(), classes=["0"])
    (unfinished.folder_of(out) / "train").mkdir(parents=True)
    (tmp_path / ".out.abc.listing").mkdir()
    with pytest.raises(ValueError, match="exists already; remove it"):
        pack(Digits(), out, PackOptions(), classes=["0"])
    assert rest_beside(out) == []


def test_what_a_part_was_writing_is_cleared_away_when_it_goes_on(source: ClassFolders, tmp_path: Path) -> None:
    pack_part(source, tmp_path / "out", OPTIONS, Part(1, 2))
    notes = unfinished.folder_of(tmp_path / "out") / "train/notes"
    (notes / ".writing.0.abc").mkdir()
    (notes / ".writing.1.abc").mkdir()  # another machine may be at it
    pack_part(source, tmp_path / "out", OPTIONS, Part(1, 2))
    assert [path.name for path in notes.glob(".*")] == [".writing.1.abc"]


def test_too_many_rejects_in_parts_stop_the_merging_and_keep_the_parts(source: ClassFolders, tmp_path: Path) -> None:
    for number in (1, 2):
        pack_part(source, tmp_path / "out", PackOptions(shard_samples=30, max_rejects=0.03), Part(number, 2))
    with pytest.raises(PackError, match=r"2 unreadable images, more than --max-rejects 0.01 of 97 allows. The first: "):
        merge(tmp_path / "out")
    merged = merge(tmp_path / "out", 0.03).sets[0]
    assert merged.manifest == manifest.load(tmp_path / "out")
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 2


def test_the_request_can_be_read(source: ClassFolders, tmp_path: Path) -> None:
    pack_part(source, tmp_path / "out", OPTIONS, Part(1, 2))
    request = json.loads((unfinished.folder_of(tmp_path / "out") / "request.json").read_text())
    assert request["options"]["--seed"] == 3
    assert request["parts"] == 2
    assert [each[:2] for each in request["sets"]] == [["train", "train"], ["val", "val"]]
