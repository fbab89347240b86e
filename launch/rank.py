"""One rank's life around its loop: the run opened and closed, and whatever happens turned into an exit code and a
line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from typing import Any

from launch.failures import is_watched, reason_of
from launch.host import num_cores
from launch.run import HasRun, Run, in_a_line
from launch.world import World

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def run_rank(
    command: str, config: HasRun, world: World, may_grow: Collection[str], train: Callable[[Run], dict[str, Any]]
) -> int:
    """Open the run, let `train` do this rank's part unless the run is finished, and return the exit code.

    The traceback of a failure goes to this rank's log, one line about it to standard error; under a launcher that
    watches all ranks, to its note alone: the launcher says which rank's reason is the cause.
    """
    world.export()
    # Before torch is loaded: a fair part of the cores where nobody has said otherwise (srun and a bare start do not).
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores() // world.local_size)))
    run: Run | None = None
    try:
        with Run.open(config, world, command, may_grow) as run:
            result = run.finished()
            if result is None:
                result = train(run)
            run.say(in_a_line(result))
            return DONE
    except Exception as error:
        if run is None:
            return _say(reason_of(error), FAILED)
        if not is_watched():
            _say(f"{reason_of(error)} (rank {world.rank}; traceback in {run.log})", FAILED)
        return FAILED
    except KeyboardInterrupt:
        return interrupted("interrupted; the same command continues from the last checkpoint")


def refused(error: ValueError | OSError) -> int:
    """Say in one line what of the input is wrong or cannot be read; returns the exit code."""
    if isinstance(error, OSError) and error.filename is not None:
        return _say(f"{error.filename}: {error.strerror}", REFUSED)
    return _say(str(error), REFUSED)


def interrupted(what: str = "interrupted before training") -> int:
    """Say that Ctrl-C ended this, unless the launcher does; returns the exit code that shells expect."""
    return INTERRUPTED if is_watched() else _say(what, INTERRUPTED)


def _say(reason: str, code: int) -> int:
    print(f"error: {reason}", file=sys.stderr)
    return code
