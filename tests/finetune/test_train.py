"""Fine-tuning as a whole: what it starts from, one result however a step is computed, to the bit after a kill."""

import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute

from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.config import AugmentConfig
from data_pipeline.decode import decode
from data_pipeline.manifest import sha256_of
from data_pipeline.plan import Plan
from data_pipeline.samples import SampleSet
from data_pipeline.stream import TrainStream
from tests import training
from tests.ranks import run_command, run_ranks
from tests.training import Done, Recipe, equal_to_the_bit, largest_difference
from vit.config import HeadConfig
from vit.model import ViT
from vit.positions import resize_positions
from vit.weights import load_model, read_header

OPTIMIZERS: dict[str, dict[str, object]] = {
    "sgd": {},
    "adamw": {"optim__name": "adamw", "optim__lr": 1e-3, "optim__weight_decay": 0.1, "optim__decay": "matrices"},
}

WAYS: dict[str, tuple[int, dict[str, object]]] = {
    "two ranks": (2, {}),
    "three ranks, indivisible": (3, {}),
    "four micro-batches": (1, {"engine__micro_batch": 4}),
    "three micro-batches, padded, on two ranks": (2, {"engine__micro_batch": 3}),
    "checkpointing": (1, {"engine__activation_checkpointing": "full"}),
}


@pytest.fixture(scope="module")
def plain(digits, pretrained, tmp_path_factory) -> dict[str, Done]:
    """One rank, one micro-batch, with each optimizer: what every other way is compared with."""
    upstream = pretrained.folder / "weights"
    return {
        name: training.finetuning(digits, upstream, tmp_path_factory.mktemp(name), **overrides).run()
        for name, overrides in OPTIMIZERS.items()
    }


def unmoved(finetuning: Recipe, **overrides: object) -> Done:
    """One step at learning rate 0, the first of a warm-up: its weights are those that training starts from."""
    return finetuning.but(run__steps=1, optim__warmup_steps=1, **overrides).run()


# --- What it starts from ---------------------------------------------------------------------------------------------


def test_it_starts_from_the_weights_with_a_new_head_and_resized_positions(finetuning, pretrained):
    done = unmoved(finetuning)
    upstream, ours = pretrained.weights, done.weights
    assert not ours.pop("head.weight").any()
    assert not ours.pop("head.bias").any()
    assert torch.equal(ours.pop("pos_embed"), resize_positions(upstream["pos_embed"], (3, 3), (5, 5), 1))
    assert upstream.keys() - ours.keys() == {
        "head.weight", "head.bias", "pre_logits.weight", "pre_logits.bias", "pos_embed"
    }  # fmt: skip
    assert all(torch.equal(ours[name], upstream[name]) for name in ours)
    assert done.losses == pytest.approx([math.log(4)], abs=1e-6)


def test_it_says_what_it_changed_to_fit(plain):
    log = (plain["sgd"].folder / "logs/rank-00000.log").read_text()
    assert "positions 3x3 -> 5x5, bilinear (JAX)" in log
    assert "head mlp of 6 classes -> linear of 4, zero" in log


def test_from_scratch_is_the_same_shape_with_nothing_of_upstream(finetuning, pretrained):
    done = unmoved(finetuning, init="scratch", run__seed=3)
    fresh = ViT(read_header(pretrained.folder / "weights").vit.at(20), HeadConfig(kind="linear", num_classes=4))
    fresh.init_weights(3)
    assert equal_to_the_bit(done.weights, fresh.state_dict())
    assert read_header(done.folder / "weights").provenance["upstream"] is None
    assert "from scratch" in (done.folder / "logs/rank-00000.log").read_text()


def test_other_image_sizes_and_dropout_are_taken_over(finetuning):
    done = unmoved(finetuning, vit__image_px="[8, 24]", vit__dropout=0.3)
    vit = read_header(done.folder / "weights").vit
    assert (vit.grid, vit.dropout) == ((2, 6), 0.3)
    assert done.weights["pos_embed"].shape == (1, 1 + 2 * 6, 24)


