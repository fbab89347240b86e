"""Warm ranks: forked from a server that has torch and deepspeed loaded, so that a test starts N ranks in an instant.

    results = run_ranks(3, all_reduce_of, 5.0)            # module-level function, its arguments; one result a rank
    done = run_command("pretrain", ["demo.yaml"])         # `python -m pretrain demo.yaml`, without the cold start
    with start_ranks(2, command, "pretrain", argv) as ranks:
        ranks.kill(1)                                     # SIGKILL, as a lost host would do
        assert ranks.wait() == [1, -9]

Every rank is a fresh process with the environment that a launcher would give it, the test's own environment besides,
and its output in files. Nothing survives the test (`conftest.py`): each rank leads a process group, which is killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import math
import multiprocessing
import os
import pickle
import resource
import runpy
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any, NamedTuple, Self

PRELOADED = ["torch", "torch.distributed", "torchvision", "deepspeed", "webdataset", "accelerate", "safetensors.torch"]
PRELOADED += ["torch.utils.data", "torch.utils.tensorboard", "torch.utils.checkpoint", "numpy", "PIL.Image", "pydantic"]
PRELOADED += ["yaml", "tqdm", "pytest", "scipy.ndimage"]
# What the first optimizer and the first engine of a process would load otherwise, seconds in each rank.
PRELOADED += ["torch._dynamo", "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.muon_optimizer"]

_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "SLURM_", "TORCHELASTIC_")

_context = multiprocessing.get_context("forkserver")
_started: set[Ranks] = set()


class Finished(NamedTuple):
    """What a command left."""

    code: int
    stdout: str
    stderr: str


def run_ranks(
    size: int, function: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None, timeout_s: float = 120
) -> list[Any]:
    """Call a module-level function on every rank and return the results, by rank.

    The first rank's exception is raised here, with the rank and its output as a note; TimeoutError after `timeout_s`.
    """
    with start_ranks(size, function, *args, env=env) as ranks:
        return ranks.results(timeout_s)


def run_command(
    module: str, arguments: Sequence[object], env: Mapping[str, str] | None = None, timeout_s: float = 120
) -> Finished:
    """Run `python -m MODULE ARGUMENTS` as a plain process of no launcher."""
    with Ranks([dict(env or {})], command, (module, arguments)) as ranks:
        (code,) = ranks.wait(timeout_s)
        return Finished(code, *ranks.output(0))


def start_ranks(size: int, function: Callable[..., Any], *args: Any, env: Mapping[str, str] | None = None) -> Ranks:
    """Start the ranks and return at once; `command` is the function for whole command lines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [{**world, "RANK": rank, "LOCAL_RANK": rank, **(env or {})} for rank in range(size)]
    return Ranks(environments, function, args)


