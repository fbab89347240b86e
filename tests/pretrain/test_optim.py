"""Schedules against the authors' formula, what decay touches, states begun early against torch's own."""

import math

import pytest
import torch

from pretrain.optim import OptimConfig, begin_states, build_optimizer, learning_rate, set_learning_rate
from vit.config import HeadConfig, ViTConfig
from vit.model import ViT


def vit_jax_schedule(base, decay, total, warmup, step, linear_end=1e-5):
    """The authors' formula, written out once more (vit_jax/utils.py, create_learning_rate_schedule)."""
    progress = min(max((step - warmup) / float(total - warmup), 0.0), 1.0)
    lr = (
        linear_end + (base - linear_end) * (1 - progress)
        if decay == "linear"
        else base * 0.5 * (1 + math.cos(math.pi * progress))
    )
    return lr * min(1.0, step / warmup) if warmup else lr


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_schedule_is_the_authors(schedule, warmup):
    end = {"end_lr": 1e-5} if schedule == "linear" else {}
    optim = OptimConfig(lr=0.3, schedule=schedule, warmup_steps=warmup, **end)
    ours = [learning_rate(optim, step, 100) for step in range(101)]
    assert ours == pytest.approx([vit_jax_schedule(0.3, schedule, 100, warmup, step) for step in range(101)], rel=1e-12)
    assert ours[0] == (0.0 if warmup else 0.3)
    assert max(ours) == pytest.approx(0.3, rel=1e-12)
    assert ours[100] == pytest.approx(1e-5 if schedule == "linear" else 0.0, abs=1e-12)


def test_a_constant_rate_does_not_know_the_length_of_the_run():
    optim = OptimConfig(lr=0.3, schedule="constant", warmup_steps=4)
    assert [learning_rate(optim, step, 10) for step in range(8)] == [
        learning_rate(optim, step, 1000) for step in range(8)
    ]
    assert learning_rate(optim, 2, 10) == 0.15


@pytest.fixture
def vit() -> ViT:
    model = ViT(ViTConfig(width=8, depth=1, mlp_width=16, heads=2, patch_px=4, image_px=8), HeadConfig(num_classes=3))
    model.init_weights(0)
    return model


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_weight_decay_touches_what_it_says(vit, decay):
    """With gradients of zero an update is weight decay alone: lr x weight_decay of the old value."""
    optimizer = build_optimizer(OptimConfig(lr=0.1, weight_decay=0.5, decay=decay), vit, fused=False)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(1.0).grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    decayed = {name for name, parameter in vit.named_parameters() if torch.all(parameter == 1.0 - 0.1 * 0.5)}
    kept = {name for name, parameter in vit.named_parameters() if torch.all(parameter == 1.0)}
    assert decayed | kept == {name for name, _ in vit.named_parameters()}
    if decay == "all":
        assert not kept
    else:
        linear = {name for name in decayed if "norm" not in name and name.endswith(".weight")}
        assert decayed == linear
        assert {"cls_token", "pos_embed", "norm.weight", "head.bias", "blocks.0.norm1.weight"} <= kept
        assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pre_logits.weight", "head.weight"} <= decayed


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_states_begun_early_change_no_number(name):
    optim = OptimConfig(name=name, lr=0.1, weight_decay=0.1)
    results = []
    for early in (False, True):
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 4)
        optimizer = build_optimizer(optim, module, fused=False)
        if early:
            begin_states(optim, optimizer, module.parameters())
        for _ in range(5):
            set_learning_rate(optimizer, 0.1)
            optimizer.zero_grad()
            module(torch.randn(3, 4)).square().sum().backward()
            optimizer.step()
        results.append(module.weight.detach())
    assert torch.equal(*results)


def test_the_rate_is_zero_until_a_step_sets_it(vit):
    before = {name: parameter.clone() for name, parameter in vit.named_parameters()}
    optimizer = build_optimizer(OptimConfig(lr=0.1, weight_decay=0.5), vit, fused=False)
    for parameter in vit.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in vit.named_parameters())
