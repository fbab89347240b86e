"""Ranks on this host: checked once, told who they are, ended together, whatever happens to one or to the launcher."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

import launch.local
from launch.failures import Failure
from launch.local import LaunchError, launch_local, rank_environment, reason, run_ranks
from launch.world import World

PYTHON = [sys.executable, "-S"]  # ranks are real processes, but start in milliseconds


@pytest.fixture(autouse=True)
def _short_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.local, "COLLECT_S", 0.3)


def worlds(num_ranks: int) -> list[World]:
    return [World(rank, num_ranks, rank, num_ranks, "127.0.0.1", 20_000) for rank in range(num_ranks)]


def start(
    logs: Path,
    code: str,
    num_ranks: int = 2,
    grace_s: float = 5.0,
    linger_s: float = 60.0,
    on_failure: Callable[[Failure], object] = lambda first: None,
) -> int:
    """Every rank runs `code`, which knows its `rank`."""
    prologue = "import json, os, signal, subprocess, sys, time\nrank = int(os.environ['RANK'])\n"
    return run_ranks(
        [*PYTHON, "-c", prologue + dedent(code)],
        worlds(num_ranks),
        {**os.environ, "PYTHONUNBUFFERED": "1"},
        logs,
        grace_s=grace_s,
        linger_s=linger_s,
        on_failure=on_failure,
    )


def last_error(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err.splitlines()[-1]


def is_alive(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait_until(happened: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- Each for itself -------------------------------------------------------------------------------------------------


def test_ranks_know_who_they_are_and_where_to_write(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = """
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
        print(json.dumps([os.environ[name] for name in names]))
        print(f"warning of {rank}", file=sys.stderr)
    """
    assert start(tmp_path / "logs", code, num_ranks=3) == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out) == ["0", "3", "0", "3", "127.0.0.1", "20000"]
    assert shown.err == "warning of 0\n"
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs["rank-00000.log"] == "warning of 0\n"
    assert logs["rank-00002.log"] == '["2", "3", "2", "3", "127.0.0.1", "20000"]\nwarning of 2\n'


def test_environment_needs_no_activation_no_gpu_and_no_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setattr(launch.local, "num_gpus", lambda: 0)
    monkeypatch.setattr(launch.local, "num_cores", lambda: 8)
    env = rank_environment(3)
    assert env["PATH"] == f"{sysconfig.get_path('scripts')}:/bin"
    assert (env["OMP_NUM_THREADS"], env["DS_ACCELERATOR"]) == ("2", "cpu")
    assert rank_environment(99)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert rank_environment(3)["OMP_NUM_THREADS"] == "5"


def test_gpus_are_never_shared_nor_silently_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(launch.local, "num_gpus", lambda: 2)
    assert "DS_ACCELERATOR" not in rank_environment(2)
    with pytest.raises(
        LaunchError, match="--ranks 3: this host shows 2 GPUs; start at most 2, or set DS_ACCELERATOR=cpu"
    ):
        rank_environment(3)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert rank_environment(3)["DS_ACCELERATOR"] == "cpu"


# --- Ended together --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((75, 75), 75), ((0, 75), 75), ((2, 0), 2), ((0, 9), 1)])
def test_exit_codes(tmp_path: Path, codes: tuple[int, int], expected: int) -> None:
    assert start(tmp_path, f"sys.exit({codes}[rank])") == expected


def test_the_first_failing_rank_is_named_and_the_others_are_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = """
        if rank == 1:
            raise RuntimeError("the disk is on fire")
        time.sleep(60)
    """
    began = time.monotonic()
    assert start(tmp_path, code, num_ranks=3) == 1
    assert time.monotonic() - began < 5
    message = f"error: rank 1 failed: RuntimeError: the disk is on fire (log: {tmp_path / 'rank-00001.log'})"
    assert last_error(capfd) == message
    assert "Traceback" in (tmp_path / "rank-00001.log").read_text()


def test_rank_0s_own_error_is_shown_as_it_comes_and_named_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "if rank == 0: sys.exit('error: no such luck')\ntime.sleep(60)") == 1
    shown = capfd.readouterr().err.splitlines()
    assert shown == ["error: no such luck", f"error: rank 0 failed: no such luck (log: {tmp_path / 'rank-00000.log'})"]


NOTE = f"""
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from launch.failures import Failure, leave_note
def note(logs, reason): leave_note(Path(logs), Failure(time.time(), rank, reason))
"""


def test_the_first_failure_in_time_is_the_cause(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = f"""
        if rank == 1:
            note({str(tmp_path)!r}, "the disk is on fire")
            time.sleep(60)  # it hangs on its way out
        while not os.path.exists({str(tmp_path / "rank-00001.failed")!r}):
            time.sleep(0.01)
        note({str(tmp_path)!r}, "connection closed by peer")
        sys.exit(1)
    """
    causes: list[Failure] = []
    assert start(tmp_path, NOTE + dedent(code), on_failure=causes.append) == 1
    shown = capfd.readouterr().err
    assert shown == f"error: rank 1 failed: the disk is on fire (log: {tmp_path / 'rank-00001.log'})\n"
    assert [(cause.rank, cause.reason) for cause in causes] == [(1, "the disk is on fire")]


@pytest.mark.parametrize(("number", "cause"), [("SIGKILL", "rank 1 failed: killed by SIGKILL"), ("SIGABRT", "rank 0")])
def test_a_killed_rank_comes_before_those_that_complain_unless_it_gave_up_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], number: str, cause: str
) -> None:
    code = f"""
        if rank == 1:
            while not os.path.exists({str(tmp_path / "rank-00000.failed")!r}):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.{number})
        note({str(tmp_path)!r}, "connection closed by peer")
        sys.exit(1)
    """
    assert start(tmp_path, NOTE + dedent(code)) == 1
    assert cause in last_error(capfd)


def test_an_earlier_starts_note_is_not_this_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rank-00000.failed").write_text('{"time": 1.5, "rank": 0, "reason": "long ago"}')
    assert start(tmp_path, "sys.exit(3 * rank)") == 1
    assert "rank 1 failed: exit code 3 (log:" in last_error(capfd)


def test_an_earlier_starts_error_is_not_this_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rank-00001.log").write_text("error: something long ago\n")
    assert start(tmp_path, "sys.exit(3 * rank)") == 1
    assert "rank 1 failed: exit code 3 (log:" in last_error(capfd)


def test_a_rank_that_is_killed_says_by_what(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)") == 1
    assert "rank 1 failed: killed by SIGKILL; the host may be out of memory, `dmesg` tells (log:" in last_error(capfd)
    assert start(tmp_path, "os.abort() if rank else time.sleep(60)") == 1
    assert "rank 1 failed: killed by SIGABRT (log:" in last_error(capfd)


def test_a_rank_that_will_not_stop_is_killed_with_all_it_started(tmp_path: Path) -> None:
    code = f"""
        if rank == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            worker = subprocess.Popen(["sleep", "60"])
            open({str(tmp_path / "worker")!r}, "w").write(str(worker.pid))
            open({str(tmp_path / "ready")!r}, "w")
            time.sleep(60)
        while not os.path.exists({str(tmp_path / "ready")!r}):
            time.sleep(0.01)
        sys.exit(1)
    """
    began = time.monotonic()
    assert start(tmp_path, code, grace_s=0.3) == 1
    assert 0.3 < time.monotonic() - began < 5
    worker = int((tmp_path / "worker").read_text())
    wait_until(lambda: not is_alive(worker))


def test_a_rank_that_lingers_after_the_others_is_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, "time.sleep(60 * rank)", linger_s=0.2) == 1
    assert last_error(capfd).startswith("error: rank 1 did not end within 0.2 s of the first rank (log:")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", ""),
        ("hello\n\nstrange end\n\n", "strange end"),
        ("error: data.batch = 0: must be positive\n[W socket.cpp] closing", "data.batch = 0: must be positive"),
        (
            "Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory.\nwarning: leaked",
            "torch.OutOfMemoryError: CUDA out of memory.",
        ),
        ("ValueError: first\nerror: the one for people\nKeyError: 'x'", "the one for people"),
        ("rank 3 failed: OSError: disk full; see the log\n[W] bye", "OSError: disk full; see the log"),
        ("[rank1]: Traceback\n[rank1]:   File\n[rank1]: RuntimeError: boom", "RuntimeError: boom"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_reason(log: str, said: str) -> None:
    assert reason(log) == said


# --- Signals: the launcher in a process of its own -------------------------------------------------------------------

LAUNCHER = """
import os, sys
from pathlib import Path
from launch.local import run_ranks
from launch.world import World
worlds = [World(rank, 2, rank, 2, "127.0.0.1", 20000) for rank in range(2)]
sys.exit(run_ranks(sys.argv[2:], worlds, dict(os.environ), Path(sys.argv[1]), grace_s=5.0))
"""


class Launched:
    """Two ranks under a launcher, both ready; each wrote its process number to a file."""

    def __init__(self, folder: Path, code: str) -> None:
        rank = f"""
            import os, signal, sys, time
            {code}
            open({str(folder)!r} + "/pid-" + os.environ["RANK"], "w").write(str(os.getpid()) + ".")
            time.sleep(60)
        """
        command = [sys.executable, "-c", LAUNCHER, str(folder), *PYTHON, "-c", dedent(rank)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        files = [folder / f"pid-{rank}" for rank in range(2)]
        wait_until(lambda: all(file.exists() and file.read_text().endswith(".") for file in files))
        self.ranks = [int(file.read_text().rstrip(".")) for file in files]

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=10)
        wait_until(lambda: not any(map(is_alive, self.ranks)))
        return self.process.returncode, errors


SAVES = "signal.signal({0}, lambda *_: sys.exit(75))"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_and_75_comes_back(tmp_path: Path, number: signal.Signals) -> None:
    launched = Launched(tmp_path, SAVES.format(int(number)))
    launched.process.send_signal(number)
    assert launched.end() == (75, "")


def test_ranks_that_die_of_the_signal_had_not_saved(tmp_path: Path) -> None:
    launched = Launched(tmp_path, "")
    launched.process.send_signal(signal.SIGTERM)
    message = "error: stopped by SIGTERM before all was saved; the same command continues from the last checkpoint\n"
    assert launched.end() == (1, message)


def test_a_second_ctrl_c_stops_waiting(tmp_path: Path) -> None:
    launched = Launched(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    launched.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert launched.process.poll() is None
    launched.process.send_signal(signal.SIGINT)
    code, errors = launched.end()
    assert code == 1 and errors.startswith("error: stopped by SIGINT before all was saved")


def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    launched = Launched(tmp_path, "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    launched.process.kill()
    launched.end()


# --- The whole command -----------------------------------------------------------------------------------------------

TRAINS = """
import os, sys
from pathlib import Path
config, *words = sys.argv[1:]
folder = Path(config).parent
(folder / "starts").open("a").write(f"{os.environ.get('RANK')}/{os.environ.get('WORLD_SIZE')} {' '.join(words)}\\n")
if "--check" in words:
    print("checked")
    if "vit.depth=-1" in words:
        os.abort()
    if "vit.depth=0" in words:
        print("error: vit.depth = 0: must be 1 or more", file=sys.stderr)
        sys.exit(2)
