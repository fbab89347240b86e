"""What `init_weights` draws, against the paper's code (vit_jax/models_vit.py)."""

import math

import pytest
import torch
from torch import Tensor

from vit.config import HeadConfig, ViTConfig
from vit.model import ViT

D, M = 768, 3072  # of B/16
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> ViT:
    """Two blocks of B/16, enough numbers for statistics, initialised over memory full of NaN."""
    config = ViTConfig(width=D, depth=2, mlp_width=M, heads=12, patch_px=16)
    with torch.device("meta"):
        model = ViT(config, HeadConfig(num_classes=100, bias_init=-10.0))
    model.to_empty(device="cpu").requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    model.init_weights(seed=0)
    return model


@pytest.fixture(scope="module")
def state(model: ViT) -> State:
    return model.state_dict()


def assert_uniform(weight: Tensor, bound: float) -> None:
    assert 0.999 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert abs(weight.mean()) < 0.01 * bound


@pytest.mark.parametrize("block", ["blocks.0", "blocks.1"])
def test_attention_is_xavier_uniform_over_each_square_not_over_the_fused_rectangle(block: str, state: State) -> None:
    q, k, v = state[f"{block}.attn.qkv.weight"].chunk(3)
    for weight in (q, k, v, state[f"{block}.attn.proj.weight"]):
        assert_uniform(weight, math.sqrt(6 / (D + D)))
    assert not torch.equal(q, k)
    assert not state[f"{block}.attn.qkv.bias"].any()
    assert not state[f"{block}.attn.proj.bias"].any()


@pytest.mark.parametrize("layer", ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"])
def test_mlps_are_xavier_uniform_with_a_whisper_of_bias(layer: str, state: State) -> None:
    assert_uniform(state[f"{layer}.weight"], math.sqrt(6 / (D + M)))
    assert state[f"{layer}.bias"].std().item() == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize(("layer", "fan_in"), [("patch_embed.proj", 3 * 16 * 16), ("pre_logits", D)])
def test_patch_embedding_and_hidden_layer_are_lecun_normal_cut_at_two_deviations(
    layer: str, fan_in: int, state: State
) -> None:
    weight = state[f"{layer}.weight"]
    assert weight.std().item() == pytest.approx(math.sqrt(1 / fan_in), rel=0.01)
    cut = 2 * math.sqrt(1 / fan_in) / 0.8796
    assert 0.99 * cut < weight.abs().max() < 1.001 * cut
    assert not state[f"{layer}.bias"].any()


def test_positions_are_normal_and_the_class_token_zero(state: State) -> None:
    assert state["pos_embed"].std().item() == pytest.approx(0.02, rel=0.01)
    assert state["pos_embed"].abs().max() > 0.07  # not cut off
    assert not state["cls_token"].any()


def test_norms_do_nothing_yet(model: ViT) -> None:
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 5
    for norm in norms:
        assert norm.eps == 1e-6
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_logits_start_at_the_bias(model: ViT, state: State) -> None:
    assert not state["head.weight"].any()
    assert (model.eval()(torch.rand(1, 3, 224, 224)) == -10.0).all()


def test_a_seed_gives_one_model_whatever_the_precision() -> None:
    config = ViTConfig(width=24, depth=1, mlp_width=40, heads=3, patch_px=4, image_px=8, qkv_bias=False, pool="gap")

    def drawn(seed: int, dtype: torch.dtype = torch.float32) -> State:
        model = ViT(config, HeadConfig(num_classes=10)).to(dtype)
        model.init_weights(seed)
        return model.state_dict()

    torch.testing.assert_close(drawn(3), drawn(3), rtol=0, atol=0)
    rounded = {name: tensor.bfloat16() for name, tensor in drawn(3).items()}
    torch.testing.assert_close(drawn(3, torch.bfloat16), rounded, rtol=0, atol=0)
    drawn_again = drawn(4)
    for name in ("pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight"):
        assert not torch.equal(drawn(3)[name], drawn_again[name])
