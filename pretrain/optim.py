"""Optimizers, what they decay, and the learning rate of every step; shared by pretraining and fine-tuning.

torch is imported inside the function that needs it, so that a config is judged without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import torch
    from torch import nn


Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimConfig(BaseModel):
    """YAML section `optim`.

    AdamW's weight decay is decoupled and multiplied by the learning rate, as in the paper; SGD's is torch's, added to
    the gradient.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(gt=0.0)  # at the top of the schedule
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    end_lr: float = Field(0.0, ge=0.0)  # where the linear schedule ends; the paper's released runs ended at 1e-5
    weight_decay: float = Field(0.0, ge=0.0)
    decay: Literal["all", "matrices"] = "all"  # the paper's code decays every tensor; big_vision only the matrices
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # adamw
    eps: float = Field(1e-8, gt=0.0)  # adamw
    momentum: float = Field(0.9, ge=0.0, lt=1.0)  # sgd
    clip: float = Field(1.0, ge=0.0)  # global gradient norm; 0 is off

    @model_validator(mode="after")
    def _no_key_in_vain(self) -> Self:
        defaults = type(self).model_fields
        for key, chosen, by in (
            ("end_lr", self.schedule, "linear"),
            ("momentum", self.name, "sgd"),
            ("betas", self.name, "adamw"),
            ("eps", self.name, "adamw"),
        ):
            if chosen != by and getattr(self, key) != defaults[key].default:
                raise ValueError(f"{key} = {getattr(self, key)}: belongs to {by}, not to {chosen}; leave {key} out")
        return self

    @property
    def may_grow(self) -> tuple[str, ...]:
        """Lengths of a run that may become larger when it is continued: where the schedule does not depend on them."""
        return ("run.steps", "run.epochs") if self.schedule == "constant" else ()


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of the update that follows `step` completed ones, in a run of `steps`.

    Linear warm-up multiplies the decay, which begins where the warm-up ends; the very first update of a warmed-up run
    has rate 0. Both conventions are those of the authors' code (google-research/vision_transformer, vit_jax/utils.py,
    create_learning_rate_schedule).
    """
    progress = min(1.0, max(0.0, (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)))
    if optim.schedule == "linear":
        lr = optim.end_lr + (optim.lr - optim.end_lr) * (1.0 - progress)
    elif optim.schedule == "cosine":
        lr = optim.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        lr = optim.lr
    return lr * min(1.0, step / optim.warmup_steps) if optim.warmup_steps else lr


def build_optimizer(optim: OptimConfig, model: nn.Module, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer over one or two parameter groups (decayed, not decayed), at learning rate 0 until a step sets it.

    Rate 0 matters: an engine may take a trial step to allocate the states, and that step must not move the weights.
    """
    import torch

    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = (
            name.endswith(".weight") and parameter.ndim >= 2
        )  # not the class token, the positions, biases, LayerNorms
        (decayed if optim.decay == "all" or is_matrix else kept).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": optim.weight_decay}]
    if kept:
        groups.append({"params": kept, "weight_decay": 0.0})
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, eps=optim.eps, fused=fused)


STATES = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
"""The tensors that an optimizer keeps beside each weight, in torch's words."""


def begin_states(optim: OptimConfig, optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor]) -> None:
    """Make the states of `tensors` exist at zero updates, which torch does only in the first step; the numbers that
    follow are the same."""
    import torch

    fused = bool(optimizer.param_groups[0].get("fused"))
    for tensor in tensors:
        optimizer.state[tensor] = {
            kind: torch.zeros_like(tensor, memory_format=torch.preserve_format) for kind in STATES[optim.name]
        }
        if optim.name == "adamw":
            optimizer.state[tensor]["step"] = torch.zeros(
                (), dtype=torch.float32, device=tensor.device if fused else "cpu"
            )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate of the coming update."""
    for group in optimizer.param_groups:
        group["lr"] = lr
