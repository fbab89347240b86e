"""Pretraining as a whole: one result whatever the ZeRO stage, ranks and micro-batches; to the bit after a kill."""

import random
import time

import pytest

from data_pipeline.plan import Plan
from data_pipeline.samples import SampleSet
from tests import training
from tests.training import Done, Recipe, equal_to_the_bit, largest_difference

WAYS: dict[str, tuple[int, dict[str, object]]] = {
    "ZeRO-0": (2, {"engine__zero_stage": 0}),
    "ZeRO-2": (2, {"engine__zero_stage": 2}),
    "ZeRO-3": (2, {"engine__zero_stage": 3}),
    "checkpointing": (2, {"engine__activation_checkpointing": "full"}),
    "ZeRO-3 with checkpointing": (2, {"engine__zero_stage": 3, "engine__activation_checkpointing": "full"}),
    "one rank": (1, {}),
    "three ranks, indivisible": (3, {}),
    "four micro-batches": (1, {"engine__micro_batch": 6}),
    "four micro-batches, padded, on two ranks at ZeRO-2": (2, {"engine__micro_batch": 3, "engine__zero_stage": 2}),
}


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory) -> Done:
    """ZeRO-1 on two ranks, one micro-batch: what every other way is compared with."""
    return training.pretraining(digits, tmp_path_factory.mktemp("plain"), engine__zero_stage=1).run(ranks=2)


@pytest.mark.parametrize("way", WAYS)
def test_the_numbers_do_not_depend_on_how_a_step_is_computed(plain, pretraining, way):
    ranks, overrides = WAYS[way]
    other = pretraining.but(**overrides).run(ranks)
    assert len(plain.losses) == 10
    assert other.losses == pytest.approx(plain.losses, rel=0, abs=1e-5)
    assert largest_difference(other.weights, plain.weights) < 1e-4
    assert [line["batch_digest"] for line in other.metrics] == [line["batch_digest"] for line in plain.metrics]
    assert other.ledger() == plain.ledger()
    assert other.result["val_loss"] == pytest.approx(plain.result["val_loss"], abs=1e-4)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_ledger_is_the_plan(pretraining, workers):
    ranks = {0: 3, 1: 2, 3: 1}[workers]
    done = pretraining.but(data__workers=workers, run__steps=4, run__seed=7).run(ranks)
    samples = SampleSet.open(pretraining.overrides["data__train"])
    plan = Plan(samples.shard_samples, samples.block_samples, seed=7, batch=24, lanes=5)
    for step in range(4):
        places = plan.batch(step)
        planned = sorted(samples.key(s, r) for s, r in zip(places.shard.tolist(), places.row.tolist(), strict=True))
        assert done.ledger()[step + 1] == planned


@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")])
def test_a_killed_run_ends_as_the_unbroken_one(pretraining, stage, precision, tmp_path):
    """SIGKILL at a random moment on a random rank; dropout is on, so its random numbers must come back as well."""
    dice = random.Random(f"{stage} {precision}")
    recipe = pretraining.but(
        engine__zero_stage=stage, engine__precision=precision, vit__dropout=0.1, run__checkpoint_every_steps=3
    )
    unbroken = recipe.but(run__folder=tmp_path / "unbroken").run(ranks=2)

    victim, after_step = dice.randrange(2), dice.randrange(4, 9)
    with recipe.start(ranks=2) as ranks:
        wait_for_step(recipe, after_step)
        ranks.kill(victim)
    assert not (recipe.folder / "result.json").exists()
    resumed = recipe.run(ranks=2)

    assert next(event["step"] for event in resumed.events if event["kind"] == "resumed") >= 3
    assert [line["step"] for line in resumed.metrics] == list(range(1, 11))
    for ours, theirs in zip(resumed.metrics, unbroken.metrics, strict=True):
        for name in ("loss", "grad_norm", "lr", "batch_digest"):
            assert ours[name] == theirs[name], (ours["step"], name)
    assert equal_to_the_bit(resumed.weights, unbroken.weights)
    assert resumed.ledger() == unbroken.ledger()
    assert resumed.result["val_loss"] == unbroken.result["val_loss"]


def wait_for_step(recipe: Recipe, step: int, timeout_s: float = 60) -> None:
    """Return as soon as the run has logged `step`."""
    path, deadline = recipe.folder / "metrics.jsonl", time.monotonic() + timeout_s
    while not path.exists() or path.read_text().count("\n") < step:
        assert time.monotonic() < deadline, f"step {step} was not reached within {timeout_s} s"
        time.sleep(0.01)


def test_it_goes_on_with_other_ranks_and_another_stage(pretraining, plain):
    """5 steps on two ranks at ZeRO-3, the rest on three at ZeRO-1: the same images, the numbers up to summation."""
    recipe = pretraining.but(run__checkpoint_every_steps=5, engine__zero_stage=3)
    with recipe.start(ranks=2) as ranks:
        wait_for_step(recipe, 6)
        ranks.kill(0)
    done = recipe.but(engine__zero_stage=1).run(ranks=3)
    assert done.losses == pytest.approx(plain.losses, rel=0, abs=1e-5)
    assert largest_difference(done.weights, plain.weights) < 1e-4
    assert done.ledger() == plain.ledger()
    changed = {event["key"]: (event["old"], event["new"]) for event in done.events if event["kind"] == "changed"}
    assert changed == {"engine.zero_stage": (3, 1), "ranks": (2, 3)}


def test_a_finished_run_is_left_alone(plain):
    before = {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*")}
    recipe = Recipe("pretrain", plain.folder / "config.yaml")
    with recipe.start(ranks=2) as ranks:
        assert ranks.wait() == [0, 0]
        assert f"val_top1 {plain.result['val_top1']}" in ranks.output(0)[0]
    assert {path: path.stat().st_mtime_ns for path in plain.folder.rglob("*")} == before


def test_steps_that_are_passed_over_keep_their_number_and_their_batch(pretraining, plain):
    done = pretraining.but(data__skip_steps="[2, 5]").run(ranks=2)
    assert [line["step"] for line in done.metrics if line.get("skipped")] == [3, 6]
    trained = [line for line in done.metrics if not line.get("skipped")]
    by_step = {line["step"]: line for line in plain.metrics}
    assert [line["batch_digest"] for line in trained] == [by_step[line["step"]]["batch_digest"] for line in trained]
    assert [line["lr"] for line in trained] == [by_step[line["step"]]["lr"] for line in trained]
    assert done.result["images_seen"] == 8 * 24
    assert sorted(done.ledger()) == [1, 2, 4, 5, 7, 8, 9, 10]
