"""The fine-tuning config. The model's shape comes from the weights, so only what may change about it can be said
here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from configs.load import FREE, NUMERIC
from data_pipeline.config import AugmentConfig, DataConfig
from launch.run import RunConfig
from pretrain.config import EvaluateConfig, ObjectiveConfig, Section
from pretrain.optim import OptimConfig


class LinearHeadConfig(Section):
    """The new head: one linear layer, zero-initialised."""

    num_classes: int | None = Field(None, gt=0)  # None: the manifest's


class TransferredViTConfig(Section):
    """What may differ from the weights' own shape; None keeps it."""

    image_px: Annotated[int, Field(gt=0)] | tuple[int, int] | None = None  # one side, or (height, width)
    dropout: float | None = Field(None, ge=0.0, lt=1.0)


class FinetuneDataConfig(DataConfig):
    """The sets, and how many labelled images of each class are used."""

    train_per_class: int | None = Field(None, gt=0)  # None: all of them; chosen by run.seed


class FinetuneOptimConfig(OptimConfig):
    """SGD unless AdamW is asked for, with momentum 0.9, cosine decay, clipping at 1 and no weight decay (the paper's
    table 4): the other defaults are pretraining's."""

    name: Literal["adamw", "sgd"] = "sgd"


class FinetuneEngineConfig(Section):
    """How a step is computed."""

    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast over fp32 weights
    micro_batch: Annotated[int, Field(gt=0)] | Literal["auto"] = Field("auto", json_schema_extra=NUMERIC)
    activation_checkpointing: Literal["none", "full"] = Field("none", json_schema_extra=NUMERIC)


class FinetuneConfig(Section):
    """Everything that a fine-tuning run is made of."""

    run: RunConfig
    weights: Path = Field(json_schema_extra=FREE)
    weights_sha256: str | None = None  # filled from the weights, so that they may move but not change under a run
    init: Literal["weights", "scratch"] = "weights"  # scratch: their shape, fresh values; the baseline of a transfer
    head: LinearHeadConfig = LinearHeadConfig()
    vit: TransferredViTConfig = TransferredViTConfig()
    data: FinetuneDataConfig
    augment: AugmentConfig = AugmentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: FinetuneOptimConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    engine: FinetuneEngineConfig = FinetuneEngineConfig()
