"""Everything about a pretraining run that can be judged before torch is imported and before a rank starts."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load
from data_pipeline.plan import Plan, max_share
from data_pipeline.samples import SampleSet, check_same_classes
from launch.run import Run, library_versions
from pretrain.config import PretrainConfig

AUTO_MICRO_BATCH = 64  # images: what fits beside ViT-H/14's states on an 80 GB GPU with full checkpointing, and keeps two CPU cores busy


@dataclass(frozen=True)
class Prepared:
    """A run that may start: its resolved config, its data opened, its arithmetic done."""

    config: PretrainConfig
    train: SampleSet
    val: SampleSet | None
    plan: Plan
    steps: int
    ranks: int
    micro_batch: int
    accumulation: int

    @property
    def loss_scale(self) -> float:
        """What a sum over a micro-batch's losses is multiplied by, so that the average over ranks and micro-batches is the global mean."""
        return self.ranks * self.accumulation / self.config.data.batch

    @property
    def may_grow(self) -> tuple[str, ...]:
        """Identity keys that may become larger when the run is continued."""
        return ("run.steps", "run.epochs") if self.config.optim.schedule == "constant" else ()

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the training that wrote it."""
        return {"zero_stage": self.config.engine.zero_stage, "precision": self.config.engine.precision, "versions": library_versions()}

    @property
    def rows(self) -> int:
        """Rows of a rank's batch: its largest share, padded to whole micro-batches."""
        return self.micro_batch * self.accumulation

    def summary(self) -> str:
        """What will be done, in a few lines for people."""
        config = self.config
        padded = self.rows * self.ranks - config.data.batch
        return "\n".join(
            (
                f"data    {self.train.num_samples:,} images, {len(self.train.classes):,} classes, {len(self.train.shard_names):,} shards"
                + (f"; validation {self.val.num_samples:,} images" if self.val else "; no validation set"),
                f"model   {config.vit.variant or 'ViT'}: width {config.vit.width}, depth {config.vit.depth}, {config.vit.num_tokens} tokens,"
                f" {config.head.kind} head of {config.head.num_classes:,} classes",
                f"steps   {self.steps:,} of {config.data.batch:,} images ({self.steps * config.data.batch / self.train.num_samples:.1f} epochs)",
                f"ranks   {self.ranks}, ZeRO-{config.engine.zero_stage}, {config.engine.precision}, {self.accumulation} micro-batch(es) of"
                f" {self.micro_batch} a rank" + (f", {padded} rows of padding a step" if padded else ""),
                f"run     {config.run.folder}",
            )
        )


def prepare(path: Path, overrides: Sequence[str], ranks: int) -> Prepared:
    """Read and judge the config, the manifests and the run folder; raises ValueError with what, where, the rule and the remedy."""
    config = load(path, PretrainConfig, overrides)
    if config.engine.compile is True and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise ValueError(f"{path}: engine.compile = true: torch.compile needs a C++ compiler and none is on PATH; install g++, or set engine.compile=false")
    train = SampleSet.open(config.data.train)
    val = SampleSet.open(config.data.val) if config.data.val else None
    if val:
        check_same_classes(train, val)
    num_classes = config.head.num_classes or len(train.classes)
    if num_classes < len(train.classes):
        raise ValueError(
            f"{path}: head.num_classes = {num_classes}: the training set has {len(train.classes)} classes, so labels up to {len(train.classes) - 1} would"
            " lie outside the head; leave head.num_classes out to take the manifest's"
        )
    if config.data.batch < ranks:
        raise ValueError(f"{path}: data.batch = {config.data.batch} is less than the {ranks} ranks; raise data.batch or start fewer ranks")
    config = config.model_copy(update={"head": config.head.model_copy(update={"num_classes": num_classes})})
    plan = Plan(train.shard_samples, train.block_samples, seed=config.run.seed, batch=config.data.batch, lanes=config.data.lanes)
    steps = config.run.steps or math.ceil(config.run.epochs * train.num_samples / config.data.batch)
    if config.optim.warmup_steps > steps:
        raise ValueError(f"{path}: optim.warmup_steps = {config.optim.warmup_steps:,} is longer than the run of {steps:,} steps; shorten the warm-up")
    micro_batch, accumulation = split_share(max_share(config.data.batch, ranks), config.engine.micro_batch)
    prepared = Prepared(config, train, val, plan, steps, ranks, micro_batch, accumulation)
    Run.judge(config, prepared.may_grow)
    return prepared


def split_share(share: int, micro_batch: int | str) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches) that hold a rank's share of a batch; `auto` splits it evenly into at most 64 rows each."""
    if isinstance(micro_batch, int):
        return micro_batch, math.ceil(share / micro_batch)
    accumulation = math.ceil(share / AUTO_MICRO_BATCH)
    return math.ceil(share / accumulation), accumulation
