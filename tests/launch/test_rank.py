"""What a rank's end looks like from outside: one line, one exit code."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from launch.failures import WATCHED, notes
from launch.rank import refused, run_rank
from launch.run import Run, RunConfig
from launch.world import World


class Config(BaseModel):
    run: RunConfig


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in World.detect({}).variables():
        monkeypatch.setenv(name, "")  # run_rank exports them: taken back after the test
    return Config(run=RunConfig(folder=tmp_path / "run", steps=5))


def ending_with(error: BaseException | None) -> Any:
    def train(run: Run) -> dict[str, Any]:
        if error is not None:
            raise error
        return {"step": 5, "length": {"steps": 5}}

    return train


class SampleError(Exception):
    """Says all in its message."""


ALONE = World(0, 1, 0, 1, "127.0.0.1", 20_000)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, 0, ""),
        (RuntimeError("first line\nsecond\nthird"), 1, "error: first line (rank 0; traceback in {log})\n"),
        (SampleError("a/1: is broken"), 1, "error: a/1: is broken (rank 0; traceback in {log})\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (rank 0; traceback in {log})\n"),
        (MemoryError(), 1, "error: MemoryError (rank 0; traceback in {log})\n"),
        (
            KeyboardInterrupt(),
            130,
            "error: interrupted; the same command continues from the last checkpoint\n",
        ),
    ],
)
def test_every_end_is_a_code_and_a_line(
    config: Config, error: BaseException | None, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_rank("pretrain", config, ALONE, (), ending_with(error)) == code
    log = config.run.folder / "logs" / "rank-00000.log"
    assert capsys.readouterr().err == line.format(log=log)
    if isinstance(error, Exception):
        assert "Traceback" in log.read_text()
        assert notes(log.parent, 0.0)[0].rank == 0


@pytest.mark.parametrize("error", [RuntimeError("connection closed by peer"), KeyboardInterrupt()])
def test_under_a_launcher_that_watches_it_is_the_one_to_speak(
    config: Config, error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WATCHED, "1")
    assert run_rank("pretrain", config, ALONE, (), ending_with(error)) in (1, 130)
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_opened_is_said_without_a_log(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config.run.folder.write_text("a file")
    assert run_rank("pretrain", config, ALONE, (), ending_with(None)) == 1
    shown = capsys.readouterr().err
    assert "run is a file" in shown and "traceback" not in shown and shown.count("\n") == 1


def test_what_cannot_be_read_is_said_with_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(PermissionError(13, "Permission denied", "data/train/manifest.json")) == 2
    assert refused(ValueError("data.batch = 0: must be positive")) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: data/train/manifest.json: Permission denied",
        "error: data.batch = 0: must be positive",
    ]
