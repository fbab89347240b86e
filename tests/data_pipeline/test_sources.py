import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.decode import decode
from data_pipeline.sources import ClassFolders, Digits, open_source
from tests.data_pipeline.coded import CLASSES, COUNTS


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_class_folders_are_listed_sorted_and_deep(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/deep/er/1.png", "a/x.webp", "a/W.tiff", "b/notes.txt", "b/.hidden.png", "c/.keep"):
        touch(tmp_path / name)
    touch(tmp_path / "c/1.jpeg")
    touch(tmp_path / ".git/1.jpeg")
    touch(tmp_path / "readme.md")
    listing = ClassFolders(tmp_path).listing(None)
    assert listing.classes == ("a", "b", "c")
    assert listing.names.tolist() == [b"a/W.tiff", b"a/x.webp", b"b/2.JPG", b"b/deep/er/1.png", b"c/1.jpeg"]
    assert listing.labels[:, 0].tolist() == [0, 0, 1, 1, 2]
    assert listing.ignored == {".txt": 1, ".png": 1, ".keep": 1}


def test_classes_are_chosen_and_numbered_in_the_order_given(coded_source: Path) -> None:
    listing = ClassFolders(coded_source).listing(["eel", "bee"])
    assert listing.classes == ("eel", "bee")
    assert np.bincount(listing.labels[:, 0]).tolist() == [COUNTS[4], COUNTS[1]]
    assert all(name.startswith(CLASSES[4].encode()) for name in listing.names.tolist()[: COUNTS[4]])


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"bytes")
    source = ClassFolders(tmp_path)
    assert source.read(source.listing(None).names.tolist()[0]) == b"bytes"


def test_a_split_folder_is_found_by_its_name(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        touch(tmp_path / name)
    assert open_source(str(tmp_path), "train") == ClassFolders(tmp_path / "train")
    with pytest.raises(ValueError, match="holds train, test; name the one to pack with --split train"):
        open_source(str(tmp_path), None).listing(None)
    with pytest.raises(ValueError, match="holds train, test; name the one to pack with --split train"):
        open_source(str(tmp_path), "val").listing(None)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """CIFAR-100 has one."""
    for name in ("train/1.png", "train/more/2.png", "truck/1.png"):
        touch(tmp_path / name)
    assert open_source(str(tmp_path), "train").listing(None).classes == ("train", "truck")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"nosuch: no such folder; SOURCE is a folder, a listing of images, or the word digits"
    ):
        open_source(str(tmp_path / "nosuch"), None)


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "1.png")
    with pytest.raises(ValueError, match="no class folders in it; put the images of each class in a folder of its own"):
        ClassFolders(tmp_path).listing(None)


def test_class_folders_without_images_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "a/1.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in the class folder empty; fill or remove"):
        ClassFolders(tmp_path).listing(None)
    touch(tmp_path / "texts/1.txt")
    with pytest.raises(ValueError, match="no images in the class folders empty, texts; fill or remove"):
        ClassFolders(tmp_path).listing(None)
    assert ClassFolders(tmp_path).listing(["a"]).classes == ("a",)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["ant", "bees"], "--classes bees: the source has no such class; did you mean bee?"),
        (["zebra"], "--classes zebra: the source has no such class; there are ant, bee, cat, dog, eel"),
        (["ant", "ant"], "--classes ant: named twice; a class has one label"),
    ],
)
def test_wrong_classes_are_refused(coded_source: Path, classes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        ClassFolders(coded_source).listing(classes)


def test_the_digits_are_1797_grey_pictures() -> None:
    digits = Digits()
    listing = digits.listing(None)
    assert listing.classes == tuple("0123456789")
    assert np.bincount(listing.labels[:, 0]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    pictures = [np.asarray(decode(digits.read(name))) for name in listing.names.tolist()]
    assert {picture.shape for picture in pictures} == {(8, 8, 3)}
    # The mean of the data set as scikit-learn has it: 4.884 of 16 levels.
    assert abs(np.mean(pictures) / (255 / 16) - 4.8842) < 1e-2
    assert np.max(pictures) == 255
    assert len({picture.tobytes() for picture in pictures}) == 1797


def test_a_digit_looks_like_itself() -> None:
    picture = np.asarray(decode(Digits().read(b"0/0000.png")))[..., 0]
    assert picture[2:6, 3:5].max() < 40 < 120 < picture[2:6, 2].min()  # the hole of a nought, and the stroke beside it


def test_sizes_are_those_of_the_bytes(coded_source: Path) -> None:
    for source in (Digits(), ClassFolders(coded_source)):
        name = source.listing(None).names.tolist()[3]
        assert source.size_bytes(name) == len(source.read(name))


def test_digits_are_grey_png() -> None:
    image = Image.open(io.BytesIO(Digits().read(b"7/0007.png")))
    assert (image.format, image.mode) == ("PNG", "L")
