import sys

import pytest

from data_pipeline import progress as progress_module
from data_pipeline.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_a_log_gets_a_plain_line_every_ten_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("packing", 100) as progress:
        for _ in range(10):
            clock.now_s += 4
            progress.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "packing: 30/100 images, 2 images/s, 28 s left",
        "packing: 60/100 images, 2 images/s, 16 s left",
        "packing: 90/100 images, 2 images/s, 4 s left",
        "packing: 100/100 images, 2 images/s, 0 s left",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("verifying", 4, "shards") as progress:
        progress.advance(4)
    shown = capsys.readouterr().err
    assert "verifying: 100%" in shown
    assert "4/4" in shown
    assert "s left" not in shown
