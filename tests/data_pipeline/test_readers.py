"""A packed folder read, unchanged, by the programs that others use."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from timm.data.dataset_factory import create_dataset

from data_pipeline import manifest
from data_pipeline.foreign import index_shards
from data_pipeline.pack import PackOptions, pack
from data_pipeline.readers import TIMM_FILE, write_clip_benchmark, write_timm
from data_pipeline.samples import SampleSet
from data_pipeline.sources import ClassFolders
from data_pipeline.verify import verify
from tests.data_pipeline.coded import CLASSES, COUNTS, label_of, number_of
from tests.data_pipeline.shards import png, write_shard


def what_it_shows(image: Image.Image) -> tuple[int, int]:
    pixels_3HW = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return int(label_of(pixels_3HW)), int(number_of(pixels_3HW))


EVERY_IMAGE = Counter((label, number) for label, count in enumerate(COUNTS) for number in range(count))


@pytest.mark.parametrize("is_training", [False, True])
def test_timm_reads_a_packed_folder(coded: Path, is_training: bool) -> None:
    dataset = create_dataset("wds/", root=str(coded), split="train", is_training=is_training, batch_size=97)
    assert len(dataset) == 97
    seen: Counter[tuple[int, int]] = Counter()
    for image, target in dataset:
        shown = what_it_shows(image)
        assert shown[0] == target
        seen[shown] += 1
    assert seen == EVERY_IMAGE


def test_timm_reads_shards_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    tar = write_shard(tmp_path / "there/a.tar", {str(key): {"png": png(), "cls": b"%d" % key} for key in range(3)})
    index_shards([tar], tmp_path / "index", "val")
    assert [label for _, label in create_dataset("wds/", root=str(tmp_path / "index"), split="val")] == [0, 1, 2]


def test_timm_reads_lists_of_labels(multi_label_set: Path) -> None:
    dataset = create_dataset("wds/", root=str(multi_label_set), split="train")
    assert [labels for _, labels in dataset] == [[0], [1, 5], [], [4, 3, 2]]


def test_an_info_that_others_wrote_is_left_alone_and_ours_follows_the_set(tmp_path: Path) -> None:
    tar = write_shard(tmp_path / "a.tar", {"1": {"png": png(), "cls": b"1"}})
    (tmp_path / TIMM_FILE).write_text('{"name": "theirs"}')
    index_shards([tar], tmp_path)
    assert (tmp_path / TIMM_FILE).read_text() == '{"name": "theirs"}'
    (tmp_path / TIMM_FILE).unlink()
    loaded = manifest.load(tmp_path)
    write_timm(tmp_path, loaded)
    write_timm(tmp_path, loaded.model_copy(update={"split": "other"}))
    assert list(json.loads((tmp_path / TIMM_FILE).read_text())["splits"]) == ["other"]


def clip_benchmark(data_dir: Path, split: str) -> tuple[webdataset.WebDataset, list[str]]:
    """What `build_wds_dataset` of CLIP_benchmark (clip_benchmark/datasets/builder.py) does with a folder."""
    num_shards = int((data_dir / split / "nshards.txt").read_text())
    pattern = f"{data_dir}/{split}/{{0..{num_shards - 1}}}.tar"
    images = webdataset.autodecode.ImageHandler("pil", extensions=["webp", "png", "jpg", "jpeg"])
    dataset = webdataset.WebDataset(pattern, nodesplitter=lambda shards: shards, shardshuffle=False).decode(images)
    class_names = (data_dir / "classnames.txt").read_text().splitlines()
    return dataset.to_tuple(["webp", "png", "jpg", "jpeg"], "cls"), [line.strip() for line in class_names]


def test_clip_benchmark_reads_a_packed_folder(coded: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(coded, tmp_path / "moved", symlinks=True)
    dataset, class_names = clip_benchmark(moved / "clip_benchmark", "train")
    assert class_names == list(CLASSES)
    shown = [(what_it_shows(image), label) for image, label in dataset]
    assert Counter(each for each, _ in shown) == EVERY_IMAGE
    assert all(label == each[0] for each, label in shown)


def test_a_class_name_stays_one_line(coded: Path, tmp_path: Path) -> None:
    names = ("a\nb", "c\u2028d ", "dog", "eel", "fox")
    write_clip_benchmark(tmp_path, manifest.load(coded).model_copy(update={"classes": names}))
    lines = (tmp_path / "clip_benchmark/classnames.txt").read_text().splitlines()
    assert lines == ["a b", "c d", "dog", "eel", "fox"]


def test_a_multi_label_set_is_not_offered_to_clip_benchmark(multi_label_set: Path, tmp_path: Path) -> None:
    write_clip_benchmark(tmp_path, manifest.load(multi_label_set))
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_other_readers_are_no_part_of_the_set(coded: Path, coded_source: Path, tmp_path: Path) -> None:
    """They are written before the manifest closes the set, are the same bytes each time, and may be left out."""
    pack(ClassFolders(coded_source), tmp_path / "again", PackOptions(shard_samples=23, seed=3))
    for path in (TIMM_FILE, "clip_benchmark/classnames.txt", "clip_benchmark/train/nshards.txt"):
        assert (tmp_path / "again" / path).read_bytes() == (coded / path).read_bytes()
        assert (tmp_path / "again" / path).stat().st_mtime_ns <= (tmp_path / "again/manifest.json").stat().st_mtime_ns
    assert verify(tmp_path / "again") == []
    identity = SampleSet.open(tmp_path / "again").identity
    shutil.rmtree(tmp_path / "again/clip_benchmark")
    (tmp_path / "again" / TIMM_FILE).unlink()
    assert verify(tmp_path / "again") == []
    assert SampleSet.open(tmp_path / "again").identity == identity
