import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline.index import save_rows
from data_pipeline.manifest import ManifestError
from data_pipeline.verify import Problem, verify


@pytest.fixture
def copy(coded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coded, tmp_path / "copy"))


def sign_off(folder: Path) -> None:
    """Make the manifest agree with the files as they are, as someone does who wants to hide something."""
    loaded = manifest.load(folder)
    shards = tuple(manifest.describe(shard.name, folder, shard.samples) for shard in loaded.shards)
    manifest.save(folder, loaded.model_copy(update={"shards": shards}))


def test_a_set_as_it_was_packed_has_no_problem(coded: Path) -> None:
    assert verify(coded, workers=2) == []


@pytest.mark.parametrize("at", [100, 700, 5_000, 20_000, -1])
def test_any_flipped_bit_is_found(copy: Path, at: int) -> None:
    tar = copy / "train-000002.tar"
    content = bytearray(tar.read_bytes())
    content[at] ^= 1
    tar.write_bytes(content)
    assert Problem("train-000002", None, "train-000002.tar has other bytes than the manifest's sha256") in verify(copy)


def test_a_flipped_bit_in_the_index_is_found(copy: Path) -> None:
    index = copy / "train-000002.index.npy"
    rows = np.load(index)
    rows["source"][3] = b"other"
    save_rows(index, rows)
    assert verify(copy) == [
        Problem("train-000002", None, "train-000002.index.npy has other bytes than the manifest's sha256")
    ]


def test_missing_and_shortened_files_are_found(copy: Path) -> None:
    (copy / "train-000000.tar").unlink()
    (copy / "train-000001.index.npy").unlink()
    with (copy / "train-000002.tar").open("r+b") as file:
        file.truncate(9_000)
    problems = verify(copy)
    assert problems[0] == Problem("train-000000", None, "train-000000.tar: No such file or directory")
    assert problems[1] == Problem("train-000001", None, "train-000001.index.npy: No such file or directory")
    assert [problem.shard for problem in problems[2:]] == ["train-000002", "train-000002"]
    assert problems[2].problem.startswith("train-000002.tar has 9000 bytes, not ")
    assert "cut off inside" in problems[3].problem


@pytest.mark.parametrize(
    ("field", "value"),
    [("labels", 1), ("image_offset", 600), ("image_bytes", 9), ("crc32", 0), ("suffix", b"jpg"), ("key", b"x")],
)
def test_an_index_that_lies_is_found_even_when_it_was_signed_off(copy: Path, field: str, value: object) -> None:
    index = copy / "train-000000.index.npy"
    rows = np.load(index)
    row = int(np.flatnonzero(rows["labels"][:, 0] != 1)[0])
    rows[field][row] = value
    save_rows(index, rows)
    sign_off(copy)
    problems = verify(copy)
    assert [(problem.shard, problem.problem) for problem in problems] == [
        ("train-000000", f"index and shard differ in {field}")
    ]
    assert problems[0].key == rows["key"][row].decode()


def test_labels_outside_the_classes_are_found(copy: Path) -> None:
    manifest.save(copy, manifest.load(copy).model_copy(update={"classes": ("ant", "bee", "cat")}))
    problems = verify(copy)
    assert len(problems) == 5
    assert all("outside the set's 3 classes" in problem.problem for problem in problems)


def test_the_index_of_another_shard_is_found(copy: Path) -> None:
    shutil.copy(copy / "train-000004.tar", copy / "train-000000.tar")
    loaded = manifest.load(copy)
    shards = tuple(manifest.describe(shard.name, copy, shard.samples) for shard in loaded.shards)
    first = shards[0].model_copy(update={"bytes": 10**6})
    manifest.save(copy, loaded.model_copy(update={"shards": (first, *shards[1:])}))
    assert Problem("train-000000", None, "the index does not belong to the shard") in verify(copy)


def test_an_image_that_does_not_decode_is_found(broken_set: Path) -> None:
    problems = verify(broken_set)
    assert [(problem.shard, problem.key) for problem in problems] == [("shard", "3")]
    assert problems[0].problem.startswith("broken image")


def test_a_folder_that_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a packed set"):
        verify(tmp_path)
