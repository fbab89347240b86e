"""The sections `data` and `augment` of a training config."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

FREE: JsonDict = {"on_resume": "free"}

Positive = Annotated[float, Field(gt=0)]
Folders = Path | Annotated[tuple[Path, ...], Field(min_length=1)]


class DataConfig(BaseModel):
    """Which packed sets, and in what order their samples come."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Folders = Field(json_schema_extra=FREE)  # one packed folder, or several that form one set
    val: Folders | None = Field(default=None, json_schema_extra=FREE)
    # Of the training set, filled in from its manifests: a set may move under a run, but not change.
    identity: str | None = None
    batch: int = Field(gt=0)  # images a step, over all ranks
    lanes: int = Field(default=64, gt=0)  # runs of the epoch that are read side by side
    skip_steps: tuple[Annotated[int, Field(ge=0)], ...] = ()  # batches never trained on
    workers: int = Field(default=2, ge=0, json_schema_extra=FREE)  # loading processes a rank; 0: in the loop itself
    threads: int = Field(default=1, gt=0, json_schema_extra=FREE)  # decoding threads a worker


class AugmentConfig(BaseModel):
    """What a training image goes through; evaluation always squash-resizes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    crop: Literal["inception", "none"] = "inception"
    area: tuple[Positive, Annotated[float, Field(le=1)]] = (0.05, 1.0)  # share of the image's area
    aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)  # width / height
    flip: bool = True

    @model_validator(mode="after")
    def _rising(self) -> "AugmentConfig":
        for name, (low, high) in (("area", self.area), ("aspect", self.aspect)):
            if low > high:
                raise ValueError(f"{name} = [{low}, {high}]: the first number is the lower end; swap them")
        return self
