"""All ranks of a run on this host: checked once, started, watched, and ended together.

    check (one process) -> rank 0, its output on this terminal
                           rank 1 ..., output in RUN/logs/rank-00001.log ...
                        -> the rank that failed first names the reason, the others are stopped

No rank outlives the launcher, whatever ends it: Linux kills a rank when its parent dies.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

from pydantic import BaseModel, ConfigDict

from configs.load import load
from launch.failures import WATCHED, Failure, notes
from launch.host import num_cores, num_gpus, path_with_scripts
from launch.run import Run, RunConfig
from launch.world import LOOPBACK, World, free_port

DONE, FAILED, STOPPED = 0, 1, 75
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
POLL_S = 0.05
COLLECT_S = 1.0  # from the first end of a rank to the verdict: others may have failed before it, and end later
TAIL_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class LaunchError(ValueError):
    """The ranks that were asked for do not fit this host."""


class _RunSection(BaseModel):
    """Of a whole config, the one section that a launcher needs; the check has judged the rest."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    run: RunConfig


def launch_local(command: Sequence[str], config: Path, overrides: Sequence[str], num_ranks: int) -> int:
    """Run `command CONFIG overrides...` (`python -m pretrain ...`) as `num_ranks` ranks and return the exit code.

    Raises LaunchError before anything starts when the host has GPUs, but fewer than ranks.
    """
    env = rank_environment(num_ranks)
    port = free_port()
    worlds = [World(rank, num_ranks, rank, num_ranks, LOOPBACK, port) for rank in range(num_ranks)]
    arguments = [*command, str(config), *overrides]
    as_rank_0 = env | worlds[0].variables()  # the check wants to know how many ranks there will be
    check = subprocess.run([*arguments, "--check"], env=as_rank_0, stdout=subprocess.DEVNULL, check=False)
    if check.returncode != DONE:
        return 2 if check.returncode == 2 else FAILED
    run = Run(load(config, _RunSection, overrides), worlds[0])
    if run.finished() is not None:  # one process prints the result and leaves the folder alone
        return subprocess.run(arguments, env=env, check=False).returncode
    return run_ranks(arguments, worlds, env | {WATCHED: "1"}, run.folder / "logs", on_failure=run.failed)


def rank_environment(num_ranks: int) -> dict[str, str]:
    """What all ranks on this host share: the programs, a fair part of the cores, the CPU where there is no GPU."""
    env = {**os.environ, "PATH": path_with_scripts(), "PYTHONUNBUFFERED": "1"}
    env.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // num_ranks)))
    if env.get("DS_ACCELERATOR") != "cpu":
        gpus = num_gpus()
        if gpus == 0:
            env["DS_ACCELERATOR"] = "cpu"
        elif gpus < num_ranks:
            raise LaunchError(
                f"--ranks {num_ranks}: this host shows {gpus} GPU{'s' if gpus > 1 else ''}; "
                f"start at most {gpus}, or set DS_ACCELERATOR=cpu to train on the CPU"
            )
    return env


