"""The README is true: its commands are run here, in order, on a folder of photos; its paths exist."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ranks import Ranks, command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRIED_ELSEWHERE = {
    "git clone": "a checkout is where this test stands",
    "make demo": "launch.demo's own test; `make demo` itself on a clean checkout, by hand",
    "tensorboard": "a server; that its files can be read is tests/launch/test_run.py's",
}
SHORT = {  # the same command on less work
    "configs/pretrain/photos.yaml": ["run.epochs=1", "vit.depth=1", "data.workers=0"],
    "configs/finetune/photos.yaml": ["run.steps=2", "data.workers=0"],
}


def commands(kind: str) -> list[str]:
    """The commands of every code block of a kind, without their comments."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def in_folder(folder: Path, module: str, arguments: list[str]) -> None:
    """`python -m MODULE ARGUMENTS` with `folder` as the current one."""
    os.chdir(folder)
    command(module, arguments)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a checkout, with thirty photos of two classes in PHOTOS."""
    folder = tmp_path_factory.mktemp("clone")
    for entry in ROOT.iterdir():
        if entry.name not in ("data", "runs") and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    dice = np.random.Generator(np.random.Philox(0))
    for label, name in enumerate(("cats", "dogs")):
        (folder / "PHOTOS" / name).mkdir(parents=True)
        for number in range(15):
            pixels = dice.integers(0, 100, (40, 50, 3), dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(folder / "PHOTOS" / name / f"{number}.jpg")
    return folder


def test_its_commands_run_in_order(clone: Path) -> None:
    ran = 0
    for line in commands("sh"):
        if any(line.startswith(start) for start in TRIED_ELSEWHERE):
            continue
        python, dash_m, module, *arguments = shlex.split(line)
        assert (python, dash_m) == ("python", "-m"), line
        for recipe, overrides in SHORT.items():
            if recipe in arguments:
                arguments += [each for each in overrides if each.split("=")[0] not in line]
        with Ranks([{"PYTHONPATH": str(ROOT)}], in_folder, (clone, module, arguments)) as process:
            (code,) = process.wait()
            assert code == 0, "\n".join([line, *process.output(0)])
        ran += 1
    assert ran == 8
    assert (clone / "data/photos/train/contact_sheet.png").is_file()
    assert (clone / "runs/photos-96px/result.json").is_file()
    assert (clone / "runs/short/result.json").is_file()


def test_the_cluster_commands_name_what_exists() -> None:
    """That torchrun's form works is tests/pretrain/test_torchrun.py's."""
    lines = commands("sh cluster")
    assert [shlex.split(line)[0] for line in lines] == ["srun", "torchrun"]
    for line in lines:
        assert "-m pretrain configs/pretrain/vit_h14_in21k.yaml" in line


def test_every_path_that_it_names_exists() -> None:
    named = set(re.findall(r"`((?:configs|vit|data_pipeline|launch|pretrain|finetune|tests)/[\w./]+)`", README))
    named |= {f"configs/{kind}/{name}" for kind in ("pretrain", "finetune") for name in _recipes_named(kind)}
    assert len(named) > 12
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_recipe_is_named() -> None:
    for kind in ("pretrain", "finetune"):
        assert _recipes_named(kind) == {path.name for path in (ROOT / "configs" / kind).glob("*.yaml")}


def _recipes_named(kind: str) -> set[str]:
    rows = [line for line in README.splitlines() if line.startswith("| `configs/")]
    names = [(name, row) for row in rows for name in re.findall(r"([\w]+\.yaml)", row)]
    return {
        name
        for name, row in names
        if f"configs/{kind}/{name}" in row or (row.startswith(f"| `configs/{kind}/") and f"`{name}`" in row)
    }


def test_no_figure_is_left_open() -> None:
    """A receipt says what was seen, or "not yet run"."""
    for path in (ROOT / "README.md", *(ROOT / "configs").glob("*/*.yaml")):
        assert not re.findall(r"\b(?:[A-Z]{3,}_(?:TABLE|RESULT|TIME|MINUTES)|TODO|XXX)\b", path.read_text()), path
    for path in (ROOT / "configs").glob("*/*.yaml"):
        header = path.read_text().partition("\n\n")[0]
        for part in ("# command ", "# hardware ", "# time ", "# result "):
            assert f"\n{part}" in header, (path, part)
