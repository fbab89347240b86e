import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipeline import manifest
from data_pipeline import pack as pack_module
from data_pipeline.decode import decode
from data_pipeline.pack import PackError, PackOptions, pack, share_for
from data_pipeline.samples import SampleSet
from data_pipeline.shard_writer import Recode, stored_form
from data_pipeline.sources import ClassFolders, Digits
from data_pipeline.verify import verify
from tests.data_pipeline.coded import CLASSES, COUNTS, label_of, write_coded
from tests.data_pipeline.shards import png


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


def keys_and_labels(folder: Path) -> list[tuple[str, int]]:
    samples = SampleSet.open(folder)
    return [
        (samples.key(shard, row), samples.read(shard, row).labels[0])
        for shard, count in enumerate(samples.shard_samples)
        for row in range(count)
    ]


def test_the_shards_are_standard_webdataset(coded: Path, coded_samples: SampleSet) -> None:
    tars = sorted(str(tar) for tar in coded.glob("*.tar"))
    found = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"{place:09d}" for place in range(97)]
    for place, sample in enumerate(found):
        ours = coded_samples.read(*coded_samples.locate(place))
        assert sample[ours.suffix] == ours.image_bytes
        assert int(sample["cls"]) == ours.labels[0]


def test_webdataset_s_own_decoding_reads_them_too(coded: Path) -> None:
    tars = sorted(str(tar) for tar in coded.glob("*.tar"))
    for image, label in webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("png;webp", "cls"):
        assert label_of(image.transpose(2, 0, 1)) == label


def test_every_image_is_packed_once_with_its_own_label(coded: Path) -> None:
    verified = verify(coded)
    assert verified == []
    assert tuple(Counter(label for _, label in keys_and_labels(coded))[label] for label in range(5)) == COUNTS
    assert manifest.load(coded).classes == CLASSES


