import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline import samples as samples_module
from data_pipeline.decode import decode
from data_pipeline.index import TAR_HEADER_BYTES, load_rows, save_rows
from data_pipeline.manifest import ManifestError
from data_pipeline.samples import SampleError, SampleSet, check_same_classes
from tests.data_pipeline.coded import CLASSES, COUNTS, label_of, number_of


@pytest.fixture
def copy(coded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coded, tmp_path / "copy"))


def everything(samples: SampleSet) -> list[tuple[int, int]]:
    return [(shard, row) for shard, count in enumerate(samples.shard_samples) for row in range(count)]


def picture(samples: SampleSet, shard: int, row: int) -> np.ndarray:
    return np.asarray(decode(samples.read(shard, row).image_bytes)).transpose(2, 0, 1)


def test_a_set_knows_its_samples(coded_samples: SampleSet) -> None:
    assert coded_samples.num_samples == 97
    assert coded_samples.shard_samples == (23, 23, 23, 23, 5)
    assert coded_samples.shard_names == tuple(f"train-00000{shard}" for shard in range(5))
    assert coded_samples.classes == CLASSES
    assert not coded_samples.multi_label
    assert coded_samples.block_samples == 8


def test_every_label_stands_next_to_its_own_image(coded_samples: SampleSet) -> None:
    seen: Counter[int] = Counter()
    for shard, row in everything(coded_samples):
        sample = coded_samples.read(shard, row)
        image = picture(coded_samples, shard, row)
        assert list(sample.labels) == [label_of(image)]
        assert sample.key == coded_samples.key(shard, row)
        source = coded_samples.rows(shard)[row]["source"].decode()
        assert source.startswith(f"{CLASSES[sample.labels[0]]}/{number_of(image):03d}.")
        seen[sample.labels[0]] += 1
    assert tuple(seen[label] for label in range(5)) == COUNTS


def test_keys_are_the_places_in_the_shuffled_listing(coded_samples: SampleSet) -> None:
    keys = [coded_samples.key(*where) for where in everything(coded_samples)]
    assert keys == [f"train-{place // 23:06d}/{place:09d}" for place in range(97)]


def test_places_of_the_set_are_located(coded_samples: SampleSet) -> None:
    assert [coded_samples.locate(place) for place in range(97)] == everything(coded_samples)


def test_a_set_travels_to_other_processes(coded_samples: SampleSet) -> None:
    coded_samples.read(0, 0)
    assert pickle.loads(pickle.dumps(coded_samples)).read(3, 4) == coded_samples.read(3, 4)


def swap_members(tar: Path, index: Path) -> str:
    """Exchange two images of one size, each with its header; returns the name of one."""
    rows = np.load(index)
    by_size: dict[int, int] = {}
    for row in range(len(rows)):
        other = by_size.setdefault(int(rows[row]["image_bytes"]), row)
        if other != row and rows[other]["suffix"] == rows[row]["suffix"]:
            break
    spans = [
        slice(int(rows[at]["image_offset"]) - TAR_HEADER_BYTES, int(rows[at]["image_offset"] + rows[at]["image_bytes"]))
        for at in (other, row)
    ]
    content = bytearray(tar.read_bytes())
    content[spans[0]], content[spans[1]] = content[spans[1]], content[spans[0]]
    tar.write_bytes(content)
    return str(rows[row]["key"].decode())