def command(module: str, arguments: Sequence[object]) -> None:
    """Be `python -m MODULE ARGUMENTS` from here on."""
    sys.argv = [module, *map(str, arguments)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Ranks:
    """Running ranks, by number: kill them, wait for them, read what they said."""

    def __init__(
        self, environments: Sequence[Mapping[str, object]], function: Callable[..., Any], args: tuple[Any, ...]
    ):
        start_server()
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCHER)}
        self._processes = []
        for rank, environment in enumerate(environments):
            env = {**inherited, **{name: str(value) for name, value in environment.items()}}
            process = _context.Process(target=_rank, args=(self._file(rank), env, function, args), name=f"rank {rank}")
            process.start()
            self._processes.append(process)
        _started.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def exit_codes(self) -> list[int | None]:
        """None while a rank runs, -9 after SIGKILL."""
        return [process.exitcode for process in self._processes]

    def kill(self, rank: int, with_signal: int = signal.SIGKILL) -> None:
        """Send a signal to one rank alone, not to its workers."""
        pid = self._processes[rank].pid
        assert pid is not None
        os.kill(pid, with_signal)

    def output(self, rank: int) -> tuple[str, str]:
        """Return what a rank has said so far: (stdout, stderr)."""
        return self._file(rank).with_suffix(".out").read_text(), self._file(rank).with_suffix(".err").read_text()

    def wait(self, timeout_s: float = 120) -> list[int]:
        """Wait for every rank to end by itself and return the exit codes; TimeoutError shows where the others hang."""
        self._watch(timeout_s)
        if None in self.exit_codes:
            self._fail_hanging(timeout_s)
        return [code for code in self.exit_codes if code is not None]

    def results(self, timeout_s: float = 120) -> list[Any]:
        """Wait for what the function returned, by rank; once a rank has failed the others have one second."""
        self._watch(timeout_s, until_one_fails=True)
        if any(self.exit_codes):
            self._watch(1)
        elif None in self.exit_codes:
            self._fail_hanging(timeout_s)
        outcomes = [self._outcome(rank) for rank in range(len(self._processes))]
        failed = [(outcome.time_s, rank) for rank, outcome in enumerate(outcomes) if outcome.error]
        if failed:
            _, first = min(failed)
            error = outcomes[first].error
            assert error is not None
            error.add_note(self._report(first))
            raise error
        return [outcome.value for outcome in outcomes]

    def end(self) -> None:
        """Kill what still runs, the ranks' own children included."""
        for process in self._processes:
            process.kill()
            assert process.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        self._folder.cleanup()
        _started.discard(self)

    def _file(self, rank: int) -> Path:
        return Path(self._folder.name, f"rank-{rank}")

    def _watch(self, seconds: float, until_one_fails: bool = False) -> None:
        deadline = time.monotonic() + seconds
        while (
            None in self.exit_codes and time.monotonic() < deadline and not (until_one_fails and any(self.exit_codes))
        ):
            running = [process.sentinel for process in self._processes if process.exitcode is None]
            connection.wait(running, deadline - time.monotonic())

    def _outcome(self, rank: int) -> Outcome:
        code, file = self.exit_codes[rank], self._file(rank)
        if file.exists():
            outcome: Outcome = pickle.loads(file.read_bytes())
            return outcome
        # Gone without a word (a signal, sys.exit): before those who complained of it. Still there: not the first.
        return Outcome(math.inf if code is None else 0.0, error=RuntimeError(f"ended with exit code {code}"))

    def _report(self, rank: int) -> str:
        stdout, stderr = self.output(rank)
        return f"---- rank {rank} of {len(self._processes)}, stdout:\n{stdout}---- stderr:\n{stderr}----"

    def _fail_hanging(self, timeout_s: float) -> None:
        hanging = [rank for rank, code in enumerate(self.exit_codes) if code is None]
        for rank in hanging:
            self.kill(rank, signal.SIGABRT)  # faulthandler writes on stderr where the rank stands
        connection.wait([self._processes[rank].sentinel for rank in hanging], 2)
        error = TimeoutError(f"ranks {hanging} did not end within {timeout_s:g} s")
        error.add_note("\n".join(self._report(rank) for rank in hanging))
        raise error


class Outcome(NamedTuple):
    """What a rank's function came to, and when."""

    time_s: float
    value: Any = None
    error: BaseException | None = None


def start_server() -> None:
    """Start loading the libraries, in the background; once is enough.

    `conftest.py` has set one thread and the CPU by then: no thread may run beside a fork.
    """
    _context.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def end_all() -> None:
    """Kill every rank that a test has left."""
    for ranks in list(_started):
        ranks.end()


def _rank(file: Path, env: Mapping[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """The life of a rank, in its own process."""
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.clear()
    os.environ.update(env)
    for stream, suffix in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        with file.with_suffix(suffix).open("wb") as captured:
            os.dup2(captured.fileno(), stream.fileno())
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True)
    faulthandler.enable()
    multiprocessing.set_start_method(None, force=True)  # a fork server's child would start its workers by another
    try:
        value = function(*args)
        outcome = Outcome(time.time(), value)
    except Exception as error:
        outcome = Outcome(time.time(), error=_picklable(error))
        traceback.print_exc()
    partial = file.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(outcome))
    partial.rename(file)
    sys.exit(1 if outcome.error else 0)


def _picklable(error: Exception) -> Exception:
    """The error itself, or its text where its class cannot be rebuilt from its arguments."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return error
