"""`torchrun --nnodes 2 -m pretrain`: two agents that meet at a rendezvous, one rank each."""

import os
import subprocess
import sys

import pytest

from launch.world import free_port
from tests.training import Done, Recipe


@pytest.mark.timeout(120)
def test_two_nodes_are_one_run(pretraining: Recipe):
    recipe = pretraining.but(run__steps=3)
    endpoint = f"127.0.0.1:{free_port()}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--local-addr", "127.0.0.1", "-m", "pretrain"]
    agents = [
        subprocess.Popen(
            [*torchrun, *recipe.arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ
        )
        for _ in range(2)
    ]
    said = [agent.communicate(timeout=100)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    done = Done(recipe.folder)
    assert [line["step"] for line in done.metrics] == [1, 2, 3]
    assert next(event for event in done.events if event["kind"] == "started")["ranks"] == 2
    assert sorted(path.name for path in (done.folder / "ledger").iterdir()) == ["rank-00000.jsonl", "rank-00001.jsonl"]