def run_ranks(
    arguments: Sequence[str],
    worlds: Sequence[World],
    env: dict[str, str],
    logs: Path,
    *,
    grace_s: float = 10.0,
    linger_s: float = 600.0,
    on_failure: Callable[[Failure], object] = lambda first: None,
) -> int:
    """Start one process a world and stay until all have ended; the last line on standard error says what went wrong.

    When a rank fails the others get SIGTERM, and after `grace_s` SIGKILL; `on_failure` is told who failed first. Once a
    rank has ended well, the others have `linger_s` to do so too. Signals that this process gets go to every rank; a
    second Ctrl-C stops waiting. Returns 0, 75 (stopped with all saved), 2 or 1.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with _received_signals() as received:
        ranks = [_Rank.start(arguments, world, env, logs / f"rank-{world.rank:05}.log") for world in worlds]
        try:
            ranks[0].mirror_errors()
            return _watch(ranks, received, grace_s, linger_s, on_failure)
        finally:
            for rank in ranks:
                rank.kill()


@dataclass
class _Rank:
    """One started rank; its own process group holds the loader's workers as well."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # an earlier start may have left its own error in the log
    started_at: float  # seconds since 1970
    ended_at: float = 0.0  # when it was noticed
    mirror: Thread | None = None

    @classmethod
    def start(cls, arguments: Sequence[str], world: World, env: dict[str, str], log: Path) -> _Rank:
        with log.open("ab") as file:
            started_at = time.time()
            process = subprocess.Popen(
                arguments,
                env=env | world.variables(),
                stdin=subprocess.DEVNULL,
                stdout=None if world.rank == 0 else file,
                stderr=subprocess.PIPE if world.rank == 0 else file,
                process_group=0,
                preexec_fn=_dying_with(os.getpid()),
            )
            return cls(world.rank, process, log, file.tell(), started_at)

    def mirror_errors(self) -> None:
        """Copy what the rank writes to standard error to this process's and to the log."""
        assert self.process.stderr is not None
        self.mirror = Thread(target=_copy, args=(self.process.stderr, self.log), daemon=True)
        self.mirror.start()

    @property
    def code(self) -> int | None:
        code = self.process.poll()
        if code is not None:
            self.ended_at = self.ended_at or time.time()
        return code

    def send(self, number: int) -> None:
        self.process.send_signal(number)  # does nothing once the rank has ended

    def kill(self) -> None:
        """End the rank and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.mirror is not None:
            self.mirror.join(timeout=1.0)

    def failure(self) -> Failure | None:
        """What went wrong and when, in the rank's own words where it had any; None when nothing did."""
        for note in notes(self.log.parent, self.started_at):
            if note.rank == self.number:
                return note
        if self.code in (None, DONE, STOPPED):
            return None
        if self.code > 0:
            return Failure(self.ended_at, self.number, reason(self._tail()) or f"exit code {self.code}")
        name = signal.Signals(-self.code).name
        hint = "; the host may be out of memory, `dmesg` tells" if name == "SIGKILL" else ""
        # Killed from outside: before those who complained of it. Libraries abort by themselves when a peer is gone.
        return Failure(self.ended_at if name == "SIGABRT" else 0.0, self.number, f"killed by {name}{hint}")

    def _tail(self) -> str:
        if self.mirror is not None:
            self.mirror.join(timeout=1.0)
        with self.log.open("rb") as file:
            file.seek(max(self.log_start, self.log.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")


def _watch(
    ranks: Sequence[_Rank],
    received: list[int],
    grace_s: float,
    linger_s: float,
    on_failure: Callable[[Failure], object],
) -> int:
    num_forwarded = 0
    deadline = float("inf")
    while True:
        for number in received[num_forwarded:]:
            num_forwarded += 1
            for rank in ranks:
                rank.send(number)
        running = [rank for rank in ranks if rank.code is None]
        failed = any(rank.code not in (None, DONE, STOPPED) for rank in ranks)
        if failed or not running or received.count(signal.SIGINT) > 1 or time.monotonic() > deadline:
            break
        if len(running) < len(ranks):
            deadline = min(deadline, time.monotonic() + linger_s)
        time.sleep(POLL_S)

    first = _first_failure(ranks) if failed and not received else None
    _stop(running, grace_s)
    if received and (failed or running):
        name = signal.Signals(received[0]).name
        return _fail(f"stopped by {name} before all was saved; the same command continues from the last checkpoint")
    if first:
        on_failure(first)
        rank = ranks[first.rank]
        return _fail(f"rank {first.rank} failed: {first.reason} (log: {rank.log})", 2 if rank.code == 2 else FAILED)
    if running:
        late = running[0]
        return _fail(f"rank {late.number} did not end within {linger_s:g} s of the first rank (log: {late.log})")
    return STOPPED if any(rank.code == STOPPED for rank in ranks) else DONE


def _first_failure(ranks: Sequence[_Rank]) -> Failure:
    """Who failed first, after a moment in which the others may say that they had."""
    deadline = time.monotonic() + COLLECT_S
    while time.monotonic() < deadline and any(rank.code is None for rank in ranks):
        time.sleep(POLL_S)
    return min(failure for rank in ranks if (failure := rank.failure()))


def _stop(running: Sequence[_Rank], grace_s: float) -> None:
    for rank in running:
        rank.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(rank.code is None for rank in running):
        time.sleep(POLL_S)
    for rank in running:
        rank.kill()


def _fail(message: str, code: int = FAILED) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def reason(log: str) -> str:
    """The line that says why a rank ended: what our commands say last, else the last exception's, else the last one."""
    lines = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in log.splitlines()]  # torch marks its tracebacks so
    for pattern in (r"(?:error|rank \d+ failed): (.+)", r"((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*)", r"(.+)"):
        for line in reversed(lines):
            if match := re.fullmatch(pattern, line):
                return match[1]
    return ""


def _copy(source: IO[bytes], log: Path) -> None:
    with source, log.open("ab", buffering=0) as file:
        while chunk := os.read(source.fileno(), 1 << 16):
            file.write(chunk)
            os.write(sys.stderr.fileno(), chunk)


def _dying_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes a rank: ask the kernel to kill it when the launcher dies, however it dies."""
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec a process should do next to nothing

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(FAILED)

    return ask


@contextmanager
def _received_signals() -> Iterator[list[int]]:
    """Collect the signals that this process gets, instead of dying of them."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
