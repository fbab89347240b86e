"""The losses against their definitions; padding counts nowhere; shares add up to the global mean."""

from functools import partial

import pytest
import torch

from data_pipeline.stream import Batch
from pretrain.config import ObjectiveConfig
from pretrain.objective import classification, loss_per_image

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])


def test_softmax_is_minus_the_log_probability_of_the_label():
    losses = loss_per_image(ObjectiveConfig(), LOGITS, torch.tensor([0, 2]))
    probabilities = LOGITS.exp() / LOGITS.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(losses, -torch.stack([probabilities[0, 0], probabilities[1, 2]]).log())


def test_smoothing_moves_a_share_of_the_label_to_all_classes():
    losses = loss_per_image(ObjectiveConfig(label_smoothing=0.3), LOGITS, torch.tensor([0, 2]))
    targets = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    torch.testing.assert_close(losses, -(targets * LOGITS.log_softmax(dim=1)).sum(dim=1))


def test_several_labels_share_the_probability():
    losses = loss_per_image(ObjectiveConfig(), LOGITS, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    logs = LOGITS.log_softmax(dim=1)
    torch.testing.assert_close(losses, -torch.stack([(logs[0, 0] + logs[0, 1]) / 2, logs[1, 2]]))


@pytest.mark.parametrize("labels", [torch.tensor([0, 2]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])])
def test_sigmoid_is_summed_over_the_classes(labels):
    losses = loss_per_image(ObjectiveConfig(name="sigmoid"), LOGITS, labels)
    hot = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    by_hand = -(hot * LOGITS.sigmoid().log() + (1 - hot) * (1 - LOGITS.sigmoid()).log()).sum(dim=1)
    torch.testing.assert_close(losses, by_hand)


def test_a_bias_of_minus_ten_makes_the_first_sigmoid_loss_that_of_one_class():
    """With zero logits 21,843 classes cost 21,843 ln 2 each image; the bias leaves about 10 + 21,842 e^-10."""
    losses = loss_per_image(ObjectiveConfig(name="sigmoid"), torch.full((1, 21_843), -10.0), torch.tensor([5]))
    assert losses.item() == pytest.approx(10 + 21_843 * 4.54e-5, abs=1e-2)


def batch_of(weights: list[float]) -> Batch:
    rows = len(weights)
    images = torch.arange(rows, dtype=torch.uint8)[:, None, None, None].expand(rows, 3, 2, 2)
    return Batch(0, images, torch.arange(rows) % 3, torch.tensor(weights), torch.arange(rows), [])


def logits_of(layer: torch.nn.Module, pixels: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """A model that is given its pixels beforehand, so that their gradients can be looked at."""
    logits: torch.Tensor = layer(pixels.flatten(1))
    return logits


def test_shares_of_a_batch_add_up_to_its_mean_and_padding_gets_no_gradient():
    """Two ranks of 3 and 2 images, 2 micro-batches of 2 rows: the engine's averaging makes the mean over 5 of it."""
    layer = torch.nn.Linear(12, 3)
    whole, _ = classification(ObjectiveConfig(), lambda pixels: layer(pixels.flatten(1)), batch_of([1.0] * 5), 1 / 5)
    whole.backward()
    gradient, layer.weight.grad = layer.weight.grad, None

    five = batch_of([1.0] * 5)
    ranks, accumulation = 2, 2
    for rank, rows in enumerate(([0, 1, 2], [3, 4])):
        padded = rows + [0] * (4 - len(rows))
        weights = torch.tensor([1.0] * len(rows) + [0.0] * (4 - len(rows)))
        share = Batch(0, five.images_B3HW[padded], five.labels[padded], weights, five.places[padded], [])
        seen: list[torch.Tensor] = []
        for micro in share.micro(2):
            pixels = micro.pixels().requires_grad_()
            seen.append(pixels)
            model = partial(logits_of, layer, pixels)
            scaled, _ = classification(ObjectiveConfig(), model, micro, ranks * accumulation / 5)
            (scaled / (ranks * accumulation)).backward()
        touched = torch.cat([torch.as_tensor(pixels.grad).abs().flatten(1).sum(dim=1) for pixels in seen]) > 0
        assert touched.tolist() == (weights > 0).tolist(), rank
    torch.testing.assert_close(layer.weight.grad, gradient)
