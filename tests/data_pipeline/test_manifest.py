import json
import shutil
import tomllib
from pathlib import Path

import pytest

from data_pipeline import manifest
from data_pipeline.manifest import Manifest, ManifestError
from data_pipeline.samples import SampleSet


@pytest.fixture
def copy(coded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(coded, tmp_path / "copy"))


def edit(folder: Path, **values: object) -> None:
    path = folder / manifest.FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_is_saved_is_loaded(coded: Path, tmp_path: Path) -> None:
    loaded = manifest.load(coded)
    manifest.save(tmp_path, loaded)
    assert manifest.load(tmp_path) == loaded
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert loaded.num_samples == 97


def test_the_version_in_manifests_is_the_project_s() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"{project['name']} {project['version']}" == manifest.WRITTEN_BY


def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        ManifestError, match=r"nosuch: no such folder; make it with: python -m data_pipeline pack SOURCE"
    ):
        manifest.load(tmp_path / "nosuch")


def test_a_folder_of_sets_is_no_set(digits: Path) -> None:
    with pytest.raises(ManifestError, match="not a packed set itself, but train, val inside it are: name one of those"):
        manifest.load(digits)


def test_tars_without_a_manifest_are_to_be_indexed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(ManifestError, match=r"holds tars but no manifest.json; make it with: .* index"):
        manifest.load(tmp_path)


def test_any_other_folder_is_to_be_packed(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"not a packed set \(no manifest.json\); make one with"):
        manifest.load(tmp_path)


def test_a_broken_manifest_is_refused(copy: Path) -> None:
    (copy / manifest.FILE_NAME).write_text('{"format": 1, "spl')
    with pytest.raises(ManifestError, match="not a readable manifest"):
        manifest.load(copy)


def test_an_unknown_format_names_the_version_that_reads_it(copy: Path) -> None:
    edit(copy, format=2, written_by="vit-at-scale 9.9.0")
    with pytest.raises(ManifestError, match=r"format = 2, written by vit-at-scale 9.9.0; this version reads format 1"):
        manifest.load(copy)


@pytest.mark.parametrize("text", ["[]", '{"shards": []}'])
def test_something_else_than_a_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / manifest.FILE_NAME).write_text(text)
    with pytest.raises(ManifestError, match="format = None, written by an unknown version"):
        manifest.load(copy)


def test_a_wrong_field_is_named(copy: Path) -> None:
    edit(copy, block_samples="8")
    with pytest.raises(ManifestError, match="block_samples: Input should be a valid integer"):
        manifest.load(copy)


def test_two_shards_of_one_name_are_refused(copy: Path) -> None:
    shards = json.loads((copy / manifest.FILE_NAME).read_text())["shards"]
    edit(copy, shards=[shards[0], {**shards[0], "name": "/elsewhere/train-000000.tar"}])
    with pytest.raises(ManifestError, match="two shards are named train-000000, and keys need one name a shard"):
        manifest.load(copy)


@pytest.mark.parametrize("suffix", ["tar", "index.npy"])
def test_a_missing_file_is_named(copy: Path, suffix: str) -> None:
    (copy / f"train-000001.{suffix}").unlink()
    with pytest.raises(ManifestError, match=f"does not match its shards: train-000001.{suffix} is missing; copy"):
        SampleSet.open(copy).check()


@pytest.mark.parametrize("suffix", ["tar", "index.npy"])
def test_a_file_of_another_size_is_named_and_all_are_counted(copy: Path, suffix: str) -> None:
    for shard in (1, 2):
        with (copy / f"train-00000{shard}.{suffix}").open("ab") as file:
            file.write(b"\0")
    with pytest.raises(ManifestError, match=rf"train-000001.{suffix} has \d+ bytes, not \d+ \(and 1 more\)"):
        SampleSet.open(copy).check()


def test_a_set_as_it_was_packed_passes(coded: Path) -> None:
    SampleSet.open(coded).check()


def test_thousands_of_shards_load_at_once(tmp_path: Path, coded: Path) -> None:
    loaded = manifest.load(coded)
    shards = tuple(loaded.shards[0].model_copy(update={"name": f"train-{number:06d}.tar"}) for number in range(30_000))
    manifest.save(tmp_path, Manifest(split="train", classes=loaded.classes, shards=shards))
    assert manifest.load(tmp_path).num_samples == 30_000 * 23
