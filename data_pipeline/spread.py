"""One function over many shards, on several processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """The results in the order of the tasks, as they come; in this process when one worker is enough."""
    if min(workers, len(tasks)) <= 1:
        yield from map(function, tasks)
        return
    # A fork server: workers start from a clean process that has webdataset (and with it torch) loaded once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["webdataset"])
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, initializer=_end_with_parent)
    try:
        yield from pool.map(function, tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A worker waits for tasks for ever; when the process that has them is killed, the worker goes too."""
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