# --- What a step is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "clip"), [("", 1.0), (", clip: 2.0", 2.0), (", clip: 0", math.inf)])
def test_the_defaults_are_sgd_with_momentum_cosine_and_clipping_without_decay(finetuning, pretrained, more, clip):
    """Against the paper's recipe written out by hand, on the batches of the plan."""
    optim = "name: sgd, lr: 0.05, schedule: cosine"
    assert optim in training.TINY_FINETUNE
    finetuning.path.write_text(training.TINY_FINETUNE.replace(optim, "lr: 0.1" + more))
    done = finetuning.run()

    samples = SampleSet.open(Path(str(finetuning.overrides["data__train"])))
    plan = Plan(samples.shard_samples, samples.block_samples, seed=0, batch=16, lanes=3)
    transform = TrainTransform(AugmentConfig(area=(0.5, 1.0)), (20, 20), seed=0)
    model, _ = load_model(pretrained.folder / "weights", num_classes=4, image_px=20)
    model.train()
    velocities = [torch.zeros_like(parameter) for parameter in model.parameters()]
    norms = []
    for step, batch in enumerate(TrainStream(samples, plan, transform, rank=0, ranks=1, rows=16).batches(0, 8)):
        loss = F.cross_entropy(model(batch.pixels()), batch.labels)
        assert done.losses[step] == pytest.approx(loss.item(), abs=1e-5)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        lr = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 8))
        with torch.no_grad():
            for parameter, velocity, gradient in zip(model.parameters(), velocities, gradients, strict=True):
                velocity.mul_(0.9).add_(gradient * min(1, clip / norms[-1]))
                parameter.add_(velocity, alpha=-lr)
    assert max(norms) > 2 > min(norms)  # so that a clip of 2 is seen from both sides
    assert [line["grad_norm"] for line in done.metrics] == pytest.approx(norms, rel=1e-4)
    assert largest_difference(done.weights, model.state_dict()) < 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_numbers_do_not_depend_on_how_a_step_is_computed(plain, finetuning, optimizer, way):
    ranks, overrides = WAYS[way]
    expected, other = plain[optimizer], finetuning.but(**OPTIMIZERS[optimizer], **overrides).run(ranks)
    assert len(expected.losses) == 8
    assert other.losses == pytest.approx(expected.losses, rel=0, abs=1e-5)
    assert largest_difference(other.weights, expected.weights) < 1e-4
    assert [line["batch_digest"] for line in other.metrics] == [line["batch_digest"] for line in expected.metrics]
    assert [line["grad_norm"] for line in other.metrics] == pytest.approx(
        [line["grad_norm"] for line in expected.metrics], abs=1e-4
    )
    assert other.ledger() == expected.ledger()
    assert other.result["val_loss"] == pytest.approx(expected.result["val_loss"], abs=1e-4)


def blocks_recomputed(arguments: list[str]) -> int:
    """Fine-tune in this process, and count."""
    from finetune.__main__ import main

    with mock.patch("finetune.train.recompute", wraps=recompute) as counted:
        assert main(arguments) == 0
    return counted.call_count


@pytest.mark.parametrize(("checkpointing", "blocks"), [("none", 0), ("full", 2 * 8)])
def test_checkpointing_recomputes_every_block(finetuning, checkpointing, blocks):
    recipe = finetuning.but(engine__activation_checkpointing=checkpointing, data__val="null")
    assert run_ranks(1, blocks_recomputed, recipe.arguments) == [blocks]


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(plain, finetuning):
    done = finetuning.but(engine__precision="bf16").run(ranks=2)
    assert done.losses != pytest.approx(plain["sgd"].losses, abs=1e-5)
    assert done.losses == pytest.approx(plain["sgd"].losses, abs=0.05)
    assert {tensor.dtype for tensor in done.weights.values()} == {torch.float32}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_few_images_of_each_class_are_the_only_ones_it_sees(finetuning, ranks):
    done = finetuning.but(data__train_per_class=5, run__seed=1).run(ranks)
    samples = SampleSet.open(Path(str(finetuning.overrides["data__train"])))
    keys = [samples.key(shard, row) for shard, size in enumerate(samples.shard_samples) for row in range(size)]
    label_of = dict(zip(keys, samples.labels()[:, 0].tolist(), strict=True))
    seen = {key for keys in done.ledger().values() for key in keys}
    assert Counter(label_of[key] for key in seen) == {0: 5, 1: 5, 2: 5, 3: 5}
    chosen = samples.subset_per_class(5, seed=1)
    assert seen == {chosen.key(shard, row) for shard, size in enumerate(chosen.shard_samples) for row in range(size)}


# --- Stopped, and started again --------------------------------------------------------------------------------------

KILLS: dict[str, dict[str, object]] = {
    "sgd": {"optim__lr": 0.02},
    "adamw, accumulating, with a step passed over": {
        **OPTIMIZERS["adamw"],
        "engine__micro_batch": 4,
        "data__skip_steps": [1],
    },
    "bf16": {"engine__precision": "bf16"},
}


@pytest.mark.parametrize("what", KILLS)
def test_a_killed_run_ends_as_the_unbroken_one(finetuning, tmp_path, what):
    """SIGKILL at a random step on a random rank; dropout is on, so its random numbers must come back as well."""
    dice = random.Random(what)
    recipe = finetuning.but(run__steps=30, run__checkpoint_every_steps=3, vit__dropout=0.1, **KILLS[what])
    unbroken = recipe.but(run__folder=tmp_path / "unbroken").run(ranks=2)

    victim, after_step = dice.randrange(2), dice.randrange(4, 20)
    recipe.start_and_kill(victim, after_step)
    resumed = recipe.run(ranks=2)

    assert next(event["step"] for event in resumed.events if event["kind"] == "resumed") >= 3
    assert [line["step"] for line in resumed.metrics] == list(range(1, 31))
    for ours, theirs in zip(resumed.metrics, unbroken.metrics, strict=True):
        for name in ("loss", "grad_norm", "lr", "batch_digest"):
            assert ours.get(name) == theirs.get(name), (ours["step"], name)
    assert equal_to_the_bit(resumed.weights, unbroken.weights)
    assert resumed.ledger() == unbroken.ledger()
    assert {**resumed.result, "seconds": 0} == {**unbroken.result, "seconds": 0}


