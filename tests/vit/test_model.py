"""The model against timm's and torchvision's, and its dropout against the paper's code."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit.config import VARIANTS, HeadConfig, ViTConfig
from vit.cost import num_params, tensor_shapes
from vit.model import ViT

LINEAR, MLP = HeadConfig(kind="linear", num_classes=10), HeadConfig(kind="mlp", num_classes=10)
TINY = {"width": 24, "depth": 2, "mlp_width": 40, "heads": 3, "patch_px": 4}


def tiny(image_px: int | tuple[int, int] = 8, **options: object) -> ViTConfig:
    return ViTConfig.model_validate({**TINY, "image_px": image_px, **options})


def random_images(config: ViTConfig, count: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(count, config.channels, *config.image_hw, generator=draw) * 2 - 1


def random_model(config: ViTConfig, head: HeadConfig) -> ViT:
    """A model whose every number is random and none zero, at scales that keep the logits near one."""
    with torch.device("meta"):
        model = ViT(config, head)
    model.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            noise[noise == 0] = 1.0
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 1 or name in ("cls_token", "pos_embed"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))
    return model


def assert_same_logits(ours: ViT, reference: nn.Module, state: dict[str, Tensor]) -> None:
    reference.load_state_dict(state, strict=True, assign=True)
    images = random_images(ours.config)
    with torch.no_grad():
        logits, expected = ours.eval()(images), reference.eval()(images)
    assert expected.std() > 0.5
    assert (logits - expected).abs().max() <= 1e-5


# ---- the same logits as others ----


@pytest.fixture(scope="module")
def timm_vit() -> type[nn.Module]:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer


# Two blocks of real widths, so that the reference takes moments and every shape is one that is used.
SAME_AS_TIMM: dict[str, dict[str, object]] = {
    "Ti/16 at 224": {"variant": "Ti/16"},
    "B/16, not square": {"variant": "B/16", "image_px": (64, 96)},
    "B/16 without class token": {"variant": "B/16", "image_px": 64, "pool": "gap"},
    "B/16 without qkv bias": {"variant": "B/16", "image_px": 64, "qkv_bias": False},
    "S/8 with tanh-GELU": {"variant": "S/8", "image_px": 64, "gelu": "tanh"},
    "B/32 of one channel": {"variant": "B/32", "image_px": 64, "channels": 1},
    "H/14": {"variant": "H/14", "image_px": 56},
}


@pytest.mark.parametrize("case", SAME_AS_TIMM)
def test_logits_equal_timm(case: str, timm_vit: type[nn.Module]) -> None:
    config = shallow({"gelu": "erf", **SAME_AS_TIMM[case]})
    ours = random_model(config, LINEAR)
    with torch.device("meta"):
        reference = timm_vit(
            img_size=config.image_hw,
            patch_size=config.patch_px,
            in_chans=config.channels,
            num_classes=LINEAR.num_classes,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp_width / config.width,
            qkv_bias=config.qkv_bias,
            class_token=config.pool == "cls",
            global_pool="token" if config.pool == "cls" else "avg",
            fc_norm=False,
            act_layer="gelu" if config.gelu == "erf" else "gelu_tanh",
        )
    assert_same_logits(ours, reference, ours.state_dict())


@pytest.mark.parametrize("head", [LINEAR, MLP], ids=["linear", "mlp"])
@pytest.mark.parametrize("variant", ["B/16", "L/16"])
def test_logits_equal_torchvision(variant: str, head: HeadConfig) -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    config = shallow({"variant": variant, "image_px": 64, "gelu": "erf"})
    ours = random_model(config, head)
    with torch.device("meta"):
        reference = VisionTransformer(
            image_size=64,
            patch_size=config.patch_px,
            num_layers=config.depth,
            num_heads=config.heads,
            hidden_dim=config.width,
            mlp_dim=config.mlp_width,
            num_classes=10,
            representation_size=config.width if head.kind == "mlp" else None,
        )
    assert_same_logits(ours, reference, dict(torchvision_state(ours.state_dict())))


def shallow(section: dict[str, object]) -> ViTConfig:
    """A variant with its own widths and two blocks."""
    named = ViTConfig.model_validate(section)
    return ViTConfig.model_validate({**named.model_dump(), "variant": None, "depth": 2})


def torchvision_state(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    block_parts = {
        "norm1": "ln_1",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj",
        "norm2": "ln_2",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    for name, tensor in state.items():
        renamed = name.replace("patch_embed.proj", "conv_proj").replace("cls_token", "class_token")
        renamed = renamed.replace("pos_embed", "encoder.pos_embedding").replace("pre_logits", "heads.pre_logits")
        renamed = renamed.replace("blocks.", "encoder.layers.encoder_layer_")
        for ours, theirs in block_parts.items():
            renamed = renamed.replace(ours, theirs)
        if name.startswith("norm."):
            renamed = f"encoder.ln.{name.removeprefix('norm.')}"
        if name.startswith("head."):
            renamed = f"heads.{name}"
        yield renamed, tensor


# ---- what it is made of ----


@pytest.mark.parametrize("head", [LINEAR, MLP], ids=["linear", "mlp"])
@pytest.mark.parametrize(
    "config",
    [
        *(ViTConfig(variant=f"{letter}/14") for letter in VARIANTS),
        ViTConfig(variant="B/16", image_px=(32, 64), channels=5),
        ViTConfig(variant="B/16", pool="gap"),
        ViTConfig(variant="B/16", qkv_bias=False),
    ],
    ids=lambda config: f"{config.name} {config.pool} {config.qkv_bias}",
)
def test_the_arithmetic_of_cost_is_the_real_model(config: ViTConfig, head: HeadConfig) -> None:
    with torch.device("meta"):
        model = ViT(config, head)
    assert [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()] == list(
        tensor_shapes(config, head).items()
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == num_params(config, head)


def test_images_of_another_size_are_refused() -> None:
    model = ViT(tiny(), LINEAR)
    with pytest.raises(ValueError, match=r"images of \(3, 8, 12\) do not fit a model for \(3, 8, 8\)"):
        model(torch.zeros(2, 3, 8, 12))


def test_the_representation_is_what_the_head_sees() -> None:
    model = random_model(tiny(), MLP)
    images = random_images(model.config)
    state = model.state_dict()
    hidden = torch.tanh(model.encode(images) @ state["pre_logits.weight"].T + state["pre_logits.bias"])
    torch.testing.assert_close(model(images), hidden @ state["head.weight"].T + state["head.bias"])


def test_blocks_can_be_wrapped_without_changing_logits_or_gradients() -> None:
    model = random_model(tiny(), LINEAR)
    images = random_images(model.config)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(images).square().sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    wrapped: list[nn.Module] = []

    def recompute(block: nn.Module, z_BTD: Tensor) -> Tensor:
        wrapped.append(block)
        out: Tensor = checkpoint(block, z_BTD, use_reentrant=False)
        return out

    model.run_block = recompute
    torch.testing.assert_close(gradients(), plain, rtol=0, atol=0)
    assert wrapped == list(model.blocks)


# ---- dropout ----


def test_dropout_falls_where_the_papers_code_has_it_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """After adding positions, after the attention's output projection, after the GELU, after the MLP's second layer."""
    model = random_model(tiny(dropout=0.25, attention_dropout=0.125), MLP)
    after: dict[str, Tensor] = {}  # what each module returned
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _module, _args, out, name=name: after.__setitem__(name, out))
    dropped: list[Tensor] = []
    attention_dropout: list[float] = []
    dropout, attention = nn.functional.dropout, nn.functional.scaled_dot_product_attention

    def watched_dropout(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        assert p == 0.25
        if training:
            dropped.append(x)
        return dropout(x, p, training, inplace)

    def watched_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        attention_dropout.append(dropout_p)
        return attention(q, k, v, dropout_p=dropout_p)

    monkeypatch.setattr(nn.functional, "dropout", watched_dropout)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched_attention)
    model.train()(random_images(model.config))

    assert model.cls_token is not None
    patches = after["patch_embed"]
    tokens = torch.cat([model.cls_token.expand(len(patches), 1, -1), patches], dim=1)
    torch.testing.assert_close(dropped[0], tokens + model.pos_embed)
    sites = [f"blocks.{i}.{site}" for i in range(2) for site in ("attn.proj", "mlp.gelu", "mlp.fc2")]
    assert len(dropped) == 1 + len(sites)
    assert all(tensor is after[site] for tensor, site in zip(dropped[1:], sites, strict=True))
    assert attention_dropout == [0.125, 0.125]

    dropped.clear()
    attention_dropout.clear()
    model.eval()(random_images(model.config))
    assert (dropped, attention_dropout) == ([], [0.0, 0.0])


@pytest.mark.parametrize("config", [tiny(dropout=0.5), tiny(attention_dropout=0.5)], ids=["dropout", "attention"])
def test_dropout_acts_in_training_alone(config: ViTConfig) -> None:
    model = random_model(config, LINEAR)
    images = random_images(model.config)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))

    without = ViT(tiny(), LINEAR)
    without.load_state_dict(model.state_dict())
    assert torch.equal(without.train()(images), model(images))
