"""Resizing of position tables against what the paper's code calls."""

import pytest
import torch

from vit.positions import resize_positions

Grid = tuple[int, int]


@pytest.mark.parametrize("num_class_rows", [0, 1, 2])
@pytest.mark.parametrize(
    ("old_grid", "new_grid"),
    [
        ((14, 14), (24, 24)),
        ((16, 16), (37, 37)),
        ((24, 24), (14, 14)),
        ((14, 14), (24, 31)),
        ((9, 7), (4, 16)),
        ((6, 6), (8, 8)),
        ((2, 5), (1, 3)),
        ((1, 3), (4, 3)),
    ],
)
def test_resizing_is_scipys_zoom_of_order_1(old_grid: Grid, new_grid: Grid, num_class_rows: int) -> None:
    from scipy.ndimage import zoom

    table = torch.randn(1, num_class_rows + old_grid[0] * old_grid[1], 20, generator=torch.Generator().manual_seed(0))
    resized = resize_positions(table, old_grid, new_grid, num_class_rows)

    picture = table[0, num_class_rows:].reshape(*old_grid, 20).double().numpy()
    expected = zoom(picture, (new_grid[0] / old_grid[0], new_grid[1] / old_grid[1], 1), order=1)
    assert expected.shape == (*new_grid, 20)
    assert torch.equal(resized[:, :num_class_rows], table[:, :num_class_rows])
    assert (resized[0, num_class_rows:].reshape(*new_grid, 20) - torch.from_numpy(expected)).abs().max() < 3e-7
    assert resized.dtype == torch.float32


def test_the_same_grid_keeps_every_bit_and_half_precision_stays() -> None:
    table = torch.randn(1, 1 + 14 * 24, 8)
    assert torch.equal(resize_positions(table, (14, 24), (14, 24), 1), table)
    assert resize_positions(table.bfloat16(), (14, 24), (3, 3), 1).dtype == torch.bfloat16


def test_a_grid_that_is_not_the_tables_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        resize_positions(torch.zeros(1, 5, 8), (2, 3), (4, 4), 1)
