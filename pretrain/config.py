"""The pretraining config: one frozen model per YAML section, read and judged without torch.

Sections that another room owns (`run`, `vit`, `head`, `data`, `augment`, `optim`) are imported from there; the three
that only pretraining has live here. What one section cannot see alone (a schedule longer than the run, a loss that the
labels do not fit) is judged at the end.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from configs.load import FREE, NUMERIC
from data_pipeline.config import AugmentConfig, DataConfig
from launch.run import RunConfig
from pretrain.optim import OptimConfig
from vit.config import HeadConfig, ViTConfig


class Section(BaseModel):
    """What every section of a config is: frozen, and closed to keys that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectiveConfig(Section):
    """The loss: softmax cross-entropy, or sigmoid cross-entropy summed over the classes (the paper's upstream loss)."""

    name: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _smoothing_is_of_softmax(self) -> Self:
        if self.name == "sigmoid" and self.label_smoothing:
            raise ValueError(f"label_smoothing = {self.label_smoothing}: belongs to softmax; leave it out with sigmoid")
        return self


class EvaluateConfig(Section):
    """When the validation set is looked at, and in what portions; it is always looked at after the last step."""

    every_steps: int | None = Field(None, gt=0, json_schema_extra=FREE)
    batch: int = Field(64, gt=0, json_schema_extra=FREE)  # images a rank and forward pass


class EngineConfig(Section):
    """How a step is computed: nothing here changes what is computed, up to the order of summation."""

    zero_stage: Literal[0, 1, 2, 3] = Field(1, json_schema_extra=NUMERIC)
    precision: Literal["fp32", "bf16"] = "bf16"
    micro_batch: Annotated[int, Field(gt=0)] | Literal["auto"] = Field("auto", json_schema_extra=NUMERIC)
    activation_checkpointing: Literal["none", "full"] = Field("none", json_schema_extra=NUMERIC)
    compile: bool | Literal["auto"] = Field("auto", json_schema_extra=NUMERIC)


class PretrainConfig(Section):
    """Everything that a pretraining run is made of."""

    run: RunConfig
    vit: ViTConfig
    head: HeadConfig = HeadConfig()
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="after")
    def _judge_across_sections(self) -> Self:
        if self.optim.name != "adamw":
            raise ValueError(
                f"optim.name = {self.optim.name}: pretraining is done with adamw; {self.optim.name} is for fine-tuning"
            )
        if self.vit.channels != 3:
            raise ValueError(f"vit.channels = {self.vit.channels}: images are fed as RGB; leave channels out")
        return self
