"""The fine-tuning loop, read downward: where this run lives; data; model; loop; what the run leaves.

    weights -> swap head, resize positions -> Accelerate -> accuracy

The same chapters as pretraining's, with Accelerate where DeepSpeed stands there. The loader is never prepared by
Accelerate: it is sharded already, and sharding it again loses half of the images without a word.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.checkpoint import checkpoint as recompute

from data_pipeline.augment import EvalTransform, TrainTransform
from data_pipeline.random import Purpose, words
from data_pipeline.stream import TrainStream, eval_batches
from finetune.check import Prepared
from launch.agreement import once
from launch.run import Run
from launch.world import World
from pretrain import checkpoint
from pretrain.checkpoint import MASTER, Slice
from pretrain.evaluate import evaluate
from pretrain.meter import StepMeter
from pretrain.objective import classification, loss_per_image
from pretrain.optim import STATES, begin_states, build_optimizer, learning_rate, set_learning_rate
from vit import weights
from vit.model import ViT


def train(prepared: Prepared, world: World, run: Run) -> dict[str, Any]:
    """Fine-tune to the last step, or go on from the newest whole checkpoint; returns the run's result."""
    config, work, steps = prepared.config, prepared.work, prepared.work.steps

    # --- Where this run lives ----------------------------------------------------------------------------------------
    accelerator = Accelerator(
        cpu=world.device == "cpu",
        mixed_precision="bf16" if config.engine.precision == "bf16" else "no",
        gradient_accumulation_steps=work.accumulation,
    )
    saved = checkpoint.resume(run, world)
    start = saved.step if saved else 0

    # --- Data --------------------------------------------------------------------------------------------------------
    workers, threads = config.data.workers, config.data.threads
    augment = TrainTransform(config.augment, prepared.vit.image_hw, config.run.seed)
    stream = TrainStream(prepared.train, work.plan, augment, world.rank, world.size, work.rows, workers, threads)
    batches = stream.batches(start, steps, skip=config.data.skip_steps)

    # --- Model -------------------------------------------------------------------------------------------------------
    if config.init == "weights":
        vit, num_classes = prepared.vit, prepared.head.num_classes
        module, notes = weights.load_model(config.weights, num_classes, vit.image_px, vit.dropout)
    else:
        module, notes = ViT(prepared.vit, prepared.head), ["from scratch: fresh values in the shape of the weights"]
        module.init_weights(config.run.seed)
    if config.engine.activation_checkpointing == "full":
        module.run_block = lambda block, x_BND: recompute(block, x_BND, use_reentrant=False)
    module.to(world.device)
    bare = build_optimizer(config.optim, module, fused=world.device != "cpu")
    begin_states(config.optim, bare, module.parameters())
    slices = partial(_slices, module, bare, STATES[config.optim.name])
    if saved:
        saved.fill(slices())
        for state in bare.state.values():
            if "step" in state:  # AdamW counts its updates
                state["step"].fill_(saved.facts["updates"])
    model, optimizer = accelerator.prepare(module, bare)
    run.resume_at(start, steps)
    for note in notes:
        run.say(note)

    # --- Loop --------------------------------------------------------------------------------------------------------
    objective = partial(classification, config.objective, model, scale=work.loss_scale)
    meter = StepMeter(run, world, config.data.batch, steps, config.run.log_every_steps, config.data.skip_steps)

    def save(step: int) -> None:
        mine = checkpoint.even_parts(slices(), world)
        updates = step - sum(skipped < step for skipped in config.data.skip_steps)
        checkpoint.save(run, step, mine, {"updates": updates, **prepared.facts}, world)

    def validate(step: int) -> dict[str, float]:
        if not prepared.val:
            return {}
        squash = EvalTransform(prepared.vit.image_hw)
        images = eval_batches(prepared.val, squash, world.rank, world.size, config.evaluate.batch, workers, threads)
        model.eval()
        accuracy = evaluate(model, images, partial(loss_per_image, config.objective), world)
        model.train()
        run.record_validation(step, accuracy)
        return accuracy

    model.train()
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
            set_learning_rate(bare, lr)
            loss_sum = torch.zeros((), device=world.device)
            grad_norm = torch.zeros(())
            for micro in batch.micro(work.micro_batch):
                # Accelerate divides the loss by the accumulation, and acts only after the last micro-batch of a step.
                with accelerator.accumulate(model):
                    loss, micro_sum = objective(micro)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.optim.clip or float("inf"))
                    optimizer.step()
                    optimizer.zero_grad()
                loss_sum += micro_sum
            run.consume(step + 1, batch.keys)
            meter.step_done(step + 1, batch, loss_sum, grad_norm, lr)

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
    folder, state = run.folder / "weights", module.state_dict()
    once(world, "writing the weights", lambda: weights.save(folder, state, prepared.header))
    return run.finish({"step": steps, "images_seen": meter.images_seen(steps), **accuracy})


def _slices(module: ViT, optimizer: torch.optim.Optimizer, kinds: tuple[str, ...]) -> list[Slice]:
    """Every weight and its optimizer states, whole, as views: what a checkpoint saves and fills."""
    return [
        Slice(name, 0, {MASTER: p.detach().view(-1), **{kind: optimizer.state[p][kind].view(-1) for kind in kinds}})
        for name, p in module.named_parameters()
    ]
