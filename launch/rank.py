"""One rank's life around its loop: the run opened and closed, and whatever happens turned into an exit code and a
line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any

from launch.run import HasRun, Run
from launch.world import World

DONE, FAILED = 0, 1


def run_rank(
    command: str, config: HasRun, world: World, may_grow: Collection[str], train: Callable[[Run], dict[str, Any]]
) -> int:
    """Open the run, let `train` do this rank's part unless the run is finished, and return the exit code.

    The traceback of a failure goes to this rank's log, one line about it to standard error.
    """
    world.export()
    try:
        with Run.open(config, world, command, may_grow) as run:
            result = run.finished()
            if result is None:
                result = train(run)
            run.say("  ".join(f"{name} {value}" for name, value in result.items() if not isinstance(value, dict)))
            return DONE
    except Exception as error:
        reason = str(error) or type(error).__name__
        print(f"error: {reason} (rank {world.rank}; traceback in {config.run.folder / 'logs'})", file=sys.stderr)
        return FAILED
