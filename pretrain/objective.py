"""Objectives: (model, micro-batch) -> the loss to differentiate, and the sum that is reported.

Shape letters: B rows of a micro-batch, K classes. Rows of weight 0 are padding: they count nowhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from data_pipeline.stream import Batch
from pretrain.config import ObjectiveConfig


def loss_per_image(objective: ObjectiveConfig, logits_BK: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Loss [B] of each image in fp32, for integer labels [B] or multi-hot labels [B, K].

    softmax: cross-entropy; several labels of an image share the probability evenly.
    sigmoid: binary cross-entropy summed, not averaged, over the classes (google-research/big_vision, utils.py,
    sigmoid_xent).
    """
    logits_BK = logits_BK.float()
    labels = widened(labels, logits_BK.shape[1])
    if objective.name == "softmax":
        targets = labels if labels.ndim == 1 else labels.float() / labels.sum(dim=1, keepdim=True).clamp(min=1.0)
        return F.cross_entropy(logits_BK, targets, reduction="none", label_smoothing=objective.label_smoothing)
    hot_BK = F.one_hot(labels, logits_BK.shape[1]) if labels.ndim == 1 else labels
    return F.binary_cross_entropy_with_logits(logits_BK, hot_BK.float(), reduction="none").sum(dim=1)


def widened(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Multi-hot labels as wide as a head that has more outputs than the set has classes; integer labels as they are."""
    return labels if labels.ndim == 1 else F.pad(labels, (0, num_classes - labels.shape[1]))


def classification(
    objective: ObjectiveConfig, model: Callable[[torch.Tensor], torch.Tensor], batch: Batch, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss to differentiate, detached weighted sum of the losses) of one micro-batch.

    `scale` is ranks x accumulation / global batch: the engine averages over ranks and micro-batches, and the product is
    the mean over the images of the global batch, whatever share of them this rank has.
    """
    loss_sum = (loss_per_image(objective, model(batch.pixels()), batch.labels) * batch.weights).sum()
    return loss_sum * scale, loss_sum.detach()
