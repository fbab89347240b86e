"""From the bytes of an image file to upright 8-bit RGB; every oddity has one outcome, held by a test.

grey, 1 bit, palette       their colours as RGB
16 bit                     the upper byte of each value (as Pillow already does for 16-bit colour)
alpha, transparent colour  laid over white
CMYK JPEG                  inverted when an Adobe marker says so, as it is when there is none; then naively to RGB
EXIF orientation           applied: the picture as a viewer shows it; an unreadable EXIF block counts as upright
ICC profile                ignored: values are taken as they are
several frames             the first
anything else              DecodeError: other formats, more pixels than MAX_PIXELS, a truncated or broken file
"""

import io

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

# What a shard may hold. Pillow is never asked to guess: some of its other readers start programs.
STORED_FORMATS = ("JPEG", "PNG", "WEBP")
# What packing reads besides, and stores as PNG.
PACKED_FORMATS = (*STORED_FORMATS, "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
# 64 Mi pixels are 192 MiB as RGB; the largest photograph of ImageNet has 26 million.
MAX_PIXELS = 64 * 2**20

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(Exception):
    """These bytes are not an image that we take; says why."""


def decode(image_bytes: bytes) -> Image.Image:
    """The image in a stored file as upright RGB; DecodeError when it is broken or not allowed."""
    return load(image_bytes, STORED_FORMATS)[0]


def load(image_bytes: bytes, formats: tuple[str, ...]) -> tuple[Image.Image, str]:
    """The image as upright RGB, and the name of its format, one of `formats`."""
    try:
        image = Image.open(io.BytesIO(image_bytes), formats=formats)
        # A phone's JPEG with a second picture behind it calls itself MPO.
        image_format = "JPEG" if image.format == "MPO" else str(image.format)
        width_px, height_px = image.size
        if width_px * height_px > MAX_PIXELS:
            raise DecodeError(f"{width_px} x {height_px} pixels; at most {MAX_PIXELS} are read")
        image.load()
        return _upright(_rgb(image, image_format), image), image_format
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(f"not an image in one of {', '.join(formats)}") from None
    except Exception as error:  # Pillow's readers let anything through that broken bytes provoke
        raise DecodeError(f"broken image: {error or type(error).__name__}") from error


def _rgb(image: Image.Image, image_format: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "CMYK" and image_format == "JPEG" and "adobe" not in image.info:
        # Pillow inverts every CMYK JPEG; without the marker the file holds plain ink.
        return ImageChops.invert(image).convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DecodeError("32-bit pixels, which have no agreed range; convert them to 8 or 16 bit")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _upright(rgb: Image.Image, image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # as above: a broken EXIF block is no reason to lose the picture
        return rgb
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