def test_bytes_pass_through_untouched_and_the_suffix_is_the_content_s(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    (tmp_path / "source/a").mkdir(parents=True)
    names = {"is_jpeg.png": "JPEG", "is_png.JPG": "PNG", "is_webp.jpeg": "WEBP", "is_bmp.webp": "BMP"}
    for name, image_format in names.items():
        picture.save(tmp_path / "source/a" / name, image_format)
    pack(ClassFolders(tmp_path / "source"), tmp_path / "out", PackOptions())
    samples = SampleSet.open(tmp_path / "out")
    suffixes = {}
    for row in range(4):
        sample = samples.read(0, row)
        source = samples.rows(0)[row]["source"].decode()
        suffixes[Path(source).name] = sample.suffix
        if sample.suffix != "png" or "is_png" in source:
            assert sample.image_bytes == (tmp_path / "source" / source).read_bytes()
        else:
            assert np.array_equal(np.asarray(decode(sample.image_bytes)), np.asarray(picture))
    assert suffixes == {"is_jpeg.png": "jpg", "is_png.JPG": "png", "is_webp.jpeg": "webp", "is_bmp.webp": "png"}


def test_images_can_be_made_jpegs_of_a_size(coded_source: Path, tmp_path: Path) -> None:
    picture = Image.radial_gradient("L").resize((90, 60)).rotate(30)
    for source_format in ("PNG", "JPEG"):
        file = io.BytesIO()
        picture.save(file, source_format)
        suffix, stored = stored_form(file.getvalue(), Recode(short_side_px=30, quality=90))
        assert suffix == "jpg"
        smaller = decode(stored)
        assert (smaller.size, Image.open(io.BytesIO(stored)).format) == ((45, 30), "JPEG")
        assert np.abs(np.asarray(smaller) - np.asarray(picture.convert("RGB").resize((45, 30)), np.float32)).mean() < 2
    assert decode(stored_form(file.getvalue(), Recode(100, 90))[1]).size == (90, 60)  # never made larger
    assert len(stored_form(file.getvalue(), Recode(30, 20))[1]) < len(stored)
    packed = pack(ClassFolders(coded_source), tmp_path / "out", PackOptions(short_side_px=4)).sets[0]
    rows = SampleSet.open(packed.folder).rows(0)
    assert set(rows["suffix"].tolist()) == {b"jpg"}
    assert verify(packed.folder) == []


@pytest.mark.parametrize(("mode", "image_format"), [("L", "GIF"), ("1", "TIFF"), ("P", "BMP"), ("CMYK", "TIFF")])
def test_other_formats_are_stored_as_the_pixels_training_would_see(mode: str, image_format: str) -> None:
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB").convert(mode)
    file = io.BytesIO()
    picture.save(file, image_format)
    suffix, stored = stored_form(file.getvalue())
    assert suffix == "png"
    assert np.array_equal(np.asarray(decode(stored)), np.asarray(picture.convert("RGB")))


def test_the_same_listing_and_seed_give_the_same_bytes_whatever_the_workers(coded_source: Path, tmp_path: Path) -> None:
    packings = [
        ("one", PackOptions(shard_samples=20, seed=1)),
        ("again", PackOptions(shard_samples=20, seed=1, workers=2)),
        ("other", PackOptions(shard_samples=20, seed=2)),
    ]
    for name, options in packings:
        pack(ClassFolders(coded_source), tmp_path / name, options)
    one, again, other = (hashes(tmp_path / name) for name, _ in packings)
    assert one == again
    assert len(one) == 19  # five tars, five links to them, five indices, the manifest, three files for other readers
    assert one.keys() == other.keys()
    assert one["train-000000.tar"] != other["train-000000.tar"]


def test_tars_have_no_owner_and_no_time_of_day(coded: Path) -> None:
    with tarfile.open(coded / "train-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uname, member.gname, member.uid, member.gid) == (0, "", "", 0, 0)


def test_the_shuffle_mixes_classes(coded: Path) -> None:
    labels = [label for _, label in keys_and_labels(coded)]
    assert len(set(labels[:15])) == 5
    assert sum(a == b for a, b in pairwise(labels)) < 40  # of 96; sorted it would be 92


def test_shards_can_be_cut_by_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "source/a").mkdir(parents=True)
    for number in range(30):
        noise = rng.integers(0, 256, (32, int(rng.integers(8, 64)), 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"source/a/{number}.png")
    packing = pack(ClassFolders(tmp_path / "source"), tmp_path / "out", PackOptions(shard_mib=0.02))
    sizes = [shard.bytes for shard in packing.sets[0].manifest.shards]
    assert len(sizes) > 3
    mib = 2**20
    assert all(0.01 * mib < size < 0.02 * mib + 8_000 + 10_240 for size in sizes[:-1])
    assert sorted(key for key, _ in keys_and_labels(tmp_path / "out"))[-1].endswith("000000029")


def test_a_hold_out_is_stratified_seeded_and_apart(tmp_path: Path) -> None:
    def split(name: str, seed: int) -> tuple[list[bytes], list[bytes]]:
        packing = pack(Digits(), tmp_path / name, PackOptions(hold_out=0.2, seed=seed), classes=["3", "5"])
        assert [packed.folder for packed in packing.sets] == [tmp_path / name / "train", tmp_path / name / "val"]
        assert [packed.manifest.split for packed in packing.sets] == ["train", "val"]
        sources = []
        for packed in packing.sets:
            rows = SampleSet.open(packed.folder).rows(0)
            assert all(int(row["labels"][0]) == {"3": 0, "5": 1}[row["source"].decode()[0]] for row in rows)
            sources.append(sorted(rows["source"].tolist()))
        return sources[0], sources[1]

    train, val = split("one", 0)
    assert not set(train) & set(val)
    everything = Digits().listing(["3", "5"]).names.tolist()
    assert sorted(train + val) == sorted(everything)
    for digit in (b"3", b"5"):
        of_class = [name for name in everything if name.startswith(digit)]
        assert sum(name.startswith(digit) for name in val) == round(0.2 * len(of_class))
    assert split("again", 0) == (train, val)
    assert split("other", 1)[1] != val


def test_a_hold_out_leaves_every_class_an_image(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, count in (("a", 1), ("b", 10)):
        (source / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4)).save(source / name / f"{number}.png")
    pack(ClassFolders(source), tmp_path / "out", PackOptions(split="upstream", hold_out=0.9))
    train, val = SampleSet.open(tmp_path / "out/upstream"), SampleSet.open(tmp_path / "out/val")
    assert Counter(train.labels()[:, 0].tolist()) == {0: 1, 1: 1}
    assert Counter(val.labels()[:, 0].tolist()) == {1: 9}
    assert train.classes == val.classes == ("a", "b")
    assert train.shard_names == ("upstream-000000",)


def test_a_hold_out_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--hold-out 0.001: not one image of 364; hold out a larger share"):
        pack(Digits(), tmp_path / "out", PackOptions(hold_out=0.001), classes=["3", "4"])


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """97 coded images of which three cannot be read, for three reasons."""
    source = write_coded(tmp_path / "source")
    (source / "cat/003.png").write_bytes(b"no image")
    (source / "cat/004.webp").unlink()
    (source / "cat/004.webp").symlink_to("nowhere")
    (source / "dog/000.png").write_bytes(png()[:-40])
    return source


def test_unreadable_images_are_listed_and_leave_the_others_where_they_were(damaged: Path, tmp_path: Path) -> None:
    options = PackOptions(shard_samples=23, seed=3, max_rejects=0.04)
    packing = pack(ClassFolders(damaged), tmp_path / "out", options)
    whole = pack(ClassFolders(write_coded(tmp_path / "whole")), tmp_path / "all", options)
    packed = packing.sets[0]
    assert packed.manifest.rejected == len(packed.rejects) == 3
    lines = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert {line["source"]: line["class_name"] for line in lines} == {
        "cat/003.png": "cat",
        "cat/004.webp": "cat",
        "dog/000.png": "dog",
    }
    reasons = {line["source"]: line["reason"] for line in lines}
    assert reasons["cat/003.png"].startswith("not an image in one of")
    assert "No such file" in reasons["cat/004.webp"]
    assert reasons["dog/000.png"].startswith("broken image")
    kept, everything = keys_and_labels(tmp_path / "out"), keys_and_labels(tmp_path / "all")
    assert len(kept) == 94
    assert set(kept) < set(everything)
    assert [shard.name for shard in packed.manifest.shards] == [shard.name for shard in whole.sets[0].manifest.shards]
    assert verify(tmp_path / "out") == []


def test_too_many_unreadable_images_fail_and_leave_nothing(damaged: Path, tmp_path: Path) -> None:
    message = r"3 unreadable images, more than --max-rejects 0.02 of 97 allows. The first: .*: .*; nothing was kept"
    with pytest.raises(PackError, match=message):
        pack(ClassFolders(damaged), tmp_path / "out", PackOptions(max_rejects=0.02))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(("rejects", "images"), [(1, 4), (1, 7), (3, 97), (29, 100), (1, 100_000), (12345, 14_000_000)])
def test_the_named_remedy_suffices_and_is_no_blank_cheque(rejects: int, images: int) -> None:
    share = share_for(rejects, images)
    assert rejects <= int(share * images) <= max(rejects * 1.2, rejects + 1)


def test_nothing_readable_fails(tmp_path: Path) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    (tmp_path / "source/a/b.png").touch()
    with pytest.raises(PackError, match=r"1 unreadable images, more than --max-rejects 0\.99 of 1 allows[^-]*$"):
        pack(ClassFolders(tmp_path / "source"), tmp_path / "out", PackOptions(max_rejects=0.99))


def test_a_shard_of_rejects_alone_is_left_out(damaged: Path, tmp_path: Path) -> None:
    packing = pack(ClassFolders(damaged), tmp_path / "out", PackOptions(shard_samples=1, max_rejects=0.04))
    assert len(packing.sets[0].manifest.shards) == len(list((tmp_path / "out").glob("*.tar"))) == 94
    assert verify(tmp_path / "out") == []


def test_an_existing_folder_is_never_written_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already; remove it, or pack into another folder"):
        pack(Digits(), tmp_path, PackOptions())


def test_more_images_than_keys_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "MAX_SAMPLES", 100)
    with pytest.raises(ValueError, match="1797 images: a set has at most 100; pack parts of it"):
        pack(Digits(), tmp_path / "out", PackOptions())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "a/b"}, "--split 'a/b': it names files"),
        ({"split": ""}, "--split '': it names files"),
        ({"hold_out": 0.0}, "--hold-out 0.0: a share of each class, between 0 and 1"),
        ({"hold_out": 1.0}, "--hold-out 1.0: a share"),
        ({"split": "val", "hold_out": 0.5}, "--hold-out makes a set 'val' beside the one named by --split"),
        ({"shard_samples": 0}, "--shard-samples 0: a shard has at least 1 image"),
        ({"shard_mib": 0.0}, "--shard-mib 0.0: a size above 0, in MiB"),
        ({"seed": -1}, r"--seed -1: a whole number from 0 to 2\^64 - 1"),
        ({"seed": 2**64}, "--seed 18446744073709551616: a whole number"),
        ({"workers": 0}, "--workers 0: at least 1 process"),
        ({"max_rejects": 1.0}, "--max-rejects 1.0: a share of the images, from 0 to below 1"),
        ({"short_side_px": 0}, "--short-side 0: at least 1 pixel"),
        ({"short_side_px": 256, "quality": 96}, "--quality 96: of JPEG, from 1 to 95"),
        ({"quality": 90}, "--quality 90: images keep their bytes; give --short-side PX to change them"),
    ],
)
def test_a_number_out_of_range_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackOptions(**values)  # type: ignore[arg-type]


def test_a_packed_folder_can_be_read_by_others(tmp_path: Path) -> None:
    pack(Digits(), tmp_path / "out", PackOptions(), classes=["0"])
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    assert verify(tmp_path / "moved") == []  # nothing in it knows where it lies
