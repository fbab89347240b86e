"""The paper's two heads (sections 3.1, 3.2): an MLP with one hidden layer to pretrain, one linear layer to fine-tune.

    mlp      representation -> pre_logits (linear D -> D, tanh) -> head (linear D -> K)
    linear   representation ------------------------------------> head (linear D -> K)

D width of the model, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vit.config import HeadConfig

if TYPE_CHECKING:
    from vit.model import ViT


class HiddenLayer(nn.Linear):
    """Hidden layer of the MLP head: as wide as the representation, with tanh (appendix D.3; vit_jax/models_vit.py)."""

    def forward(self, representation_BD: Tensor) -> Tensor:
        return torch.tanh(super().forward(representation_BD))


@torch.no_grad()
def init_logits(head: nn.Linear, bias_init: float) -> None:
    """Start from equal logits: weight zero, bias `bias_init` (vit_jax: kernel_init zeros, head_bias_init)."""
    head.weight.zero_()
    head.bias.fill_(bias_init)


def swap_head(model: ViT, num_classes: int) -> None:
    """Replace the whole head, hidden layer included, by one zero-initialised linear layer (section 3.2).

    The paper found removing both layers "slightly more robust" than re-initialising the last alone (appendix B.1.1).
    """
    old = model.head.weight
    model.pre_logits = nn.Identity()
    model.head = nn.Linear(model.config.width, num_classes, device=old.device, dtype=old.dtype)
    model.head_config = HeadConfig(kind="linear", num_classes=num_classes)
    init_logits(model.head, model.head_config.bias_init)
