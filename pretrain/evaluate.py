"""Exact evaluation: every image of the validation set once, whatever the number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from data_pipeline.stream import Batch
from launch.agreement import gather
from launch.world import World
from pretrain.objective import widened


@torch.no_grad()
def evaluate(
    model: Callable[[torch.Tensor], torch.Tensor],
    batches: Iterable[Batch],
    loss_per_image: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    world: World,
) -> dict[str, float]:
    """`val_top1`, `val_top5` (shares of images) and `val_loss` (mean) over this rank's batches and all others'.

    With several labels an image counts as right when the class ranked first is one of them. Counts are summed in
    float64, so they are exact; each rank must bring the same number of batches (padded with rows of weight 0), because
    ZeRO-3 gathers weights in step.
    """
    images, top1, top5, loss_sum = 0.0, 0.0, 0.0, 0.0
    for batch in batches:
        batch = batch.to(world.device)
        logits_BK = model(batch.pixels()).float()
        ranked_B5 = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
        labels = widened(batch.labels, logits_BK.shape[1])
        hit_B5 = ranked_B5 == labels[:, None] if labels.ndim == 1 else labels.gather(1, ranked_B5) > 0
        images += batch.weights.sum().item()
        top1 += (hit_B5[:, 0] * batch.weights).sum().item()
        top5 += (hit_B5.any(dim=1) * batch.weights).sum().item()
        loss_sum += (loss_per_image(logits_BK, labels).double() * batch.weights).sum().item()
    totals = [math.fsum(column) for column in zip(*gather(world, [images, top1, top5, loss_sum]), strict=True)]
    return {"val_top1": totals[1] / totals[0], "val_top5": totals[2] / totals[0], "val_loss": totals[3] / totals[0]}
