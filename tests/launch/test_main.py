"""The command line: what it starts, what it refuses, and that asking it anything needs no torch."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import launch.__main__ as command_line
from launch.doctor import Finding
from launch.local import LaunchError


def test_local_starts_the_module_by_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def launch_local(*arguments: object) -> int:
        calls.append(arguments)
        return 75

    monkeypatch.setattr(command_line, "launch_local", launch_local)
    words = ["local", "--ranks", "2", "pretrain", "a.yaml", "optim.lr=-1", "run.folder=runs/a b"]
    assert command_line.main(words) == 75
    command = [sys.executable, "-m", "pretrain"]
    assert calls == [(command, Path("a.yaml"), ["optim.lr=-1", "run.folder=runs/a b"], 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["local", "pretrain", "a.yaml"], "the following arguments are required: --ranks"),
        (["local", "--ranks", "0", "pretrain", "a.yaml"], "0: must be a whole number, 1 or more"),
        (["local", "--ranks", "-1", "pretrain", "a.yaml"], "-1: must be a whole number, 1 or more"),
        (["local", "--ranks", "2", "predict", "a.yaml"], "invalid choice: 'predict'"),
        (["local", "--ranks", "2", "pretrain", "a.yaml", "--check"], "unrecognized arguments: --check"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_words_are_exit_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(LaunchError("too many ranks"), 2), (OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 1)],
)
def test_errors_are_one_line(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> int:
        raise error

    monkeypatch.setattr(command_line, "launch_local", fail)
    assert command_line.main(["local", "--ranks", "1", "finetune", "a.yaml"]) == code
    shown = capsys.readouterr().err
    assert shown == f"error: {str(error) or 'interrupted before any rank was started'}\n"


@pytest.mark.parametrize(("mark", "code"), [("ok", 0), ("note", 0), ("STOP", 1)])
def test_doctor_exits_by_what_it_found(
    mark: Literal["ok", "note", "STOP"], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "examine", lambda folder: [Finding("disk", mark, "1 GiB free")])
    assert command_line.main(["doctor"]) == code
    assert "1 GiB free" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
try:
    import launch.__main__, launch.run, launch.world, launch.metrics
    launch.__main__.main(["local", "--help"])
finally:
    print(sorted({"torch", "deepspeed", "numpy", "tensorboard", "webdataset"} & set(sys.modules)))
"""
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.startswith("usage: python -m launch local")
    assert asked.stdout.endswith("[]\n")
