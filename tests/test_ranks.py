"""The warm ranks that other tests stand on."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.ranks import PRELOADED, command, run_command, run_ranks, start_ranks


def sum_over_ranks(value: float) -> tuple[int, float, int, list[str], list[str]]:
    dist.init_process_group("gloo")
    tensor = torch.tensor([value * (dist.get_rank() + 1)])
    dist.all_reduce(tensor)
    cold = [name for name in PRELOADED if name not in sys.modules]
    names = sorted(name for name in os.environ if name in ("RANK", "LOCAL_RANK", "OF_THE_TEST", "SLURM_PROCID"))
    return dist.get_rank(), tensor.item(), torch.get_num_threads(), cold, names


def threads() -> tuple[int, int, str]:
    return (
        threading.active_count(),
        sum(1 for _ in Path("/proc/self/task").iterdir()),
        Path(f"/proc/{os.getppid()}/status").read_text(),
    )


def fail_on_rank(culprit: int) -> None:
    dist.init_process_group("gloo")
    print("out of", dist.get_rank(), flush=True)
    if dist.get_rank() == culprit:
        raise FileNotFoundError(2, "no such shard", "train-000007.tar")
    dist.barrier()


def fail_while_the_other_hangs() -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("no such class")
    hang_here()


class UnpicklableError(Exception):
    def __init__(self, shard: str, row: int) -> None:
        super().__init__(f"{shard} row {row}")


def fail_oddly() -> None:
    raise UnpicklableError("train-000000", 3)


def hang_with_a_child(file: Path) -> None:
    child = os.fork()
    if child:
        file.write_text(str(child))
    hang_here()


def hang_here() -> None:
    time.sleep(100)


def ends(pid: int) -> bool:
    """Whether a killed process is gone, or waits to be buried, within two seconds."""
    status = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_ranks_form_a_world_and_are_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_TEST", "1")
    monkeypatch.setenv("SLURM_PROCID", "5")
    results = run_ranks(3, sum_over_ranks, 2.0)
    assert results == [(rank, 12.0, 1, [], ["LOCAL_RANK", "OF_THE_TEST", "RANK"]) for rank in range(3)]


def test_the_tests_own_process_computes_on_one_thread() -> None:
    assert torch.get_num_threads() == 1, "conftest.py says so before anything imports torch"


def test_nothing_ran_beside_the_fork() -> None:
    ((python_threads, system_threads, server),) = run_ranks(1, threads)
    assert (python_threads, system_threads) == (1, 1)
    assert "Threads:\t1\n" in server, "a library starts a thread when it is loaded; forking beside a thread can hang"


def test_the_first_failing_rank_is_named_with_its_output() -> None:
    with pytest.raises(FileNotFoundError, match="no such shard") as caught:
        run_ranks(3, fail_on_rank, 1)
    (note,) = caught.value.__notes__
    assert "rank 1 of 3" in note
    assert "out of 1" in note
    assert "in fail_on_rank" in note, "the rank's own traceback"


def test_nobody_waits_for_the_others_of_a_failed_rank() -> None:
    with pytest.raises(ValueError, match="no such class"):
        run_ranks(2, fail_while_the_other_hangs, timeout_s=20)


def test_an_error_that_cannot_be_pickled_arrives_as_text() -> None:
    with pytest.raises(RuntimeError, match="UnpicklableError: train-000000 row 3"):
        run_ranks(1, fail_oddly)


def test_a_rank_that_leaves_without_a_word_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 3"):
        run_ranks(2, sys.exit, 3)


def test_hanging_ranks_are_ended_and_shown_with_their_children(tmp_path: Path) -> None:
    started_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"ranks \[0\] did not end within 0.5 s") as caught:
        run_ranks(1, hang_with_a_child, tmp_path / "child", timeout_s=0.5)
    assert time.monotonic() - started_s < 5
    assert "in hang_here" in caught.value.__notes__[0]
    assert ends(int((tmp_path / "child").read_text()))


def test_a_rank_can_be_killed_and_looked_at() -> None:
    with start_ranks(2, time.sleep, 0.5) as ranks:
        assert ranks.exit_codes == [None, None]
        ranks.kill(1)
        assert ranks.wait(timeout_s=5) == [0, -signal.SIGKILL]


def test_commands_run_as_from_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tool"
    package.mkdir()
    (package / "__main__.py").write_text(
        "import os, sys\nprint(__name__, sys.argv[1:], os.environ.get('RANK'))\nsys.exit('error: ' + sys.argv[1])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = run_command("tool", [tmp_path, "--n", 3])
    assert done == (1, f"__main__ ['{tmp_path}', '--n', '3'] None\n", f"error: {tmp_path}\n")
    with start_ranks(2, command, "tool", [7]) as ranks:
        assert ranks.wait() == [1, 1]
        assert ranks.output(1) == ("__main__ ['7'] 1\n", "error: 7\n")
