"""Everything about a pretraining run that can be judged before torch is imported and before a rank starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load
from data_pipeline.mixing import warn_of_mixing
from data_pipeline.samples import SampleSet
from launch.host import compiler, num_gpus
from launch.run import Run, library_versions
from pretrain import checkpoint_folder
from pretrain.config import PretrainConfig
from pretrain.workload import Workload, open_sets, resolved
from vit.cost import num_params


@dataclass(frozen=True)
class Prepared:
    """A run that may start: its config resolved, its sets opened, its arithmetic done."""

    config: PretrainConfig
    train: SampleSet
    val: SampleSet | None
    work: Workload

    @property
    def may_grow(self) -> tuple[str, ...]:
        """Identity keys that may become larger when the run is continued."""
        return self.config.optim.may_grow

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the training that wrote it."""
        engine = self.config.engine
        return {"zero_stage": engine.zero_stage, "precision": engine.precision, "versions": library_versions()}

    def summary(self) -> str:
        """What will be done, in a few lines for people; a set that is mixed badly is warned of on standard error."""
        warn_of_mixing(self.train)
        vit, head, engine = self.config.vit, self.config.head, self.config.engine
        val = f"{self.val.num_samples:,} images to validate on" if self.val else "no validation set"
        shape = vit.variant or f"width {vit.width}, depth {vit.depth}, patch {vit.patch_px}"
        return "\n".join(
            (
                f"data    {self.train.num_samples:,} images, {self.train.num_classes:,} classes; {val}",
                f"model   {shape}, {vit.num_tokens} tokens, {num_params(vit, head):,} parameters",
                f"head    {head.kind}, {head.num_classes:,} classes",
                f"engine  ZeRO-{engine.zero_stage}, {engine.precision}, "
                f"activation checkpointing {engine.activation_checkpointing}",
                self.work.summary(),
                f"run     {self.config.run.folder}",
            )
        )


def prepare(path: Path, overrides: Sequence[str], ranks: int) -> Prepared:
    """Read and judge the config, the manifests and the run folder.

    Raises ValueError with what, where, the rule and the remedy.
    """
    config = load(path, PretrainConfig, overrides)
    try:
        return _prepare(config, ranks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _prepare(config: PretrainConfig, ranks: int) -> Prepared:
    _judge_compiler(config)
    train, val = open_sets(config.data)
    data = resolved(config.data, train)
    num_classes = config.head.num_classes or train.num_classes
    train.check_labels(num_classes)
    work = Workload.lay_out(config, train, ranks)
    whole = config.model_copy(
        update={
            "head": config.head.model_copy(update={"num_classes": num_classes}),
            "data": data,
        }
    )
    prepared = Prepared(whole, train, val, work)
    Run.judge(whole, prepared.may_grow)
    checkpoint_folder.judge(config.run.folder / checkpoint_folder.CHECKPOINTS)
    return prepared


def _judge_compiler(config: PretrainConfig) -> None:
    for_gpu = num_gpus() > 0
    if config.engine.compile is True and compiler(for_gpu) is None:
        raise ValueError(
            "engine.compile = true: torch.compile needs a compiler and there is none on PATH; "
            f"install {'gcc' if for_gpu else 'g++'}, or set engine.compile=false"
        )
