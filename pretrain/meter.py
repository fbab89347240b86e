"""What a step did, told one step late: sums over ranks travel while the next step runs, and nothing waits for the
device.

`batch_digest` says which images the engine consumed: a sum modulo 2^64 over (shard, key, place), so it does not depend
on who had which. A float64 holds integers exactly only below 2^53, so the digest travels in four 16-bit parts beside
the loss.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from data_pipeline.ledger import batch_digest
from data_pipeline.stream import Batch
from launch.run import Run
from launch.world import World

DIGEST_PARTS, PART_BITS = 4, 16


@dataclass
class _Pending:
    """A logged step whose sums are still travelling."""

    step: int
    lr: float
    grad_norm: torch.Tensor | float
    sums: torch.Tensor
    travelling: dist.Work | None
    timings: dict[str, float]


class StepMeter:
    """Times the loop and records every `log_every_steps`-th step, the first and the last."""

    def __init__(
        self,
        run: Run,
        world: World,
        images_per_step: int,
        steps: int,
        log_every_steps: int,
        skip_steps: Collection[int],
    ) -> None:
        self.run, self.world = run, world
        self.images_per_step, self.steps, self.log_every_steps = images_per_step, steps, log_every_steps
        self.skip_steps = skip_steps
        self._shown = False
        self._pending: _Pending | None = None
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since, self._steps_since, self._waited_s = time.perf_counter(), 0, 0.0

    def images_seen(self, step: int) -> int:
        """Images trained on in the first `step` steps."""
        return (step - sum(skipped < step for skipped in self.skip_steps)) * self.images_per_step

    def waited(self, seconds: float) -> None:
        """Count time that the loop spent waiting for data."""
        self._waited_s += seconds

    def step_done(
        self, step: int, batch: Batch, loss_sum: torch.Tensor, grad_norm: torch.Tensor | float, lr: float
    ) -> None:
        """Take in step number `step` (the first is 1); all ranks call it, `loss_sum` being this rank's sum over its
        images."""
        if not self._shown:
            self.run.image("train/images", picture(batch.images_B3HW), step)
            self._shown = True
        self._steps_since += 1
        self.flush()
        if not (step % self.log_every_steps == 0 or step in (1, self.steps)):
            return
        digest = batch_digest(batch.keys, batch.places[: len(batch.keys)].tolist())
        parts = [(digest >> PART_BITS * part) % 2**PART_BITS for part in range(DIGEST_PARTS)]
        sums = torch.tensor([0.0, *parts], dtype=torch.float64).to(self.world.device)
        sums[0] = loss_sum
        travelling = dist.all_reduce(sums, async_op=True) if self.world.size > 1 else None
        elapsed_s = time.perf_counter() - self._since
        timings = {
            "images_per_s": self._steps_since * self.images_per_step / elapsed_s,
            "data_wait_frac": self._waited_s / elapsed_s,
        }
        self._pending = _Pending(step, lr, grad_norm, sums, travelling, timings)
        self._restart_clock()

    def skipped(self, step: int) -> None:
        """Record a step that was passed over by request: its batch was neither read nor trained on."""
        self.flush()
        self.run.record(step, {"images_seen": self.images_seen(step), "skipped": True})

    def flush(self) -> None:
        """Write the pending line, if there is one."""
        if (pending := self._pending) is None:
            return
        self._pending = None
        if pending.travelling:
            pending.travelling.wait()
        loss_sum, *parts = pending.sums.tolist()
        digest = sum(int(part) << PART_BITS * place for place, part in enumerate(parts)) % 2**64
        metrics: dict[str, Any] = {
            "images_seen": self.images_seen(pending.step),
            "loss": loss_sum / self.images_per_step,
            "lr": pending.lr,
            "grad_norm": float(pending.grad_norm),
            **pending.timings,
            "memory_bytes": peak_memory_bytes(self.world.device),
            "batch_digest": f"{digest:016x}",
        }
        self.run.record(pending.step, metrics)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Finish the pending line before work that is no training, and leave that work's time out of the rates."""
        self.flush()
        yield
        self._restart_clock()


def picture(images_B3HW: torch.Tensor, columns: int = 8) -> np.ndarray:
    """Up to four rows of a batch's images, as they are fed, in one: uint8, height x width x RGB."""
    columns = min(columns, len(images_B3HW))
    rows = min(4, len(images_B3HW) // columns)
    grid_rc3HW = images_B3HW[: rows * columns].unflatten(0, (rows, columns))
    return np.asarray(grid_rc3HW.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).cpu())


def peak_memory_bytes(device: str) -> int:
    """The most memory this process has held: on its GPU, or resident in the host's without one."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
