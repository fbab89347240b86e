"""What a fresh clone stands on: the lock fits pyproject.toml and needs PyPI alone; plain make tells what it can do."""

import re
import subprocess
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HOUSE = Path(__file__).parents[1]
PROJECT = tomllib.loads((HOUSE / "pyproject.toml").read_text())
LOCK = tomllib.loads((HOUSE / "uv.lock").read_text())
LOCKED = {package["name"]: package for package in LOCK["package"]}


def stated(requirements: list[str]) -> set[tuple[str, str]]:
    parsed = map(Requirement, requirements)
    return {(canonicalize_name(requirement.name), str(requirement.specifier)) for requirement in parsed}


def locked(requirements: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(requirement["name"], requirement.get("specifier", "")) for requirement in requirements}


def test_the_lock_was_made_for_this_project() -> None:
    metadata = LOCKED[PROJECT["project"]["name"]]["metadata"]
    remedy = "pyproject.toml changed: write the lock anew with `.uv/bin/uv lock`"
    assert locked(metadata["requires-dist"]) == stated(PROJECT["project"]["dependencies"]), remedy
    assert locked(metadata["requires-dev"]["test"]) == stated(PROJECT["dependency-groups"]["test"]), remedy
    assert LOCK["requires-python"] == PROJECT["project"]["requires-python"], remedy


def test_the_lock_needs_pypi_alone() -> None:
    sources = {str(package["source"]) for name, package in LOCKED.items() if name != PROJECT["project"]["name"]}
    assert sources == {"{'registry': 'https://pypi.org/simple'}"}


def test_plain_make_says_what_it_can_do() -> None:
    said = subprocess.run(["make", "-C", HOUSE], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make (\w+)", said, re.MULTILINE)) == {"demo", "test", "setup", "clean"}


def test_make_refuses_an_unknown_torch() -> None:
    refused = subprocess.run(["make", "-C", HOUSE, "setup", "TORCH=mine"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "TORCH is locked or system, not mine" in refused.stderr


def test_the_distribution_holds_every_room_with_its_files() -> None:
    setuptools = PROJECT["tool"]["setuptools"]
    rooms = {path.parent.name for path in HOUSE.glob("*/__init__.py")} - {"tests"}
    assert set(setuptools["packages"]) == rooms
    patterns = [f"{room}/{pattern}" for room, each in setuptools["package-data"].items() for pattern in each]
    held = {path for pattern in patterns for path in HOUSE.glob(pattern)}
    others = {path for room in rooms for path in HOUSE.glob(f"{room}/**/*.*") if path.suffix not in (".py", ".pyc")}
    assert others == held
