"""Pretraining as a whole: one result whatever the ZeRO stage, ranks and micro-batches; to the bit after a kill."""

import json
import math
import random
import tarfile
from typing import IO, cast

import pytest
from webdataset import TarWriter

from data_pipeline.__main__ import main
from data_pipeline.plan import Plan
from data_pipeline.samples import SampleSet
from tests import training
from tests.ranks import run_command
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
    recipe.start_and_kill(victim, after_step)
    resumed = recipe.run(ranks=2)

    assert next(event["step"] for event in resumed.events if event["kind"] == "resumed") >= 3
    assert [line["step"] for line in resumed.metrics] == list(range(1, 11))
    for ours, theirs in zip(resumed.metrics, unbroken.metrics, strict=True):
        for name in ("loss", "grad_norm", "lr", "batch_digest"):
            assert ours[name] == theirs[name], (ours["step"], name)
    assert equal_to_the_bit(resumed.weights, unbroken.weights)
    assert resumed.ledger() == unbroken.ledger()
    assert resumed.result["val_loss"] == unbroken.result["val_loss"]


def test_it_goes_on_with_other_ranks_and_another_stage(pretraining, plain):
    """5 steps on two ranks at ZeRO-3, the rest on three at ZeRO-1: the same images, the numbers up to summation."""
    recipe = pretraining.but(run__checkpoint_every_steps=5, engine__zero_stage=3)
    recipe.start_and_kill(0, after_step=6)
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


def test_a_resume_says_what_it_refused_and_where_it_goes_on(pretraining):
    recipe = pretraining.but(run__checkpoint_every_steps=4)
    done = recipe.run()
    (done.folder / "result.json").unlink()
    tensors = done.folder / "checkpoints/step-00000010/rank-00000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    (done.folder / "checkpoints/step-00000011.tmp").mkdir()
    with recipe.start(ranks=1) as rank:
        assert rank.wait() == [0]
        said = rank.output(0)[0]
    assert "checkpoint of step 10 refused: rank-00000.safetensors has" in said
    assert "resumed at step 8" in said
    assert [event["step"] for event in done.events if event["kind"] == "checkpoint refused"] == [10]
    assert not (done.folder / "checkpoints/step-00000011.tmp").exists()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_by_itself(pretraining):
    done = pretraining.run()
    (done.folder / "result.json").unlink()
    (done.folder / "checkpoints/step-00000010/rank-00000.safetensors").write_bytes(b"")
    code, _, stderr = run_command("pretrain", pretraining.arguments)
    assert code == 1
    assert "none of 1 checkpoints holds; remove the folder to begin from step 0" in stderr
    assert len(done.metrics) == 10


def test_a_checkpoint_of_another_format_is_exit_2_and_stays(pretraining):
    done = pretraining.run()
    (done.folder / "result.json").unlink()
    manifest = done.folder / "checkpoints/step-00000010/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    code, _, stderr = run_command("pretrain", pretraining.arguments)
    assert code == 2
    assert "format 99 is read by vit-at-scale >= 0.1.0; this version reads format 1" in stderr
    assert '"format": 99' in manifest.read_text()


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_several_labels_an_image_and_a_head_wider_than_the_set(pretraining, digits, tmp_path, loss):
    """The digits again, each with its own label and its parity's, as KEY.json."""
    (tmp_path / "tars").mkdir()
    for source in sorted((digits / "upstream/val").glob("*.tar")):
        with tarfile.open(source) as old, TarWriter(str(tmp_path / "tars" / source.name)) as new:
            members = {member.name: cast(IO[bytes], old.extractfile(member)).read() for member in old}
            for name, content in members.items():
                if name.endswith(".png"):
                    label = int(members[name.replace(".png", ".cls")])
                    labels = {"labels": [label, 6 + label % 2]}
                    new.write({"__key__": name[:-4], "png": content, "json": json.dumps(labels).encode()})
    tars = sorted(map(str, (tmp_path / "tars").glob("*.tar")))
    assert main(["index", *tars, "--out", str(tmp_path / "set")]) == 0
    many = pretraining.but(data__train=tmp_path / "set", data__val=tmp_path / "set", objective=f"{{name: {loss}}}")
    done = many.but(head__num_classes=12, run__steps=4).run(ranks=2)
    assert done.losses[-1] < done.losses[0]
    expected_first = math.log(12) if loss == "softmax" else 12 * math.log(2)
    assert done.losses[0] == pytest.approx(expected_first, rel=1e-5)
    assert 0.0 <= done.result["val_top1"] <= done.result["val_top5"] <= 1.0


def test_more_rows_than_a_share_has_are_no_padding(pretraining, plain):
    other = pretraining.but(engine__micro_batch=4096).run(ranks=2)
    assert other.losses == pytest.approx(plain.losses, rel=0, abs=1e-5)
