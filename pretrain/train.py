"""The pretraining loop, read downward: where this run lives; data; model; loop; what the run leaves.

    plan -> stream -> augment -> ViT -> objective -> engine -> checkpoint -> weights

The loop never divides the loss, never asks which rank it is, and never waits for the device to talk: the line of step
t-1 is written while step t runs.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.random import Purpose, words
from data_pipeline.stream import TrainStream, eval_batches
from launch.agreement import once
from launch.run import Run
from launch.world import World
from pretrain import checkpoint
from pretrain.check import Prepared
from pretrain.checkpoint_folder import CHECKPOINTS, folder_name
from pretrain.engine import Engine, connect
from pretrain.evaluate import evaluate
from pretrain.export import export_weights
from pretrain.meter import StepMeter
from pretrain.objective import classification, loss_per_image
from pretrain.optim import learning_rate
from vit.model import ViT


def train(prepared: Prepared, world: World, run: Run) -> dict[str, Any]:
    """Train to the last step, or go on from the newest whole checkpoint; returns the run's result."""
    config, work, steps = prepared.config, prepared.work, prepared.work.steps

    # --- Where this run lives ----------------------------------------------------------------------------------------
    connect(world)
    saved = checkpoint.resume(run, world)
    start = saved.step if saved else 0

    # --- Data --------------------------------------------------------------------------------------------------------
    workers, threads = config.data.workers, config.data.threads
    augment = TrainTransform(config.augment, config.vit.image_hw, config.run.seed)
    stream = TrainStream(prepared.train, work.plan, augment, world.rank, world.size, work.rows, workers, threads)
    batches = stream.batches(start, steps, skip=config.data.skip_steps)

    # --- Model -------------------------------------------------------------------------------------------------------
    model = ViT(config.vit, config.head)
    model.init_weights(config.run.seed)
    engine = Engine(model, config.engine, config.optim, world, work.micro_batch, work.accumulation)
    if saved:
        engine.restore(saved.fill, saved.facts["updates"])
    run.resume_at(start, steps)

    # --- Loop --------------------------------------------------------------------------------------------------------
    objective = partial(classification, config.objective, engine.model, scale=work.loss_scale)
    meter = StepMeter(run, world, config.data.batch, steps, config.run.log_every_steps, config.data.skip_steps)

    def save(step: int) -> None:
        mine = checkpoint.even_parts(engine.slices(), world) if config.engine.zero_stage == 0 else engine.slices()
        checkpoint.save(run, step, mine, {"updates": engine.updates, **prepared.facts}, world)

    def validate(step: int) -> dict[str, float]:
        if not prepared.val:
            return {}
        squash = EvalTransform(config.vit.image_hw)
        images = eval_batches(prepared.val, squash, world.rank, world.size, config.evaluate.batch, workers, threads)
        engine.module.eval()
        accuracy = evaluate(engine.model, images, partial(loss_per_image, config.objective), world)
        engine.module.train()
        run.record_validation(step, accuracy)
        return accuracy

    engine.module.train()
    for step in range(start, steps):
        if step in config.data.skip_steps:
            meter.skipped(step + 1)
        else:
            asked = time.perf_counter()
            batch = next(batches).to(world.device)
            meter.waited(time.perf_counter() - asked)

            # Dropout is keyed by (seed, step, rank): a resumed run draws what the unbroken one would have drawn.
            torch.manual_seed(int(words(config.run.seed, Purpose.DROPOUT, step, world.rank, count=1)[0]))
            lr = learning_rate(config.optim, step, steps)
            loss_sum = torch.zeros((), device=world.device)
            for micro in batch.micro(engine.micro_batch):
                loss, micro_sum = objective(micro)
                engine.backward(loss)
                engine.step(lr)
                loss_sum += micro_sum
            run.consume(step + 1, batch.keys)
            meter.step_done(step + 1, batch, loss_sum, engine.grad_norm, lr)

        done = step + 1
        if config.evaluate.every_steps and done < steps and done % config.evaluate.every_steps == 0:
            with meter.paused():
                validate(done)  # before the checkpoint: a restart from it will not come by here again
        if done == steps or done % config.run.checkpoint_every_steps == 0:
            with meter.paused():
                save(done)

    # --- What the run leaves -----------------------------------------------------------------------------------------
    batches.close()  # ends the loading workers
    accuracy = validate(steps)
    last = checkpoint.Checkpoint(run.folder / CHECKPOINTS / folder_name(steps))
    once(world, "writing the weights", lambda: export_weights(last, prepared, run.folder / "weights"))
    return run.finish({"step": steps, "images_seen": meter.images_seen(steps), **accuracy})
