"""Coded images: red and green are flat and name the class and the number in it, so that a picture and its label can be
held against each other wherever they come out: crops and resizes leave them, and the formats are lossless. Blue is
noise, so that no two crops are alike."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("ant", "bee", "cat", "dog", "eel")
COUNTS = (23, 11, 31, 17, 15)  # 97 images: a prime number


def red_and_green(label: int, number: int) -> tuple[int, int]:
    return 50 * label + 6, 2 * number + 3  # never grey, as letters on paper are


def write_coded(root: Path) -> Path:
    noise = np.random.default_rng(0)
    for label, (name, count) in enumerate(zip(CLASSES, COUNTS, strict=True)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            suffix = ("png", "webp", "bmp")[number % 3]
            pixels_HW3 = np.empty((8, 9 + number % 4, 3), dtype=np.uint8)
            pixels_HW3[..., :2] = red_and_green(label, number)
            pixels_HW3[..., 2] = noise.integers(0, 256, pixels_HW3.shape[:2])
            path = root / name / f"{number:03d}.{suffix}"
            Image.fromarray(pixels_HW3).save(path, lossless=True)  # WebP asks; the others are
    return root


def label_of(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The labels in the colours of images [..., 3, H, W]."""
    return (pixels[..., 0, 0, 0].astype(np.int64) - 6) // 50


def number_of(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """The numbers in the colours of images [..., 3, H, W]."""
    return (pixels[..., 1, 0, 0].astype(np.int64) - 3) // 2
