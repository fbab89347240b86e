"""The only room that knows DeepSpeed: a ViT and an optimizer go in, exact steps and nameable states come out.

Order of wrapping: gradient checkpointing -> compile -> ZeRO. What every stage hides differently is shown in one way:
`slices()`, the fp32 masters and optimizer states that this rank holds, as views cut from named tensors.

Measured on DeepSpeed 0.19.8, and cured here:
- on a CPU its start compiles a C++ operation, which needs ninja and a compiler: the operation is declared absent and
  gloo takes its place;
- its defaults move (clipping is on at 1.0 since 0.19): every key that matters is written;
- in bf16 the fp32 masters are copied from weights already rounded: ours are refilled from the fp32 values;
- at stage 0 in bf16 a trial step leaves Adam's count at 1: the states are set back to the beginning;
- at stage 0 in fp32 the gradient norm is not reported: clipping is done here, where the norm is seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

# DeepSpeed decides at its import, by files and drivers; torch's answer is the one that `World.device` goes by.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
import deepspeed.ops
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state
from torch import nn
from torch.utils.checkpoint import checkpoint as recompute

from launch.host import compiler
from launch.world import World
from pretrain.checkpoint import MASTER, Slice
from pretrain.config import EngineConfig
from pretrain.optim import STATES, OptimConfig, begin_states, build_optimizer, set_learning_rate
from vit.model import ViT

ADAM_STATES = STATES["adamw"]
BUCKET_ELEMENTS = 25_000_000  # DeepSpeed's 5e8 is larger than ViT-L whole, so nothing would overlap


def connect(world: World) -> None:
    """Join the process group of all ranks: NCCL between GPUs, gloo otherwise."""
    backend = "nccl" if world.device.startswith("cuda") else "gloo"
    if backend == "gloo":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        # DeepSpeed takes LOCAL_RANK for the number of its GPU, but srun --gpus-per-task shows each rank one, number 0.
        os.environ["LOCAL_RANK"] = world.device.removeprefix("cuda:")
        torch.cuda.set_device(world.device)
    deepspeed.init_distributed(dist_backend=backend, verbose=False, rank=world.rank, world_size=world.size)


class Engine:
    """A model under training: `model(images)`, then `backward(loss)` and `step(lr)`, once each for every
    micro-batch."""

    def __init__(
        self, model: ViT, config: EngineConfig, optim: OptimConfig, world: World, micro_batch: int, accumulation: int
    ) -> None:
        self.world = world
        self.stage = config.zero_stage
        self.precision = config.precision
        self.clip = optim.clip
        self.accumulation = accumulation
        self.micro_batch = micro_batch
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        on_gpu = world.device.startswith("cuda")

        if config.activation_checkpointing == "full":
            model.run_block = lambda block, x_BND: recompute(block, x_BND, use_reentrant=False)
        can_compile = on_gpu and config.zero_stage < 3 and compiler(for_gpu=True) is not None
        if config.compile is True or (config.compile == "auto" and can_compile):
            for block in model.blocks:
                block.compile(dynamic=False)

        initial = {name: p.detach().clone() for name, p in model.named_parameters() if self.dtype != torch.float32}
        optimizer = build_optimizer(optim, model, fused=on_gpu)
        self._deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=self._deepspeed_config(config, micro_batch, accumulation)
        )
        self.module = model
        # ZeRO's or the half-precision wrapper around Adam; at stage 0 in fp32 Adam itself.
        self._wrapper = self._deepspeed.optimizer
        self._adam: torch.optim.Optimizer = self._deepspeed.basic_optimizer
        self._grad_norm: torch.Tensor | float = float("nan")
        self._masters: dict[int, torch.Tensor] = {}
        if self.stage == 0 and self.precision == "bf16":
            for rounded, exact in zip(self._wrapper.fp16_groups, self._wrapper.fp32_groups, strict=True):
                self._masters |= {id(parameter): master for parameter, master in zip(rounded, exact, strict=True)}
        begin_states(optim, self._adam, self._optimized())
        if initial:
            for piece in self.slices():
                piece.values[MASTER].copy_(initial[piece.name].view(-1)[piece.start : piece.stop])
            self.masters_to_model()

    def _deepspeed_config(self, config: EngineConfig, micro_batch: int, accumulation: int) -> dict[str, Any]:
        zero: dict[str, Any] = {
            "stage": config.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "overlap_comm": self.world.device.startswith("cuda"),
            "contiguous_gradients": True,
        }
        if config.zero_stage == 3:
            zero["stage3_prefetch_bucket_size"] = BUCKET_ELEMENTS
            zero["stage3_param_persistence_threshold"] = 100_000
        return {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.0 if self._clips_itself else self.clip,
            "bf16": {"enabled": config.precision == "bf16"},
            "zero_optimization": zero,
            "steps_per_print": None,
            "wall_clock_breakdown": False,
        }

    @property
    def _clips_itself(self) -> bool:
        return self.stage == 0 and self.precision == "fp32"

    def model(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of float images, through everything that this engine wraps around the model."""
        logits_BK: torch.Tensor = self._deepspeed(images_BCHW.to(self.dtype))
        return logits_BK

    # --- A step ------------------------------------------------------------------------------------------------------

    def backward(self, loss: torch.Tensor) -> None:
        """Add one micro-batch's gradients; DeepSpeed divides by the accumulation and averages over the ranks."""
        self._deepspeed.backward(loss)

    def step(self, lr: float) -> None:
        """Count one micro-batch; after the last of a batch: clip, and update the weights at rate `lr`."""
        if self._deepspeed.is_gradient_accumulation_boundary():
            set_learning_rate(self._adam, lr)
            if self._clips_itself:
                self._grad_norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip or float("inf"))
            self._deepspeed.step()
            if not self._clips_itself:
                self._grad_norm = self._deepspeed.get_global_grad_norm()
        else:
            self._deepspeed.step()

    @property
    def grad_norm(self) -> torch.Tensor | float:
        """Global gradient norm of the last batch before clipping, still on the device if it was computed there."""
        return self._grad_norm

    # --- States, by name ---------------------------------------------------------------------------------------------

    def slices(self) -> Iterator[Slice]:
        """Masters and Adam's moments that live on this rank, as views: to write them is to write the training state."""
        rank = self.world.rank
        for name, parameter in self.module.named_parameters():
            hidden: Any = parameter  # what DeepSpeed hangs on it
            if self.stage == 3:
                partition = safe_get_local_fp32_param(parameter)
                start = rank * partition.numel()
                length = max(0, min(partition.numel(), hidden.ds_numel - start))  # the last partitions are padded
                views = {
                    MASTER: partition,
                    **{kind: safe_get_local_optimizer_state(parameter, kind) for kind in ADAM_STATES},
                }
                yield Slice(name, start, {kind: view.detach().narrow(0, 0, length) for kind, view in views.items()})
            elif self.stage in (1, 2):
                if (mapping := hidden._hp_mapping) is not None:
                    place = mapping.get_hp_fragment_address()
                    states = self._adam.state[self._wrapper.single_partition_of_fp32_groups[mapping.param_group_index]]
                    views = {MASTER: mapping.hp_fragment.detach()}
                    views |= {kind: states[kind].narrow(0, place.start, place.numel) for kind in ADAM_STATES}
                    yield Slice(name, mapping.lp_fragment_address.start, views)
            else:
                master = self._master_of(parameter)
                views = {MASTER: master.detach(), **{kind: self._adam.state[master][kind] for kind in ADAM_STATES}}
                yield Slice(name, 0, {kind: view.view(-1) for kind, view in views.items()})

    @property
    def updates(self) -> int:
        """Updates that Adam has counted."""
        return int(self._adam.state[self._optimized()[0]]["step"].item())

    def restore(self, fill: Callable[[Iterator[Slice]], None], updates: int) -> None:
        """Let `fill` write saved values into the slices, set Adam's count, and bring the model in step with the
        masters."""
        fill(self.slices())
        for tensor in self._optimized():
            self._adam.state[tensor]["step"].fill_(updates)
        self.masters_to_model()

    @torch.no_grad()
    def masters_to_model(self) -> None:
        """Copy the fp32 masters into the weights that the forward pass uses, on all ranks."""
        if self.stage == 3:
            self._wrapper._partition_all_parameters()  # gathered copies of the old values must go, or they are kept
            for group in range(len(self._wrapper.fp16_groups)):
                self._wrapper._reassign_or_swap_out_partitioned_parameters(group)
            if persistent := self._wrapper.persistent_parameters:
                persistent[0].all_gather(persistent)
        elif self.stage in (1, 2):
            self._wrapper.update_lp_params()
        elif self.precision == "bf16":
            for parameter in self.module.parameters():
                parameter.copy_(self._master_of(parameter))

    def _master_of(self, parameter: nn.Parameter) -> torch.Tensor:
        return self._masters[id(parameter)] if self._masters else parameter

    def _optimized(self) -> list[torch.Tensor]:
        """The tensors that Adam steps: flat partitions under ZeRO, otherwise one a parameter."""
        if self.stage == 3:
            return list(self._wrapper.fp32_partitioned_groups_flat)
        return [tensor for group in self._adam.param_groups for tensor in group["params"]]
