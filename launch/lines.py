"""A file of JSON objects, one a line, that a kill at any moment leaves usable.

Only whole lines count, and only the end is ever cut:

    {"step": 10, "loss": 2.25}
    {"step": 20, "loss": 1.75}        <- cut(15) drops this line and what follows
    {"step": 30, "lo                  <- torn: the writer was killed here; mend() drops it

JSON knows no NaN and no infinity: such a number is written as null, everywhere (a run's events say which it was).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO


class JsonLines:
    """Appends rows to `path`, which appears with the first row; an appended row outlives this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; floats are written so that they read back to the bit."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(as_json(row) + "\n")
        self._file.flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the whole rows from the first on; none where there is no file."""
        for _, row in self._places():
            yield row

    def mend(self) -> str | None:
        """Drop a torn last line and return its text."""
        end = max((end for end, _ in self._places()), default=0)
        return self._truncate(end) or None

    def cut(self, step: int) -> None:
        """Drop every row after `step`; rows carry rising steps."""
        self._truncate(max((end for end, row in self._places() if row["step"] <= step), default=0))

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _places(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each whole row with the offset, in bytes, of its end."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield end, json.loads(line)

    def _truncate(self, end: int) -> str:
        if not self.path.exists() or self.path.stat().st_size == end:
            return ""
        with self.path.open("rb+") as file:
            file.seek(end)
            rest = file.read().decode(errors="replace")
            file.truncate(end)
        return rest


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: a number that is not finite is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value
