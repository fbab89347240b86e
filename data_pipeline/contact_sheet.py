"""A picture of a packed set: a row of images for each of some classes, under the class's own name."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipeline.decode import DecodeError, decode
from data_pipeline.samples import SampleSet

MAX_CLASSES = 16
IMAGES_A_CLASS = 8
THUMB_PX = 96
GAP_PX = 6
NAME_PX = 190
FONT_PX = 15

_PAPER, _INK, _FAINT = "white", "black", "#777777"


def contact_sheet(samples: SampleSet, title: str) -> Image.Image:
    """The first IMAGES_A_CLASS images of up to MAX_CLASSES classes, chosen evenly over the labels."""
    labels = samples.labels()
    chosen = np.unique(np.linspace(0, samples.num_classes - 1, MAX_CLASSES).astype(np.int64)).tolist()
    step_px = THUMB_PX + GAP_PX
    width_px = NAME_PX + IMAGES_A_CLASS * step_px + GAP_PX
    top_px = 2 * GAP_PX + FONT_PX + GAP_PX
    sheet = Image.new("RGB", (width_px, top_px + len(chosen) * step_px), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT_PX)
    draw.text((GAP_PX, GAP_PX), _fitting(draw, font, title, width_px - 2 * GAP_PX), _INK, font)
    for line, label in enumerate(chosen):
        y = top_px + line * step_px
        of_class = np.flatnonzero((labels == label).any(axis=1))
        name = _fitting(draw, font, samples.classes[label], NAME_PX - 2 * GAP_PX)
        draw.text((GAP_PX, y + THUMB_PX // 2 - FONT_PX), name, _INK, font)
        draw.text(
            (GAP_PX, y + THUMB_PX // 2 + 2),
            f"label {label}, {len(of_class)} image{'s' * (len(of_class) != 1)}",
            _FAINT,
            font,
        )
        for column, place in enumerate(of_class[:IMAGES_A_CLASS].tolist()):
            thumb = _thumb(samples, place)
            x = NAME_PX + column * step_px
            sheet.paste(thumb, (x + (THUMB_PX - thumb.width) // 2, y + (THUMB_PX - thumb.height) // 2))
    return sheet


def _thumb(samples: SampleSet, place: int) -> Image.Image:
    """The image in a THUMB_PX square, at its own aspect; a grey square when it cannot be decoded."""
    try:
        image = decode(samples.read(*samples.locate(place)).image_bytes)
    except DecodeError:
        return Image.new("RGB", (THUMB_PX, THUMB_PX), "grey")
    scale = THUMB_PX / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _fitting(draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, px: int) -> str:
    """As much of a text as fits into `px` pixels."""
    if draw.textlength(text, font) <= px:
        return text
    while text and draw.textlength(text + "...", font) > px:
        text = text[:-1]
    return text + "..."
