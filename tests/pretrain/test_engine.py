"""What DeepSpeed was told is what it does; masters are exact; slices name the states that it trains with."""

import os

import pytest
import torch

from launch.world import World
from tests.ranks import run_ranks
from vit.config import HeadConfig, ViTConfig

VIT = ViTConfig(width=24, depth=2, mlp_width=48, heads=3, patch_px=4, image_px=8)
HEAD = HeadConfig(num_classes=5)


def engine_of(stage: int, precision: str, clip: float = 1.0, **choices):
    """An engine on this rank: two micro-batches of four images."""
    from pretrain.config import EngineConfig
    from pretrain.engine import Engine, connect
    from pretrain.optim import OptimConfig
    from vit.model import ViT

    world = World.detect()
    connect(world)
    model = ViT(VIT, HEAD)
    model.init_weights(3)
    config = EngineConfig(zero_stage=stage, precision=precision, **choices)
    return Engine(model, config, OptimConfig(lr=1e-2, weight_decay=0.1, clip=clip), world, 4, 2)


def one_step(engine, seed: int = 0, factor: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        images = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
        engine.backward(engine.model(images).float().square().sum() * factor + engine.model(images).float().sum())
        engine.step(1e-2)


def masters(engine) -> dict[str, torch.Tensor]:
    return {piece.name: piece.values["master"].clone() for piece in engine.slices()}


def settings(stage: int, precision: str) -> None:
    engine = engine_of(stage, precision)
    told, at_zero_fp32 = engine._deepspeed, stage == 0 and precision == "fp32"
    assert told.zero_optimization_stage() == stage
    assert told.bfloat16_enabled() == (precision == "bf16")
    assert told.gradient_clipping() == (0.0 if at_zero_fp32 else 1.0)
    assert told.train_micro_batch_size_per_gpu() == 4
    assert told.gradient_accumulation_steps() == 2
    assert told.zero_reduce_bucket_size() == told.zero_allgather_bucket_size() == 25_000_000
    assert told.zero_overlap_comm() is False  # on a CPU there is no second stream
    assert told.zero_contiguous_gradients() is True
    assert told.steps_per_print() is None
    assert told.wall_clock_breakdown() is False
    if stage == 3:
        assert told.zero_prefetch_bucket_size() == 25_000_000
        assert told.zero_param_persistence_threshold() == 100_000
    assert next(engine.module.parameters()).dtype == engine.dtype


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_setting_reaches_deepspeed(stage, precision):
    run_ranks(1, settings, stage, precision)


def masters_begin_exact(stage: int) -> None:
    from vit.model import ViT

    exact = ViT(VIT, HEAD)
    exact.init_weights(3)
    engine = engine_of(stage, "bf16")
    assert engine.updates == 0
    for name, parameter in exact.named_parameters():
        assert torch.equal(masters(engine)[name], parameter.detach().view(-1)), name
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(
        engine.model(images).float(), exact.bfloat16()(images.bfloat16()).float(), atol=0, rtol=0
    )


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_masters_begin_at_the_fp32_values(stage):
    run_ranks(1, masters_begin_exact, stage)


def clipped(stage: int, precision: str) -> list[float]:
    engine = engine_of(stage, precision, clip=0.5)
    for seed in range(3):
        one_step(engine, seed, factor=1e3)
    assert engine.updates == 3
    moments = torch.cat([piece.values["exp_avg"] for piece in engine.slices()])
    return [float(engine.grad_norm), moments.norm().item()]


def test_clipping_and_the_reported_norm_agree_between_stages():
    """Gradients of norm far above 0.5: Adam's first moment after three steps is at most 0.5 x (1 - 0.9^3)."""
    by_stage = [run_ranks(1, clipped, stage, "fp32")[0] for stage in range(4)]
    assert by_stage[0][0] > 5.0
    assert by_stage[0][1] <= 0.5 * (1 - 0.9**3) + 1e-6
    for other in by_stage[1:]:
        assert other == pytest.approx(by_stage[0], rel=1e-5)


def first_update_equals_torch(stage: int) -> None:
    """One update by torch's AdamW from the same gradients: Adam's count begins at zero, whatever DeepSpeed tried."""
    from pretrain.optim import OptimConfig, build_optimizer, set_learning_rate
    from vit.model import ViT

    plain = ViT(VIT, HEAD)
    plain.init_weights(3)
    optimizer = build_optimizer(OptimConfig(lr=1e-2, weight_decay=0.1), plain, fused=False)
    set_learning_rate(optimizer, 1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        images = torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1
        ((plain(images).square().sum() + plain(images).sum()) / 2).backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()

    engine = engine_of(stage, "fp32")
    one_step(engine)
    assert float(engine.grad_norm) == pytest.approx(norm.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(masters(engine)[name], parameter.detach().view(-1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_first_update_is_torchs_own(stage):
    run_ranks(1, first_update_equals_torch, stage)


def checkpointed_memory(mode: str) -> int:
    """Bytes that autograd keeps for the backward pass."""
    engine = engine_of(0, "fp32", activation_checkpointing=mode)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engine.model(torch.rand(64, 3, 8, 8)).sum()
    return sum(kept.values())


def test_full_checkpointing_keeps_less():
    [none], [full] = run_ranks(1, checkpointed_memory, "none"), run_ranks(1, checkpointed_memory, "full")
    assert full < 0.5 * none


def test_deepspeed_is_given_the_gpu_that_the_rank_sees(monkeypatch):
    """Under srun --gpus-per-task=1 local rank 3 sees one GPU, number 0; DeepSpeed would take number 3."""
    import deepspeed

    from pretrain import engine

    told: dict[str, object] = {}
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(World, "device", "cuda:0")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: told.update(device=device))
    monkeypatch.setattr(
        deepspeed, "init_distributed", lambda **how: told.update(how, local_rank=os.environ["LOCAL_RANK"])
    )
    engine.connect(World(3, 8, 3, 8, "127.0.0.1", 29500))
    assert told["device"] == "cuda:0"
    assert told["local_rank"] == "0"
    assert (told["dist_backend"], told["rank"], told["world_size"]) == ("nccl", 3, 8)
