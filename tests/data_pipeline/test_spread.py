import os
import signal
import subprocess
import sys

from data_pipeline.spread import spread


def test_results_come_in_the_order_of_the_tasks() -> None:
    assert list(spread(abs, [-3, 2, -1], 1)) == [3, 2, 1]
    assert list(spread(abs, [-3, 2, -1], 2)) == [3, 2, 1]
    assert list(spread(abs, [], 2)) == []


SLEEPERS = """
import time
from data_pipeline.spread import spread
print(*spread(time.sleep, [0, 0], 2), flush=True)
list(spread(time.sleep, [0, 0, 100, 100], 2))
"""


def test_workers_end_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", SLEEPERS], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    assert parent.stdout.readline() == "None None\n"
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=30)  # returns when the last process that holds the pipe is gone
