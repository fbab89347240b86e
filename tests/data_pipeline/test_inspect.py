from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline import inspect as inspect_module
from data_pipeline.contact_sheet import IMAGES_A_CLASS, MAX_CLASSES, THUMB_PX, contact_sheet
from data_pipeline.inspect import inspect, text
from data_pipeline.pack import PackOptions, pack
from data_pipeline.samples import SampleSet
from data_pipeline.sources import ClassFolders
from tests.data_pipeline.coded import CLASSES, COUNTS, red_and_green


def test_a_report_has_the_numbers_of_the_set(coded: Path) -> None:
    report = inspect(coded)
    assert (report.samples, report.classes, report.shards, report.blocks) == (97, 5, 5, 13)
    assert report.images_of_class == dict(zip(CLASSES, COUNTS, strict=True))
    samples = SampleSet.open(coded)
    sizes = [len(samples.read(*samples.locate(place)).image_bytes) for place in range(97)]
    assert report.image_bytes == sum(sizes)
    assert report.image_bytes_median == int(np.median(sizes))
    assert report.width_px == (9, 10, 12)
    assert report.height_px == (8, 8, 8)


def test_the_text_says_what_the_report_says(coded: Path) -> None:
    report = inspect(coded)
    lines = text(report).splitlines()
    assert lines[0].endswith("coded: 97 images, 5 classes, split train")
    assert "5 (0.0 MiB of images), 13 blocks" in lines[1]
    assert "width 9-12 (median 10) px, height 8 px; 0 rejected at packing" in lines[2]
    assert f"mixing   {report.mixing:.2f} of a shuffled set's" in lines[3]
    assert "11 to 31 images, 19.4 on average" in lines[4]
    assert lines[5].split() == ["31", "#" * 30, "cat"]


def test_a_long_list_of_classes_is_cut(coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_module, "MAX_SHOWN_CLASSES", 4)
    lines = text(inspect(coded)).splitlines()
    assert [line.split()[-1] for line in lines[5:7]] == ["cat", "ant"]
    assert lines[-1] == "    ... and 3 classes more (--json has all)"


def test_a_badly_mixed_set_is_told_so(coded: Path) -> None:
    report = inspect(coded)
    assert report.mixed_well
    worse = type(report)(**{**vars(report), "mixing": 0.3, "mixed_well": False})
    assert "  mixing   0.30 of a shuffled set's, under 0.9: training would see class after class; pack" in text(worse)


def test_images_that_do_not_decode_are_not_measured(broken_set: Path) -> None:
    assert inspect(broken_set).width_px == (8, 8, 8)


def test_the_contact_sheet_has_a_row_of_its_own_images_for_each_class(coded: Path) -> None:
    sheet = contact_sheet(SampleSet.open(coded), "a title")
    pixels = np.asarray(sheet)
    colours = {(red, green) for red, green, _ in pixels.reshape(-1, 3).tolist()}
    shown = [{red_and_green(label, number) for number in range(count)} & colours for label, count in enumerate(COUNTS)]
    assert [len(each) for each in shown] == [IMAGES_A_CLASS] * 5
    tops = []
    for each in shown:
        rows = np.flatnonzero([any((red, green) in each for red, green, _ in row) for row in pixels[:, ::40].tolist()])
        assert rows.max() - rows.min() < THUMB_PX
        tops.append(rows.min())
    assert tops == sorted(tops)


def test_the_contact_sheet_of_many_long_named_classes_stays_a_picture(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "source" / f"{number:02d} a class with a name that is much too long for its column"
        folder.mkdir(parents=True)
        Image.new("RGB", (50, 5), (number, 0, 0)).save(folder / "0.png")
    pack(ClassFolders(tmp_path / "source"), tmp_path / "out", PackOptions())
    sheet = contact_sheet(SampleSet.open(tmp_path / "out"), "t" * 500)
    assert sheet.width < 1100
    assert sheet.height < (MAX_CLASSES + 1) * (THUMB_PX + 10)


def test_an_image_that_does_not_decode_is_grey_on_the_contact_sheet(broken_set: Path) -> None:
    sheet = np.asarray(contact_sheet(SampleSet.open(broken_set), ""))
    assert ((sheet == 128).all(axis=2)).sum() >= THUMB_PX**2
