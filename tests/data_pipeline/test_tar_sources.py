import shutil
import tarfile
from pathlib import Path

import pytest

from data_pipeline.foreign import index_shards
from data_pipeline.listing import Source
from data_pipeline.pack import PackOptions, pack
from data_pipeline.samples import SampleSet
from data_pipeline.sources import open_source
from data_pipeline.tar_sources import ClassTars, Shards
from data_pipeline.verify import verify
from tests.data_pipeline.coded import CLASSES, COUNTS
from tests.data_pipeline.shards import png, write_shard, write_tar


@pytest.fixture(scope="module")
def class_tars(coded_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The coded images as ImageNet comes: one tar a class."""
    folder = tmp_path_factory.mktemp("tars")
    for name in CLASSES:
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for image in sorted((coded_source / name).iterdir()):
                archive.add(image, image.name)
    return folder


def images(source: Source, classes: list[str] | None = None) -> list[tuple[str, bytes]]:
    listing = source.listing(classes)
    labels = listing.labels[:, 0].tolist()
    return sorted(
        (listing.classes[label], source.read(name)) for name, label in zip(listing.names.tolist(), labels, strict=True)
    )


def test_a_tar_a_class_is_read_as_class_folders_are(class_tars: Path, coded_source: Path) -> None:
    source = open_source(str(class_tars), None)
    assert source == ClassTars(class_tars)
    assert images(source) == images(open_source(str(coded_source), None))
    assert source.listing(["eel", "bee"]).labels[:, 0].tolist() == [0] * COUNTS[4] + [1] * COUNTS[1]
    name = source.listing(None).names[0]
    assert name.startswith(b"ant.tar/000.png@")
    assert source.size_bytes(name) == len(source.read(name))


def test_a_tar_a_class_is_packed_and_nothing_extracted(class_tars: Path, tmp_path: Path) -> None:
    before = sorted(class_tars.iterdir())
    pack(ClassTars(class_tars), tmp_path / "out", PackOptions(shard_samples=50))
    assert verify(tmp_path / "out") == []
    assert SampleSet.open(tmp_path / "out").num_samples == 97
    assert sorted(class_tars.iterdir()) == before


def test_a_split_of_tars_is_found_by_its_name(class_tars: Path, tmp_path: Path) -> None:
    shutil.copytree(class_tars, tmp_path / "train")
    assert open_source(str(tmp_path), "train") == ClassTars(tmp_path / "train")


def test_other_files_in_a_class_tar_are_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "cat.tar", [("deep/1.png", png()), ("notes.txt", b"x"), ("deep/2.JPEG", png())])
    listing = ClassTars(tmp_path).listing(None)
    assert [name.rpartition(b"@")[0] for name in listing.names.tolist()] == [
        b"cat.tar/deep/1.png",
        b"cat.tar/deep/2.JPEG",
    ]
    assert listing.ignored == {".txt": 1}


def test_damaged_and_empty_class_tars_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "cat.tar", [("1.png", png()), ("2.png", png())])
    whole = tar.read_bytes()
    tar.write_bytes(whole[: 512 + 600])
    with pytest.raises(ValueError, match=r"cat.tar: "):
        ClassTars(tmp_path).listing(None)
    write_tar(tar, [("1.txt", b"x")])
    with pytest.raises(ValueError, match=r"cat.tar: no images in it; remove it, or choose the others with --classes"):
        ClassTars(tmp_path).listing(None)


def test_a_tar_cut_off_after_it_was_listed_is_a_reject(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "cat.tar", [("1.png", png()), ("2.png", png())])
    source = ClassTars(tmp_path)
    last = source.listing(None).names[1]
    tar.write_bytes(tar.read_bytes()[: 512 * 3 + 10])
    with pytest.raises(OSError, match=r"cat.tar ends inside it; copy the tar again"):
        source.read(last)


def test_shards_made_elsewhere_are_shuffled_and_packed_again(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for shard, label in (("b", 1), ("a", 11)):
        written = {f"{shard}{number}": {"png": png(8 + number), "cls": str(label).encode()} for number in range(5)}
        write_shard(tmp_path / f"source/{shard}.tar", written)
    source = open_source(str(tmp_path / "source"), None)
    assert source == Shards(tmp_path / "source")
    packing = pack(source, tmp_path / "out", PackOptions())
    assert packing.sets[0].manifest.classes == tuple(str(label) for label in range(12))
    assert verify(tmp_path / "out") == []
    samples = SampleSet.open(tmp_path / "out")
    found = sorted((samples.read(0, row).labels, len(samples.read(0, row).image_bytes)) for row in range(10))
    assert found == [((label,), len(png(8 + number))) for label in (1, 11) for number in range(5)]
    assert source.size_bytes(source.listing(None).names[0]) == len(png(8))


def test_the_manifest_beside_shards_names_their_classes(tmp_path: Path) -> None:
    labels = (b'{"labels": [0, 2]}', b'{"labels": []}', b'{"labels": [1]}')
    tar = write_shard(tmp_path / "a.tar", {str(at): {"png": png(), "json": text} for at, text in enumerate(labels)})
    index_shards([tar], tmp_path, classes=["ant", "bee", "cat", "dog"])
    listing = Shards(tmp_path).listing(None)
    assert (listing.classes, listing.multi_label) == (("ant", "bee", "cat", "dog"), True)
    assert listing.labels.tolist() == [[0, 2], [-1, -1], [1, -1]]
    assert Shards(tmp_path).listing(["cat"]).labels.tolist() == [[0], [-1]]


def test_classes_that_no_image_has_are_refused(tmp_path: Path) -> None:
    tar = write_shard(tmp_path / "a.tar", {"1": {"png": png(), "cls": b"0"}})
    index_shards([tar], tmp_path, classes=["ant", "bee"])
    with pytest.raises(ValueError, match="no images of the classes bee; choose others with --classes"):
        pack(Shards(tmp_path), tmp_path / "out", PackOptions(), classes=["bee"])
    assert not (tmp_path / ".out.partial").exists()


def test_shards_of_two_kinds_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"1": {"png": png(), "cls": b"0"}})
    write_shard(tmp_path / "b.tar", {"1": {"png": png(), "json": b'{"labels": [0]}'}})
    with pytest.raises(ValueError, match="some tars have a label an image and some have lists; pack them apart"):
        Shards(tmp_path).listing(None)
