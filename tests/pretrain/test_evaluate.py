"""Exact evaluation: the numbers are those of a plain pass over all images, whatever the ranks and the portions."""

import pytest
import torch

from data_pipeline.augment import EvalTransform
from data_pipeline.samples import SampleSet
from data_pipeline.stream import eval_batches
from launch.world import World
from pretrain.config import ObjectiveConfig
from pretrain.evaluate import evaluate
from pretrain.objective import loss_per_image
from tests.ranks import run_ranks


def lopsided(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Logits that depend on the pixels, with no model: six fixed patterns."""
    patterns = torch.randn(6, images_BCHW[0].numel(), generator=torch.Generator().manual_seed(0))
    return images_BCHW.flatten(1) @ patterns.T


def accuracy_on(folder, rows: int) -> dict[str, float]:
    import torch.distributed as dist

    dist.init_process_group("gloo")
    world = World.detect()
    samples = SampleSet.open(folder)
    images = eval_batches(samples, EvalTransform((8, 8)), world.rank, world.size, rows)
    return evaluate(lopsided, images, lambda logits, labels: loss_per_image(ObjectiveConfig(), logits, labels), world)


@pytest.mark.parametrize(("ranks", "rows"), [(1, 64), (2, 50), (3, 7)])
def test_each_image_counts_once(digits, ranks, rows):
    samples = SampleSet.open(digits / "upstream/val")
    batches = list(eval_batches(samples, EvalTransform((8, 8)), 0, 1, 16))
    logits = torch.cat([lopsided(batch.pixels())[: len(batch.keys)] for batch in batches])
    labels = torch.cat([batch.labels[: len(batch.keys)] for batch in batches])
    assert len(labels) == samples.num_samples == 216
    top1 = (logits.argmax(dim=1) == labels).float().mean().item()
    top5 = (logits.argsort(dim=1, descending=True)[:, :5] == labels[:, None]).any(dim=1).float().mean().item()
    loss = torch.nn.functional.cross_entropy(logits.double(), labels).item()
    for found in run_ranks(ranks, accuracy_on, digits / "upstream/val", rows):
        assert found == pytest.approx({"val_top1": top1, "val_top5": top5, "val_loss": loss}, rel=1e-6)
