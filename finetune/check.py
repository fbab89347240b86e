"""Everything about a fine-tuning run that can be judged before torch is imported and before a rank starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.load import load
from data_pipeline.manifest import sha256_of
from data_pipeline.mixing import warn_of_mixing
from data_pipeline.samples import SampleSet
from finetune.config import FinetuneConfig
from launch.run import Run, library_versions
from pretrain import checkpoint_folder
from pretrain.workload import Workload, open_sets, resolved
from vit.config import HeadConfig, ViTConfig
from vit.weights import TENSORS_FILE, Normalisation, WeightsHeader, read_header


@dataclass(frozen=True)
class Prepared:
    """A fine-tuning run that may start: its config resolved, its sets and weights judged, its arithmetic done."""

    config: FinetuneConfig
    vit: ViTConfig  # of the model to be trained
    head: HeadConfig
    upstream: WeightsHeader  # of the weights that it begins with
    train: SampleSet
    val: SampleSet | None
    work: Workload

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of the training that wrote it."""
        return {"precision": self.config.engine.precision, "versions": library_versions()}

    @property
    def header(self) -> WeightsHeader:
        """What the fine-tuned weights say of themselves: their shape, their classes, where they come from."""
        config = self.config
        upstream = {"sha256": config.weights_sha256, **self.upstream.provenance}
        return WeightsHeader(
            vit=self.vit,
            head=self.head,
            # A head may have more outputs than the set has classes; then nobody has named them all.
            classes=self.train.classes if self.head.num_classes == self.train.num_classes else (),
            provenance={
                "run": config.run.folder.name,
                "step": self.work.steps,
                "objective": config.objective.name,
                "training_images": self.train.num_samples,
                "training_set": self.train.identity,
                "init": config.init,
                "upstream": upstream if config.init == "weights" else None,
                **library_versions(),
            },
        )

    def summary(self) -> str:
        """What will be done, in a few lines for people."""
        warn_of_mixing(self.train)
        config, (height_px, width_px) = self.config, self.vit.image_hw
        start = "fine-tuned from" if config.init == "weights" else "from scratch, in the shape of"
        val = f"{self.val.num_samples:,} images to test on" if self.val else "no set to test on"
        return "\n".join(
            (
                f"data    {self.train.num_samples:,} images, {self.train.num_classes:,} classes; {val}",
                f"model   {self.vit.name} at {height_px} x {width_px} px, {start} {config.weights}",
                f"head    linear, {self.head.num_classes:,} classes",
                self.work.summary(),
                f"run     {config.run.folder}",
            )
        )


def prepare(path: Path, overrides: Sequence[str], ranks: int) -> Prepared:
    """Read and judge the config, the weights' header, the manifests and the run folder.

    Raises ValueError with what, where, the rule and the remedy.
    """
    config = load(path, FinetuneConfig, overrides)
    with _naming(f"{path}: "):
        return _prepare(config, ranks)


def _prepare(config: FinetuneConfig, ranks: int) -> Prepared:
    with _naming("weights: "):
        upstream = read_header(config.weights)
    if upstream.vit.channels != 3:
        channels = f"{upstream.vit.channels} channel{'s' if upstream.vit.channels > 1 else ''}"
        raise ValueError(
            f"weights = {config.weights}: are for images of {channels}; sets are fed as RGB: "
            "name weights for 3 channels"
        )
    if upstream.normalisation != Normalisation():
        fed, wanted = Normalisation(), upstream.normalisation
        raise ValueError(
            f"weights = {config.weights}: want pixels of mean {wanted.mean} and std {wanted.std}; fine-tuning feeds "
            f"pixels in [-1, 1], mean {fed.mean} and std {fed.std}: name weights that were trained on these"
        )
    with _naming("vit."):
        vit = upstream.vit.at(config.vit.image_px or upstream.vit.image_px)
    if config.vit.dropout is not None:
        vit = vit.model_copy(update={"dropout": config.vit.dropout})

    train, val = open_sets(config.data)
    if per_class := config.data.train_per_class:
        with _naming(f"data.train_per_class = {per_class}: "):
            train = train.subset_per_class(per_class, config.run.seed)
    num_classes = config.head.num_classes or train.num_classes
    train.check_labels(num_classes)
    work = Workload.lay_out(config, train, ranks)

    sha256 = sha256_of(config.weights / TENSORS_FILE)
    if config.weights_sha256 not in (None, sha256):
        raise ValueError(
            f"weights_sha256 = {config.weights_sha256}: the weights in {config.weights} have {sha256}; "
            "point weights at the right folder, or take weights_sha256 out"
        )
    whole = config.model_copy(
        update={
            "weights": config.weights.absolute(),
            "weights_sha256": sha256,
            "head": config.head.model_copy(update={"num_classes": num_classes}),
            "vit": config.vit.model_copy(update={"image_px": vit.image_px, "dropout": vit.dropout}),
            "data": resolved(config.data, train),
        }
    )
    Run.judge(whole, config.optim.may_grow)
    checkpoint_folder.judge(config.run.folder / checkpoint_folder.CHECKPOINTS)
    return Prepared(whole, vit, HeadConfig(kind="linear", num_classes=num_classes), upstream, train, val, work)


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Put before a complaint what of the config it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}{error}") from error
