"""From a decoded image to pixels of the model's size: what training and evaluation see.

Shapes: H, W the model's image height and width in pixels; 3 colours, last, as Pillow holds them.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.config import AugmentConfig
from data_pipeline.random import Purpose, uniform

Pixels = npt.NDArray[np.uint8]

CROP_TRIES = 10


@dataclass(frozen=True)
class TrainTransform:
    """The paper's training transform: Inception crop and flip, a pure function of the image, the seed and the place."""

    augment: AugmentConfig
    image_hw: tuple[int, int]
    seed: int

    def __call__(self, image: Image.Image, place: int) -> Pixels:
        """The pixels [H, W, 3] of `image` at `place`."""
        # Two numbers a try, two for the crop's position, one for the flip: all drawn, so that none shifts another.
        chance = uniform(self.seed, Purpose.AUGMENT, place, count=2 * CROP_TRIES + 3).tolist()
        box = crop_box(image.size, self.augment, chance) if self.augment.crop == "inception" else None
        pixels_HW3 = _resize(image, self.image_hw, box)
        return pixels_HW3[:, ::-1] if self.augment.flip and chance[-1] < 0.5 else pixels_HW3


@dataclass(frozen=True)
class EvalTransform:
    """The paper's evaluation transform: the whole image squeezed to the model's size (vit_jax/input_pipeline.py)."""

    image_hw: tuple[int, int]

    def __call__(self, image: Image.Image, place: int) -> Pixels:
        """The pixels [H, W, 3] of `image`, whatever its place."""
        return _resize(image, self.image_hw, None)


def crop_box(size_wh: tuple[int, int], augment: AugmentConfig, chance: list[float]) -> tuple[int, int, int, int]:
    """The (left, top, right, bottom) of an Inception crop; `chance` are 2 * CROP_TRIES + 2 numbers in [0, 1).

    torchvision's rule (`RandomResizedCrop.get_params`): area uniform, aspect log-uniform, ten tries for a crop that
    fits, then the largest central crop of an allowed aspect. TensorFlow's differs (height uniform, 100 tries)."""
    width, height = size_wh
    narrowest, widest = augment.aspect
    for attempt in range(CROP_TRIES):
        area = width * height * _between(augment.area, chance[2 * attempt])
        aspect = math.exp(_between((math.log(narrowest), math.log(widest)), chance[2 * attempt + 1]))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(chance[2 * CROP_TRIES] * (width - crop_width + 1))
            top = int(chance[2 * CROP_TRIES + 1] * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, max(1, round(height * widest)))
    crop_height = min(height, max(1, round(width / narrowest)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _between(low_high: tuple[float, float], chance: float) -> float:
    low, high = low_high
    return low + (high - low) * chance


def _resize(image: Image.Image, image_hw: tuple[int, int], box: tuple[int, int, int, int] | None) -> Pixels:
    height, width = image_hw
    # Bilinear with Pillow's anti-aliasing. Cropping inside resize() saves a copy; at the crop's edges the filter sees
    # the pixels beside it.
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
