"""What a training run has to work through, judged without torch: its sets of images, its steps, and each rank's part of
a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from data_pipeline.config import DataConfig, Folders
from data_pipeline.plan import Plan, max_share
from data_pipeline.samples import SampleSet, check_same_classes
from launch.run import RunConfig
from pretrain.config import EvaluateConfig
from pretrain.optim import OptimConfig

D = TypeVar("D", bound=DataConfig)

# Rows: keeps two CPU cores busy, and ViT-H/14 fits with full checkpointing beside its states on an 80 GB GPU.
AUTO_MICRO_BATCH = 64


def open_sets(data: DataConfig) -> tuple[SampleSet, SampleSet | None]:
    """The training and the validation set, every shard there with its size.

    Raises ValueError when they number classes differently.
    """
    train = _open("data.train", data.train)
    if data.val is None:
        return train, None
    val = _open("data.val", data.val)
    check_same_classes(train, val)
    return train, val


def resolved(data: D, train: SampleSet) -> D:
    """The section with the set's identity and with paths that hold from any folder.

    Raises ValueError when it names another training set than the one that is there.
    """
    if data.identity not in (None, train.identity):
        raise ValueError(
            f"data.identity = {data.identity}: data.train is another set ({train.identity}); "
            "point data.train at the right one, or take data.identity out"
        )
    paths = {"train": _absolute(data.train), "val": _absolute(data.val) if data.val else None}
    return data.model_copy(update={"identity": train.identity, **paths})


def _absolute(folders: Folders) -> Folders:
    return folders.absolute() if isinstance(folders, Path) else tuple(folder.absolute() for folder in folders)


def _open(key: str, folders: Folders) -> SampleSet:
    try:
        samples = SampleSet.open(folders)
        samples.check()
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return samples


class TrainingConfig(Protocol):
    """What a pretraining and a fine-tuning config have in common, as far as the work depends on it."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def evaluate(self) -> EvaluateConfig: ...
    @property
    def engine(self) -> HasMicroBatch: ...


class HasMicroBatch(Protocol):
    """A section `engine`."""

    @property
    def micro_batch(self) -> int | Literal["auto"]: ...


@dataclass(frozen=True)
class Workload:
    """The arithmetic of a run on a number of ranks."""

    plan: Plan
    steps: int
    ranks: int
    micro_batch: int  # rows
    accumulation: int  # micro-batches a step

    @classmethod
    def lay_out(cls, config: TrainingConfig, train: SampleSet, ranks: int) -> Workload:
        """Work out steps and shares; raises ValueError for what does not fit the set, the ranks or the run's length."""
        run, data, evaluate = config.run, config.data, config.evaluate
        if data.batch < ranks:
            raise ValueError(
                f"data.batch = {data.batch}: is less than the {ranks} ranks; raise data.batch or start fewer ranks"
            )
        steps = run.steps or math.ceil((run.epochs or 0) * train.num_samples / data.batch)
        if config.optim.warmup_steps > steps:
            raise ValueError(
                f"optim.warmup_steps = {config.optim.warmup_steps}: is longer than the run of {steps} steps; shorten it"
            )
        if beyond := [step for step in data.skip_steps if step >= steps]:
            raise ValueError(f"data.skip_steps: {beyond[0]} is not a step of the run, 0 to {steps - 1}; take it out")
        if len(set(data.skip_steps)) < len(data.skip_steps):
            raise ValueError(f"data.skip_steps = {list(data.skip_steps)}: names a step twice; name each once")
        if evaluate.every_steps and data.val is None:
            raise ValueError(
                f"evaluate.every_steps = {evaluate.every_steps}: there is no data.val; name one, or leave this out"
            )
        plan = Plan(train.shard_samples, train.block_samples, seed=run.seed, batch=data.batch, lanes=data.lanes)
        share = max_share(data.batch, ranks)
        asked = config.engine.micro_batch
        if asked == "auto":
            accumulation = math.ceil(share / AUTO_MICRO_BATCH)
            return cls(plan, steps, ranks, math.ceil(share / accumulation), accumulation)
        micro_batch = min(asked, share)  # more rows than a share has would be padding
        return cls(plan, steps, ranks, micro_batch, math.ceil(share / micro_batch))

    @property
    def rows(self) -> int:
        """Rows of a rank's batch: the largest share, padded to whole micro-batches."""
        return self.micro_batch * self.accumulation

    @property
    def loss_scale(self) -> float:
        """What the sum of a micro-batch's losses is multiplied by: averaged over ranks and micro-batches it is the
        global mean."""
        return self.ranks * self.accumulation / self.plan.batch_samples

    def summary(self) -> str:
        """Steps and shares, for people."""
        padding = self.rows * self.ranks - self.plan.batch_samples
        epochs = self.steps * self.plan.batch_samples / self.plan.num_samples
        return (
            f"steps   {self.steps:,} of {self.plan.batch_samples:,} images ({epochs:.1f} epochs)\n"
            f"ranks   {self.ranks}; {self.accumulation} micro-batches of {self.micro_batch} on each"
            + (f", {padding} rows of padding a step" if padding else "")
        )
