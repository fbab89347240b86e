"""Where a run's checkpoints lie and what their manifests say; read without torch, so that `--check` can judge them.

RUN/checkpoints/
    step-00000500/                 resumes at batch 500
        rank-00000.safetensors     what rank 0 wrote (see checkpoint.py)
        rank-00001.safetensors
        manifest.json              format, facts (step, ranks, stage, versions), size and sha256 of every file
    step-00001000.tmp/             being written, or what a killed job left; never read, removed at the next start
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

CHECKPOINTS = "checkpoints"  # in the folder of a run
FORMAT = 1
READER = "vit-at-scale >= 0.1.0"  # what reads this format, for those that do not


class CheckpointError(ValueError):
    """A checkpoint that cannot be used for what was asked of it."""


class Manifest(NamedTuple):
    """What closes a checkpoint."""

    facts: dict[str, Any]
    files: dict[str, dict[str, Any]]  # name -> bytes, sha256


class UnknownFormatError(CheckpointError):
    """A checkpoint of another version: whole, but not to be read, passed over or replaced by this one."""


def folder_name(step: int) -> str:
    """The folder of the checkpoint that resumes at batch `step`."""
    return f"step-{step:08d}"


def steps_on_disk(root: Path) -> list[int]:
    """Steps of the finished checkpoints under `root`, rising."""
    names = (re.fullmatch(r"step-(\d{8,})", path.name) for path in root.iterdir()) if root.is_dir() else ()
    return sorted(int(match[1]) for match in names if match)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished checkpoint; raises CheckpointError when it cannot be read, also of an unknown
    format."""
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_bytes())
        form, reader = content["format"], content.get("readable_by", "another version of vit-at-scale")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint manifest ({error})") from None
    if form != FORMAT:
        raise UnknownFormatError(f"{path}: format {form} is read by {reader}; this version reads format {FORMAT}")
    return Manifest(content["facts"], content["files"])


def judge(root: Path) -> None:
    """Raise UnknownFormatError when a checkpoint under `root` is of a format that this version does not read."""
    for step in steps_on_disk(root):
        try:
            read_manifest(root / folder_name(step))
        except UnknownFormatError:
            raise
        except CheckpointError:
            continue  # damaged: a resume passes it over, and says so


def prune(root: Path, keep: int, keep_every_steps: int | None) -> list[int]:
    """Remove finished checkpoints but the `keep` newest and those at multiples of `keep_every_steps`.

    Returns the steps removed.
    """
    older = steps_on_disk(root)[: -max(2, keep)]
    removed = [step for step in older if not (keep_every_steps and step % keep_every_steps == 0)]
    for step in removed:
        folder = root / folder_name(step)
        doomed = folder.with_name(folder.name + ".tmp")  # a half-removed checkpoint must not look finished
        folder.rename(doomed)
        shutil.rmtree(doomed)
    return removed


def remove_unfinished(root: Path) -> None:
    """Remove what killed jobs left half-written."""
    for leftover in root.glob("step-*.tmp"):
        shutil.rmtree(leftover)
