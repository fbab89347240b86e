"""Swapping the head for another task."""

import torch

from vit.config import HeadConfig, ViTConfig
from vit.heads import swap_head
from vit.model import ViT


def test_both_layers_make_way_for_one_linear_of_zeros() -> None:
    config = ViTConfig(width=24, depth=1, mlp_width=40, heads=3, patch_px=4, image_px=8)
    model = ViT(config, HeadConfig(num_classes=10, bias_init=-10.0)).to(torch.float64)
    model.init_weights(seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    representation = model.encode(images)

    swap_head(model, 4)

    after = model.state_dict()
    assert set(before) - set(after) == {"pre_logits.weight", "pre_logits.bias"}
    assert after["head.weight"].shape == (4, 24)
    assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith("head."))
    assert torch.equal(model.encode(images), representation)
    assert torch.equal(model(images), torch.zeros(2, 4, dtype=torch.float64))
    assert model.head_config == HeadConfig(kind="linear", num_classes=4)
    model(images).sum().backward()
    assert model.head.weight.grad is not None
    assert torch.allclose(model.head.weight.grad, representation.sum(0).expand(4, -1))
