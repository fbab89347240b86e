"""A kill at any byte leaves whole lines; the end is cut by step, and what is written reads back to the bit."""

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from launch.lines import JsonLines

ROWS: list[dict[str, Any]] = [
    {"step": 10, "loss": 2.5, "skipped": True},
    {"step": 20, "loss": None},
    {"step": 30, "text": "ä\n"},
]


@pytest.fixture
def lines(tmp_path: Path) -> JsonLines:
    written = JsonLines(tmp_path / "deep" / "metrics.jsonl")
    for row in ROWS:
        written.append(row)
    return written


def test_a_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "none.jsonl")
    assert list(lines.rows()) == [] and lines.mend() is None
    lines.cut(5)
    assert not lines.path.exists()


def test_a_kill_at_any_byte_loses_at_most_the_line_it_tore(lines: JsonLines) -> None:
    whole = lines.path.read_bytes()
    for kept in range(len(whole) + 1):
        lines.path.write_bytes(whole[:kept])
        complete = whole[:kept].count(b"\n")
        torn = whole[:kept].split(b"\n")[-1]
        assert lines.mend() == (torn.decode(errors="replace") or None)
        assert lines.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:complete])
        lines.append({"step": 99})
        assert [row["step"] for row in lines.rows()] == [row["step"] for row in ROWS[:complete]] + [99]


@pytest.mark.parametrize(("step", "left"), [(0, []), (9, []), (10, [10]), (25, [10, 20]), (30, [10, 20, 30])])
def test_cut_drops_what_follows_a_step(lines: JsonLines, step: int, left: list[int]) -> None:
    lines.cut(step)
    lines.append({"step": 99})
    assert [row["step"] for row in lines.rows()] == [*left, 99]


def test_floats_read_back_to_the_bit(tmp_path: Path) -> None:
    draw = random.Random(1)
    floats = [struct.unpack("d", draw.randbytes(8))[0] for _ in range(1000)]
    lines = JsonLines(tmp_path / "floats.jsonl")
    lines.append({"step": 1, "values": floats})
    [row] = lines.rows()
    assert [struct.pack("d", x) for x in row["values"] if x == x] == [struct.pack("d", x) for x in floats if x == x]


def test_every_line_is_json_whatever_the_numbers(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl")
    lines.append({"step": 1, "loss": math.nan, "norms": [1.0, math.inf], "val": {"loss": -math.inf}})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    row = json.loads(lines.path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "norms": [1.0, None], "val": {"loss": None}}


def test_a_row_outlives_the_writer(lines: JsonLines) -> None:
    assert len(lines.path.read_text().splitlines()) == 3  # the file is still open
    assert json.loads(lines.path.read_text().splitlines()[2]) == ROWS[2]
