"""Everything about a fine-tuning run that can be judged before torch is imported and before a rank starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from configs.load import load
from data_pipeline.samples import SampleSet
from finetune.config import FinetuneConfig
from launch.run import Run, library_versions
from pretrain.workload import Workload, open_sets
from vit.config import HeadConfig, ViTConfig
from vit.weights import TENSORS_FILE, Normalisation, read_header


@dataclass(frozen=True)
class Prepared:
    """A fine-tuning run that may start: its config resolved, its sets and weights judged, its arithmetic done."""

    config: FinetuneConfig
    vit: ViTConfig  # of the model to be trained
    head: HeadConfig
    upstream: dict[str, JsonValue]  # provenance of the weights that it begins with
    train: SampleSet
    val: SampleSet | None
    work: Workload

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the training that wrote it."""
        return {"precision": self.config.engine.precision, "versions": library_versions()}

    @property
    def provenance(self) -> dict[str, JsonValue]:
        """Where the fine-tuned weights come from."""
        config = self.config
        return {
            "run": config.run.folder.name,
            "init": config.init,
            "step": self.work.steps,
            "training_images": self.train.num_samples,
            "training_set": self.train.identity,
            "upstream": {"sha256": config.weights_sha256, **self.upstream},
            **library_versions(),
        }

    def summary(self) -> str:
        """What will be done, in a few lines for people."""
        config = self.config
        start = "fine-tuned from" if config.init == "weights" else "from scratch, in the shape of"
        val = f"{self.val.num_samples:,} images to test on" if self.val else "no set to test on"
        return "\n".join(
            (
                f"data    {self.train.num_samples:,} images, {self.train.num_classes:,} classes; {val}",
                f"model   {start} {config.weights}, {self.vit.image_hw[0]} x {self.vit.image_hw[1]} px",
                self.work.summary(),
                f"run     {config.run.folder}",
            )
        )


def prepare(path: Path, overrides: Sequence[str], ranks: int) -> Prepared:
    """Read and judge the config, the weights' header, the manifests and the run folder.

    Raises ValueError with what, where, the rule and the remedy.
    """
    config = load(path, FinetuneConfig, overrides)
    try:
        return _prepare(config, ranks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _prepare(config: FinetuneConfig, ranks: int) -> Prepared:
    header = read_header(config.weights)
    if header.normalisation != Normalisation():
        raise ValueError(f"weights = {config.weights}: expect pixels other than in [-1, 1], which fine-tuning feeds")
    sha256 = _sha256(config.weights / TENSORS_FILE)
    if config.weights_sha256 not in (None, sha256):
        raise ValueError(
            f"weights_sha256 = {config.weights_sha256}: the weights in {config.weights} have {sha256}; "
            "point weights at the right folder, or take weights_sha256 out"
        )
    train, val = open_sets(config.data)
    if config.data.train_per_class:
        train = train.subset_per_class(config.data.train_per_class, config.run.seed)
    if config.data.identity not in (None, train.identity):
        raise ValueError(
            f"data.identity = {config.data.identity}: data.train is another set ({train.identity}); "
            "point data.train at the right one, or take data.identity out"
        )
    num_classes = config.head.num_classes or train.num_classes
    train.check_labels(num_classes)

    vit = header.vit.at(config.vit.image_px or header.vit.image_px)
    dropout = vit.dropout if config.vit.dropout is None else config.vit.dropout
    vit = vit.model_copy(update={"dropout": dropout})
    work = Workload.lay_out(config.run, config.data, train, ranks, config.engine.micro_batch, config.optim.warmup_steps)
    resolved = config.model_copy(
        update={
            "weights_sha256": sha256,
            "head": config.head.model_copy(update={"num_classes": num_classes}),
            "vit": config.vit.model_copy(update={"image_px": vit.image_px, "dropout": dropout}),
            "data": config.data.model_copy(update={"identity": train.identity}),
        }
    )
    Run.judge(resolved)
    head = HeadConfig(kind="linear", num_classes=num_classes)
    return Prepared(resolved, vit, head, header.provenance, train, val, work)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