def test_an_image_that_stands_in_the_place_of_another_is_refused(copy: Path) -> None:
    foreign = swap_members(copy / "train-000000.tar", copy / "train-000000.index.npy")
    samples = SampleSet.open(copy)
    samples.check()  # the sizes are right
    failures = []
    for row in range(23):
        try:
            samples.read(0, row)
        except SampleError as error:
            failures.append(str(error))
    assert len(failures) == 2
    assert f"holds {foreign}." in failures[0]
    assert failures[0].startswith("train-000000/0000000")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content, at: content[:at] + bytes(len(content) - at), "holds no tar header"),
        (lambda content, at: content[: at + 530] + b"!" + content[at + 531 :], "holds other bytes than were indexed"),
    ],
)
def test_damaged_bytes_are_refused(copy: Path, damage: Callable[[bytes, int], bytes], message: str) -> None:
    tar = copy / "train-000002.tar"
    start = int(np.load(copy / "train-000002.index.npy")[7]["image_offset"]) - TAR_HEADER_BYTES
    tar.write_bytes(damage(tar.read_bytes(), start))
    with pytest.raises(SampleError, match=rf"train-000002/000000053: .*train-000002.tar at byte \d+ {message}; copy"):
        SampleSet.open(copy).read(2, 7)


def test_a_shard_cut_while_it_is_read_is_refused(copy: Path) -> None:
    samples = SampleSet.open(copy)
    samples.read(0, 0)
    with (copy / "train-000000.tar").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(SampleError, match=r"ends after \d+ of \d+ bytes"):
        samples.read(0, 22)


def test_a_shard_of_another_size_is_refused_when_it_is_opened(copy: Path) -> None:
    with (copy / "train-000001.tar").open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(ManifestError, match=r"train-000001.tar: has \d+ bytes, not \d+ as in the manifest"):
        SampleSet.open(copy).read(1, 0)


def test_a_missing_shard_is_refused_when_it_is_opened(copy: Path) -> None:
    (copy / "train-000001.tar").unlink()
    with pytest.raises(ManifestError, match=r"train-000001.tar: No such file or directory; the manifest names it"):
        SampleSet.open(copy).read(1, 0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 2, "index format = 2; this version reads format 1"),
        ("labels", 5, "label 5 outside the set's 5 classes"),
        ("labels", -2, "label -2 outside the set's 5 classes"),
        ("image_offset", 10**9, r"an image ends behind its shard's \d+ bytes"),
    ],
)
def test_an_index_that_cannot_be_is_refused(copy: Path, field: str, value: int, message: str) -> None:
    index = copy / "train-000000.index.npy"
    rows = np.load(index)
    rows[field] = value
    save_rows(index, rows)
    with pytest.raises(ManifestError, match=message):
        SampleSet.open(copy).read(0, 0)


def test_an_index_of_another_length_or_kind_is_refused(copy: Path) -> None:
    index = copy / "train-000000.index.npy"
    save_rows(index, np.load(index)[:22])
    with pytest.raises(ManifestError, match="22 rows where the manifest has 23 samples"):
        SampleSet.open(copy).read(0, 0)
    np.save(index, np.arange(23))
    with pytest.raises(ManifestError, match="index format = None; this version reads format 1"):
        SampleSet.open(copy).read(0, 0)
    index.write_bytes(b"\x80\x04K\x01.")  # a pickle is never loaded
    with pytest.raises(ManifestError, match="not a readable index"):
        load_rows(index, 23, 5, 10**6)


def test_a_subset_has_exactly_so_many_of_each_class(coded_samples: SampleSet) -> None:
    subset = coded_samples.subset_per_class(4, seed=0)
    assert Counter(subset.labels()[:, 0].tolist()) == dict.fromkeys(range(5), 4)
    keys = [subset.key(*where) for where in everything(subset)]
    assert len(set(keys)) == subset.num_samples == 20
    assert all(subset.read(*where).labels[0] == label_of(picture(subset, *where)) for where in everything(subset))


