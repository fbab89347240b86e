"""The words a person reads while a run runs."""

import sys

import pytest

from launch.progress import Progress, duration, in_words

METRICS = {"loss": 1.23456, "lr": 8.1e-4, "images_per_s": 412.4, "data_wait_frac": 0.031, "grad_norm": 3.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("launch.progress.time.monotonic", lambda: now[0])
    return now


def test_line(clock: list[float]) -> None:
    progress = Progress(first=100, steps=400)
    clock[0] += 3  # 20 steps in 3 s, 280 to go
    line = "step 120/400  loss 1.2346  lr 8.1e-04  412 images/s  data wait 3 %  0:42 left"
    assert progress.line(120, METRICS) == line


def test_time_left_forgets_the_slow_start(clock: list[float]) -> None:
    progress = Progress(first=0, steps=100)
    clock[0] += 50  # compiling
    assert progress.line(10, {}).endswith("7:30 left")
    clock[0] += 10
    assert progress.line(20, {}).endswith("1:20 left")
    clock[0] += 30
    assert progress.line(30, {}).endswith("2:20 left")


def test_the_last_line_has_no_time_left(clock: list[float]) -> None:
    assert Progress(first=0, steps=5).line(5, {"loss": 0.5}) == "step 5/5  loss 0.5000"


def test_words_of_a_validation() -> None:
    metrics = {"val_top1": 0.61234, "val_top5": 0.9, "val_loss": 1.23456}
    assert in_words(metrics) == "top-1 61.23 %  top-5 90.00 %  validation loss 1.2346"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0:00"),
        (42, "0:42"),
        (754, "12:34"),
        (3723, "1:02:03"),
        (86400 + 59, "1 day 0:00:59"),
        (180000, "2 days 2:00:00"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plain = Progress(first=0, steps=10)
    plain.line(5, METRICS)
    assert not plain.on_terminal
    assert capsys.readouterr().out == ""  # the caller shows the line

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with_bar = Progress(first=0, steps=10)
    with_bar.line(5, METRICS)
    with_bar.show("a word in between")
    with_bar.close()
    shown = capsys.readouterr().out
    assert with_bar.on_terminal
    assert "█" in shown and "loss 1.2346" in shown and "a word in between\n" in shown
