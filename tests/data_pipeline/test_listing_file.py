from pathlib import Path

import pytest

from data_pipeline.listing import Listing
from data_pipeline.listing_file import ListingFile
from data_pipeline.pack import PackOptions, pack
from data_pipeline.samples import SampleSet
from data_pipeline.sources import open_source
from data_pipeline.verify import verify
from tests.data_pipeline.shards import png


def listed(folder: Path, name: str, text: str, classes: list[str] | None = None) -> Listing:
    (folder / name).write_text(text)
    for image in ("a.png", "b c.png", "d,e.png"):
        (folder / image).write_bytes(png())
    return open_source(str(folder / name), None).listing(classes)


def as_dict(listing: Listing) -> dict[str, list[str]]:
    return {
        name.decode(): [listing.classes[label] for label in labels if label >= 0]
        for name, labels in zip(listing.names.tolist(), listing.labels.tolist(), strict=True)
    }


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", 'path,label\na.png,dog\nb c.png,cat\n"d,e.png",cat\n'),
        ("l.csv", '\ufeffClass,width, File\r\ndog,8,a.png\r\ncat,9,b c.png\r\n\r\ncat,,"d,e.png"\r\n'),
        ("l.tsv", "image\tlabel\na.png\tdog\nb c.png\tcat\nd,e.png\tcat\n"),
        (
            "l.jsonl",
            '{"image": "a.png", "label": "dog"}\n\n{"label": "cat", "image": "b c.png"}\n'
            '{"file": "d,e.png", "class": "cat"}',
        ),
    ],
)
def test_paths_and_labels_of_every_kind(tmp_path: Path, name: str, text: str) -> None:
    listing = listed(tmp_path, name, text)
    assert listing.classes == ("cat", "dog")
    assert as_dict(listing) == {"a.png": ["dog"], "b c.png": ["cat"], "d,e.png": ["cat"]}
    assert not listing.multi_label


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = "".join(f'{{"path": "a.png", "label": {number}}}\n' for number in (10, 2, 9))
    assert listed(tmp_path, "l.jsonl", rows).classes == ("2", "9", "10")


def test_classes_are_chosen(tmp_path: Path) -> None:
    text = "path,labels\na.png,dog|cat\nb c.png,cat\nd,dog|eel\n"
    assert as_dict(listed(tmp_path, "l.csv", text, ["eel", "dog"])) == {"a.png": ["dog"], "d": ["dog", "eel"]}
    with pytest.raises(ValueError, match="--classes dgo: the source has no such class; did you mean dog"):
        listed(tmp_path, "l.csv", text, ["dgo"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "path,labels\na.png,dog|cat\nb c.png,\n"),
        ("l.jsonl", '{"path": "a.png", "labels": ["dog", "cat"]}\n{"path": "b c.png", "labels": []}\n'),
    ],
)
def test_several_labels_make_a_multi_label_set(tmp_path: Path, name: str, text: str) -> None:
    listed(tmp_path, name, text)
    packing = pack(ListingFile(tmp_path / name), tmp_path / "out", PackOptions())
    assert packing.sets[0].manifest.multi_label
    assert verify(tmp_path / "out") == []
    samples = SampleSet.open(tmp_path / "out")
    labels = {samples.rows(0)[row]["source"]: samples.read(0, row).labels for row in range(2)}
    assert {name: sorted(each) for name, each in labels.items()} == {b"a.png": [0, 1], b"b c.png": []}


def test_a_hold_out_of_a_multi_label_set_is_a_share_of_all(tmp_path: Path) -> None:
    listed(tmp_path, "l.csv", "path,labels\n" + "a.png,dog|cat\nb c.png,\n" * 5)
    packing = pack(ListingFile(tmp_path / "l.csv"), tmp_path / "out", PackOptions(hold_out=0.3))
    assert [packed.manifest.num_samples for packed in packing.sets] == [7, 3]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "", "l.csv:1: no column path, image, file among"),
        ("l.csv", "a.png,dog\n", "l.csv:1: no column path, image, file among a.png, dog; it needs one path"),
        ("l.csv", "path,kind\n", "l.csv:1: no column label, class, labels among path, kind"),
        ("l.csv", "path,label,labels\n", "l.csv:1: more than one of label, labels among path, label, labels"),
        ("l.csv", "path,label\n", "l.csv: no images in it; each line is a path and its label"),
        ("l.csv", "path,label\nno.png,dog\n", "l.csv:2: no file 'no.png'; paths are relative to "),
        ("l.csv", "path,label\na.png,dog\nb c.png\n", "l.csv:3: 1 columns, the header has 2"),
        ("l.csv", "path,label\na.png,dog\n,dog\n", "l.csv:3: no path; every line names an image"),
        ("l.csv", "path,label\na.png,\n", "l.csv:2: no label for 'a.png'; every image has the name of its class"),
        ("l.csv", "path,labels\na.png,cat|dog|cat\n", "l.csv:2: 'a.png' has a label twice: cat, dog, cat"),
        ("l.csv", 'path,label\n"a.png"x,dog\n', "l.csv:2: .*; write it as CSV with quotes around commas"),
        ("l.jsonl", "path\n", "l.jsonl:1: not a line of JSON"),
        ("l.jsonl", "[1]\n", 'l.jsonl:1: not an object such as {"path": "1.jpg", "label": "cat"}'),
        ("l.jsonl", '{"path": 3, "label": "dog"}\n', "l.jsonl:1: path = 3; it is a text"),
        ("l.jsonl", '{"path": "a.png", "label": true}\n', "l.jsonl:1: label = True; names of classes are texts"),
        ("l.jsonl", '{"path": "a.png", "labels": "dog"}\n', "l.jsonl:1: labels = 'dog'; names of classes are texts"),
        (
            "l.jsonl",
            '{"path": "a.png", "label": "dog"}\n{"path": "a.png", "labels": ["dog"]}\n',
            "l.jsonl:2: some images have a label and some have labels; use one kind",
        ),
        ("l.txt", "path,label\n", "l.txt: not a listing; it ends in .csv, .tsv, .jsonl"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, name, text)


def test_a_file_that_is_gone_is_a_reject_with_its_path(tmp_path: Path) -> None:
    listed(tmp_path, "l.csv", "path,label\na.png,dog\ngone.png,cat\n")
    rejects = pack(ListingFile(tmp_path / "l.csv"), tmp_path / "out", PackOptions(max_rejects=0.5)).sets[0].rejects
    assert [(reject.source, reject.class_name) for reject in rejects] == [("gone.png", "cat")]
    assert "No such file" in rejects[0].reason
    assert ListingFile(tmp_path / "l.csv").size_bytes(b"gone.png") == 0
    assert ListingFile(tmp_path / "l.csv").size_bytes(b"a.png") == len(png())
