"""The first steps of a tiny run are pinned: whatever moves them, moves every run out there."""

import json
import os
from pathlib import Path

import pytest

from tests.training import Recipe

GOLDEN = Path(__file__).parents[1] / "golden" / "first-steps.json"
PINNED = ("step", "loss", "grad_norm", "lr", "batch_digest")


def test_the_first_steps_are_what_they_were(pretraining: Recipe) -> None:
    done = pretraining.but(run__steps=5, vit__dropout=0.1, engine__zero_stage=1).run()
    found = [{name: line[name] for name in PINNED} for line in done.metrics]
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(line) for line in found) + "\n]\n")
        pytest.skip("written")
    pinned = json.loads(GOLDEN.read_text())
    advice = (
        "The first steps of a run have changed: the order of the data (batch_digest), the pixels, the initial weights "
        "or the objective (loss), the gradients (grad_norm), the schedule (lr). If that is meant, say so in the "
        "commit and write them anew: UPDATE_GOLDEN=1 python -m pytest tests/pretrain/test_golden.py"
    )
    assert [line["batch_digest"] for line in found] == [line["batch_digest"] for line in pinned], advice
    for name in ("loss", "grad_norm", "lr"):
        # Another processor sums in another order; the fifth digit of a loss is beyond that.
        assert [line[name] for line in found] == pytest.approx([line[name] for line in pinned], rel=1e-5), advice