def test_killed_after_the_last_step_it_only_writes_what_is_missing(plain, tmp_path):
    shutil.copytree(plain["sgd"].folder, tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(tmp_path / "run/weights")
    done = Recipe("finetune", tmp_path / "run/config.yaml", run__folder=tmp_path / "run").run()
    assert done.metrics == plain["sgd"].metrics
    assert equal_to_the_bit(done.weights, plain["sgd"].weights)
    assert done.result["val_loss"] == plain["sgd"].result["val_loss"]


def test_a_longer_run_goes_on_where_a_shorter_ended(finetuning, tmp_path):
    """Only where the schedule does not depend on the length: with cosine it would be another run."""
    constant = finetuning.but(optim__schedule="constant")
    longer = constant.but(run__folder=tmp_path / "longer").run()
    constant.but(run__steps=4).run()
    grown = constant.run()
    assert [line["step"] for line in grown.metrics] == list(range(1, 9))
    assert grown.losses == longer.losses
    assert equal_to_the_bit(grown.weights, longer.weights)


def test_a_finished_run_is_left_alone(plain):
    folder = plain["sgd"].folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with Recipe("finetune", folder / "config.yaml").start(ranks=2) as ranks:
        assert ranks.wait() == [0, 0]
        assert f"val_top1 {plain['sgd'].result['val_top1']}" in ranks.output(0)[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# --- What it leaves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_test_image_counts_once(finetuning, ranks):
    """Against one image after the other: 143 of them fill no number of batches of 16, on one rank or three."""
    done = finetuning.but(vit__dropout=0.2).run(ranks)
    model, _ = load_model(done.folder / "weights")
    model.eval()
    samples, squash = SampleSet.open(Path(str(finetuning.overrides["data__val"]))), EvalTransform((20, 20))
    right, loss_sum = 0, 0.0
    for shard, size in enumerate(samples.shard_samples):
        for row in range(size):
            sample = samples.read(shard, row)
            pixels_HW3 = torch.from_numpy(squash(decode(sample.image_bytes), 0).copy()).float()
            with torch.no_grad():
                logits_1K = model((pixels_HW3.permute(2, 0, 1)[None] - 127.5) / 127.5)
            right += logits_1K.argmax().item() == sample.labels[0]
            loss_sum += F.cross_entropy(logits_1K, torch.tensor(sample.labels)).item()
    assert samples.num_samples == 143
    assert done.result["val_top1"] == right / 143
    assert done.result["val_loss"] == pytest.approx(loss_sum / 143, abs=1e-5)
    assert done.result["val_top5"] == 1.0  # there are four classes


def test_looking_at_the_test_images_on_the_way_changes_nothing(finetuning, plain, tmp_path):
    done = finetuning.but(vit__dropout=0.2).run()
    looking = finetuning.but(vit__dropout=0.2, evaluate__every_steps=3, run__folder=tmp_path / "looking").run()
    assert looking.losses == done.losses
    assert equal_to_the_bit(looking.weights, done.weights)
    assert [event["step"] for event in looking.events if event["kind"] == "validated"] == [3, 6, 8]
    assert not set(done.losses[1:]) & set(plain["sgd"].losses)  # the dropout is there


def test_the_weights_say_what_they_are(plain, pretrained, digits):
    folder = plain["sgd"].folder / "weights"
    header, upstream = read_header(folder), read_header(pretrained.folder / "weights")
    assert header.classes == ("6", "7", "8", "9")
    assert header.head == HeadConfig(kind="linear", num_classes=4)
    assert header.vit == upstream.vit.at(20)
    facts = header.provenance
    assert (facts["run"], facts["step"], facts["init"], facts["training_images"]) == ("run", 8, "weights", 571)
    assert facts["training_set"] == SampleSet.open(digits / "downstream/train").identity
    upstream_sha256 = sha256_of(pretrained.folder / "weights/model.safetensors")
    assert facts["upstream"] == {"sha256": upstream_sha256, **upstream.provenance}
    assert upstream.provenance["step"] == 10

    code, said, _ = run_command("vit", ["info", folder, "--json"])
    assert code == 0
    assert json.loads(said)["parameters"] == sum(tensor.numel() for tensor in plain["sgd"].weights.values())

    model, notes = load_model(folder)
    assert not notes
    assert equal_to_the_bit(model.state_dict(), plain["sgd"].weights)


def test_a_head_with_more_outputs_than_classes_names_none(finetuning):
    done = finetuning.but(head__num_classes=6, run__steps=1).run()
    assert done.losses == pytest.approx([math.log(6)], abs=1e-6)
    header = read_header(done.folder / "weights")
    assert (header.head.num_classes, header.classes) == (6, ())