def test_a_subset_is_chosen_by_its_seed(coded_samples: SampleSet) -> None:
    chosen = [
        {subset.key(*where) for where in everything(subset)}
        for subset in (coded_samples.subset_per_class(4, seed) for seed in (0, 0, 1))
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_subset_of_a_subset_is_part_of_it(coded_samples: SampleSet) -> None:
    outer = coded_samples.subset_per_class(8, seed=0)
    inner = outer.subset_per_class(3, seed=0)
    outer_keys = {outer.key(*where) for where in everything(outer)}
    assert {inner.key(*where) for where in everything(inner)} < outer_keys
    assert inner.num_samples == 15


def test_a_subset_larger_than_a_class_is_refused(coded_samples: SampleSet) -> None:
    with pytest.raises(ValueError, match=r"class bee has 11 images, 12 a class are asked for; ask for 11 or fewer"):
        coded_samples.subset_per_class(12, seed=0)


def test_folders_form_one_set(coded: Path, coded_samples: SampleSet, copy: Path) -> None:
    both = SampleSet.open([coded, copy])
    assert both.num_samples == 2 * 97
    assert both.shard_names[0] == "coded/train-000000"
    assert both.shard_names[-1] == "copy/train-000004"
    assert both.key(7, 3) == f"copy/{coded_samples.key(2, 3)}"
    assert both.read(7, 3).image_bytes == coded_samples.read(2, 3).image_bytes


def test_one_folder_in_a_list_is_that_folder(coded: Path, coded_samples: SampleSet) -> None:
    assert SampleSet.open([coded]) == coded_samples


def test_two_folders_of_one_name_are_refused(coded: Path, tmp_path: Path) -> None:
    other = shutil.copytree(coded, tmp_path / "coded")
    with pytest.raises(
        ValueError, match="two folders of one set are named coded, and keys are FOLDER/SHARD/KEY; rename"
    ):
        SampleSet.open([coded, other])
    (tmp_path / "link").symlink_to(other)
    assert SampleSet.open([coded, tmp_path / "link"]).num_samples == 2 * 97


def rename_class(folder: Path, classes: tuple[str, ...]) -> SampleSet:
    manifest.save(folder, manifest.load(folder).model_copy(update={"classes": classes}))
    return SampleSet.open(folder)


def test_sets_that_number_their_classes_differently_are_refused(coded: Path, copy: Path) -> None:
    other = rename_class(copy, ("ant", "bee", "cow", "dog", "eel"))
    with pytest.raises(
        ValueError, match="differ in their classes: label 2 is 'cat' in one and 'cow' in the other; pack"
    ):
        check_same_classes(SampleSet.open(coded), other)
    with pytest.raises(ValueError, match="label 2 is 'cat' in one and 'cow' in the other"):
        SampleSet.open([coded, copy])


def test_sets_with_more_and_fewer_classes_are_refused(coded: Path, copy: Path) -> None:
    other = rename_class(copy, (*CLASSES, "fox"))
    with pytest.raises(ValueError, match="differ in their classes: 5 and 6 classes"):
        check_same_classes(SampleSet.open(coded), other)


def test_sets_with_one_list_of_classes_go_together(coded: Path, copy: Path) -> None:
    check_same_classes(SampleSet.open(coded), SampleSet.open(copy))


def test_a_head_with_too_few_classes_is_refused(coded_samples: SampleSet) -> None:
    coded_samples.check_labels(5)
    coded_samples.check_labels(8)
    with pytest.raises(
        ValueError, match=r"head.num_classes = 4, but .*coded has 5 classes \(labels 0 to 4\); leave it out"
    ):
        coded_samples.check_labels(4)


def test_identity_is_of_the_samples_not_of_the_place(coded: Path, coded_samples: SampleSet, copy: Path) -> None:
    assert SampleSet.open(copy).identity == coded_samples.identity
    other = manifest.load(copy).model_copy(update={"block_samples": 9})
    manifest.save(copy, other)
    subset = coded_samples.subset_per_class(4, seed=0)
    identities = {
        coded_samples.identity,
        SampleSet.open(copy).identity,
        SampleSet.open([coded, copy]).identity,
        subset.identity,
        coded_samples.subset_per_class(4, seed=1).identity,
    }
    assert len(identities) == 5


def test_many_shards_stay_within_the_open_files_of_a_process(
    coded_samples: SampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "_open_shard", lru_cache(maxsize=2)(samples_module._OpenShard))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for shard, row in everything(coded_samples) * 2:
        coded_samples.read(shard, row)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4
