"""Fitting a table of learned positions to another resolution.

The table is a picture of the patch grid, one pixel a patch, and section 3.2 of the paper interpolates it in 2-D. The
paper's code (vit_jax/checkpoint.py) does so by scipy.ndimage.zoom of order 1, which is bilinear with the corner patches
kept in the corners. timm, torchvision and Hugging Face each do something else, and their logits differ.

D width, N patches, T = class rows + N.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def resize_positions(
    table_1TD: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], num_class_rows: int
) -> Tensor:
    """Interpolate a position table from one grid (rows, columns) to another; the class rows come first and stay."""
    assert table_1TD.shape[1] == num_class_rows + old_grid[0] * old_grid[1], (table_1TD.shape, old_grid, num_class_rows)
    class_rows, patches_1ND = table_1TD[:, :num_class_rows], table_1TD[:, num_class_rows:]
    picture_1Dhw = patches_1ND.transpose(1, 2).unflatten(2, old_grid).double()  # as scipy does
    resized_1Dhw = F.interpolate(picture_1Dhw, size=new_grid, mode="bilinear", align_corners=True)
    resized_1ND = resized_1Dhw.flatten(2).transpose(1, 2).to(table_1TD.dtype)
    return torch.cat([class_rows, resized_1ND], dim=1)
