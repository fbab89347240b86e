"""Shards made elsewhere: what is read of them, and what is refused."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import manifest
from data_pipeline.foreign import index_shards
from data_pipeline.samples import SampleSet
from data_pipeline.scan import ShardError, scan
from data_pipeline.verify import verify
from tests.data_pipeline.shards import png, write_shard, write_tar


def sample(key: str, label: int = 0, width_px: int = 8) -> list[tuple[str, bytes]]:
    return [(f"{key}.png", png(width_px)), (f"{key}.cls", str(label).encode())]


def test_shards_stay_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    tars = [
        write_shard(tmp_path / f"there/{shard}.tar", {f"{key}": {"png": png(4 + key), "cls": b"%d" % key}})
        for shard, key in (("a", 1), ("b", 3))
    ]
    indexed = index_shards(tars, tmp_path / "new/out")
    assert indexed.classes == ("0", "1", "2", "3")
    assert sorted(path.name for path in (tmp_path / "new/out").iterdir()) == [
        "_info.json",
        "a.index.npy",
        "b.index.npy",
        "manifest.json",
    ]
    samples = SampleSet.open(tmp_path / "new/out")
    assert [samples.read(shard, 0) for shard in (0, 1)] == [("a/1", "png", png(5), (1,)), ("b/3", "png", png(7), (3,))]
    assert verify(tmp_path / "new/out") == []


def test_an_index_beside_the_shards_moves_with_them(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("x"))
    assert index_shards([tar], tmp_path).shards[0].name == "a.tar"


def test_classes_can_be_named(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("x", 1))
    assert index_shards([tar], tmp_path, classes=["ant", "bee", "cat"]).classes == ("ant", "bee", "cat")
    assert SampleSet.open(tmp_path).num_classes == 3


def test_a_label_outside_the_classes_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    good = write_tar(tmp_path / "a.tar", sample("x", 1))
    bad = write_tar(tmp_path / "b.tar", sample("x", 0) + sample("y", 2))
    with pytest.raises(ValueError, match=r"b.tar: y has label 2, outside the 2 of --classes"):
        index_shards([good, bad], tmp_path / "out", classes=["ant", "bee"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_members_may_stand_in_any_order_among_others(tmp_path: Path) -> None:
    image_1, image_2 = png(5), png(6)
    members = [
        ("d/1.PNG", image_1),
        ("d/2.png", image_2),
        ("d/1.txt", b"a caption"),
        ("d/2.cls", b" 7\n"),
        ("d/1.json", b'{"label": 3, "width": 5}'),
        ("README", b"no sample"),
        ("d/2.seg.png", b"a mask, which is not the image"),
    ]
    rows = scan(write_tar(tmp_path / "a.tar", members)).rows
    assert rows["key"].tolist() == [b"d/1", b"d/2"]
    assert rows["labels"].tolist() == [[3], [7]]
    content = (tmp_path / "a.tar").read_bytes()
    for row, image in zip(rows, (image_1, image_2), strict=True):
        assert content[int(row["image_offset"]) :][: int(row["image_bytes"])] == image


def test_cls_goes_before_json(tmp_path: Path) -> None:
    members = [("1.png", png()), ("1.json", b'{"label": 3}'), ("1.cls", b"4")]
    assert scan(write_tar(tmp_path / "a.tar", members)).rows["labels"].tolist() == [[4]]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read(tmp_path: Path, form: int) -> None:
    key = "folder/" * 20 + "Бабочка"
    tar = write_tar(tmp_path / "a.tar", sample(key, width_px=9), form)
    index_shards([tar], tmp_path)
    found = SampleSet.open(tmp_path).read(0, 0)
    assert found.key == f"a/{key}"
    assert found.image_bytes == png(9)


def test_folders_in_a_tar_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, content in sample("1"):
        (tmp_path / "d" / name).write_bytes(content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "d", "d")
    assert scan(tmp_path / "a.tar").rows["key"].tolist() == [b"d/1"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "no images in it; a sample is KEY.jpg|png|webp with KEY.cls or KEY.json"),
        ([("1.txt", b"")], "no images in it"),
        ([("1.png", png())], "1 has an image but no label (1.cls or 1.json)"),
        ([("1.cls", b"0")], "1 has a label but no image (jpg, jpeg, png, webp)"),
        ([("1.png", b""), ("1.cls", b"0")], "1.png has 0 bytes; an image has 1 to"),
        ([*sample("1"), *sample("1")], "1.png: the key stands twice in the shard; keys must differ"),
        ([*sample("1"), ("1.jpg", b"x")], "1.jpg: the key stands twice in the shard"),
        ([*sample("1"), ("1.cls", b"0")], "1.cls: the key stands twice in the shard"),
        ([("1.png", png()), ("1.cls", b"cat")], "1.cls holds b'cat'; it must be a whole number"),
        ([("1.png", png()), ("1.cls", b"")], "1.cls holds b''; it must be a whole number"),
        ([("1.png", png()), ("1.cls", b"-3")], "1.cls has the label -3; a label is a whole number from 0"),
        ([("1.png", png()), ("1.cls", b"999999999999")], "has the label 999999999999; a label is a whole number"),
        ([("1.png", png()), ("1.json", b"{}")], '1.json holds b\'{}\'; it must be {"label": 3} or {"labels": [3, 7]}'),
        ([("1.png", png()), ("1.json", b"[1]")], "1.json holds b'[1]'; it must be"),
        ([("1.png", png()), ("1.json", b'{"labels": 3}')], "it must be"),
        ([("1.png", png()), ("1.json", b'{"label"')], "it must be"),
        ([("1.png", png()), ("1.json", b'{"label": 1.5}')], "1.json has the label 1.5; a label is a whole number"),
        ([("1.png", png()), ("1.json", b'{"label": true}')], "1.json has the label True; a label is a whole number"),
        ([("1.png", png()), ("1.json", b'{"labels": [2, 2]}')], "1.json has a label twice: [2, 2]"),
        (
            [*sample("1"), ("2.png", png()), ("2.json", b'{"labels": [2]}')],
            "some samples have one label and some a list of labels",
        ),
    ],
)
def test_anything_but_labelled_images_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(ShardError) as caught:
        scan(write_tar(tmp_path / "a.tar", members))
    assert str(caught.value).startswith(str(tmp_path / "a.tar"))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    write_tar(tmp_path / "a.tar", sample("1"))
    member = tarfile.TarInfo("2.png")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        archive.addfile(member)
    with pytest.raises(ShardError, match=r"2.png is a link or a device; a shard holds plain files only"):
        scan(tmp_path / "a.tar")


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"), io.BytesIO())
    with pytest.raises(ShardError, match=r"not a plain tar \(.*\); unpack a compressed one, copy a damaged one again"):
        scan(tmp_path / "a.tar")


def test_a_tar_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """Cut at any byte before its end mark; tarfile and webdataset take some of these cuts for the end."""
    content = write_tar(tmp_path / "whole.tar", [*sample("1"), *sample("2")]).read_bytes()
    end = len(content.rstrip(b"\0"))
    end += -end % 512 + 1024
    cut = tmp_path / "cut.tar"
    for kept in range(0, end, 41):
        cut.write_bytes(content[:kept])
        with pytest.raises(ShardError, match=r"cut off inside|cut off behind|not a plain tar"):
            scan(cut)
    cut.write_bytes(content[:end])
    assert len(scan(cut).rows) == 2


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [*sample("1"), *sample("2")])
    content = bytearray(tar.read_bytes())
    content[content.index(b"2.png")] = ord("3")
    tar.write_bytes(content)
    with pytest.raises(ShardError, match=r"damaged or cut off behind byte \d+; copy or make the shard again"):
        scan(tar)


def test_tars_one_after_the_other_in_a_file_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("1"))
    tar.write_bytes(tar.read_bytes() * 2)
    with pytest.raises(ShardError, match="damaged or cut off behind byte"):
        scan(tar)


def test_a_shard_of_zeros_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(ShardError, match="no images in it"):
        scan(tmp_path / "a.tar")


def test_shards_of_two_kinds_are_refused(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "a.tar", sample("1"))
    lists = write_tar(tmp_path / "b.tar", [("1.png", png()), ("1.json", json.dumps({"labels": [0]}).encode())])
    with pytest.raises(ShardError, match="some shards have a label an image and some have lists; index them apart"):
        index_shards([one, lists], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("1"))
    with pytest.raises(ValueError, match=r"b.tar: no such shard; name the tar files to index"):
        index_shards([tar, tmp_path / "b.tar"], tmp_path / "out")
    with pytest.raises(ValueError, match="two shards are named a, and keys need one name a shard"):
        index_shards([tar, tar], tmp_path / "out")
    index_shards([tar], tmp_path)
    with pytest.raises(ValueError, match=r"has a manifest.json already; remove it, or index into another folder"):
        index_shards([tar], tmp_path)


def test_lists_of_labels_are_kept_whole(multi_label_set: Path) -> None:
    indexed = manifest.load(multi_label_set)
    assert indexed.multi_label
    assert indexed.classes == tuple("012345")
    samples = SampleSet.open(multi_label_set)
    assert [samples.read(0, row).labels for row in range(4)] == [(0,), (1, 5), (), (4, 3, 2)]
    assert np.array_equal(samples.labels(), [[0, -1, -1], [1, 5, -1], [-1, -1, -1], [4, 3, 2]])
    assert verify(multi_label_set) == []