elif "vit.depth=4" in words and os.environ["RANK"] == "1":
    (folder / "run" / "config.yaml").write_text("run: {}")
    sys.exit("error: no luck" if os.environ["RANKS_ARE_WATCHED"] else 0)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(launch.local, "num_gpus", lambda: 0)
    script = tmp_path / "trains.py"
    script.write_text(TRAINS)
    (tmp_path / "recipe.yaml").write_text(f"run: {{folder: {tmp_path}/run, steps: 5}}\nvit: {{depth: 2}}\n")
    return [*PYTHON, str(script)]


def starts(tmp_path: Path) -> list[str]:
    return sorted((tmp_path / "starts").read_text().splitlines())


def test_one_check_then_all_ranks(tmp_path: Path, command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert launch_local(command, tmp_path / "recipe.yaml", ["vit.depth=3"], 2) == 0
    assert starts(tmp_path) == ["0/2 vit.depth=3", "0/2 vit.depth=3 --check", "1/2 vit.depth=3"]
    assert capfd.readouterr().out == ""
    assert sorted(path.name for path in (tmp_path / "run" / "logs").iterdir()) == ["rank-00000.log", "rank-00001.log"]


def test_what_the_check_refuses_starts_no_rank(
    tmp_path: Path, command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch_local(command, tmp_path / "recipe.yaml", ["vit.depth=0"], 2) == 2
    assert starts(tmp_path) == ["0/2 vit.depth=0 --check"]
    assert capfd.readouterr().err == "error: vit.depth = 0: must be 1 or more\n"
    assert launch_local(command, tmp_path / "recipe.yaml", ["vit.depth=-1"], 2) == 1
    assert not (tmp_path / "run").exists()


def test_the_cause_of_a_failure_is_an_event_of_the_run(tmp_path: Path, command: list[str]) -> None:
    assert launch_local(command, tmp_path / "recipe.yaml", ["vit.depth=4"], 2) == 1
    (event,) = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["rank"], event["reason"]) == ("failed", 1, "no luck")


def test_a_finished_run_is_one_process_that_prints_its_result(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"step": 5, "length": {"steps": 5, "epochs": null}}')
    assert launch_local(command, tmp_path / "recipe.yaml", [], 2) == 0
    assert starts(tmp_path) == ["0/2 --check", "None/None "]
    assert not (tmp_path / "run" / "logs").exists()
