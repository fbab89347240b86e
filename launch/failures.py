"""Who failed first. One rank fails, then all that wait for it: each leaves a note with the time, and the earliest is
the cause.

    RUN/logs/rank-00001.failed        {"time": 1763658000.25, "rank": 1, "reason": "the disk is on fire"}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

WATCHED = "RANKS_ARE_WATCHED"
"""Set in the environment of ranks whose launcher tells what failed; then they leave it to the launcher."""


class Failure(NamedTuple):
    """A rank's end; the earliest comes first."""

    time: float  # seconds since 1970
    rank: int
    reason: str


def is_watched(env: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher reads the notes and tells the cause."""
    return bool(env.get(WATCHED))


def reason_of(error: BaseException) -> str:
    """The first line of what an exception says; before it the name of Python's own, such as KeyError: 'x'."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    speaks_for_itself = isinstance(error, ValueError | RuntimeError | OSError) or type(error).__module__ != "builtins"
    if first and speaks_for_itself:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def leave_note(logs: Path, failure: Failure) -> None:
    """Write a rank's note, whole or not at all."""
    temporary = _note(logs, failure.rank).with_suffix(".tmp")
    temporary.write_text(json.dumps(failure._asdict()) + "\n", encoding="utf-8")
    temporary.replace(_note(logs, failure.rank))


def remove_note(logs: Path, rank: int) -> None:
    """Take away what an earlier start of the rank left."""
    _note(logs, rank).unlink(missing_ok=True)


def notes(logs: Path, since: float) -> list[Failure]:
    """All notes left after `since`, the earliest first."""
    found = [Failure(**json.loads(path.read_text(encoding="utf-8"))) for path in logs.glob("rank-*.failed")]
    return sorted(failure for failure in found if failure.time >= since)


def _note(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank:05}.failed"
