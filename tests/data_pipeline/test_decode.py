"""Each oddity of an image file has one outcome."""

import io
import struct

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngImageFile

from data_pipeline import decode as decode_module
from data_pipeline.decode import PACKED_FORMATS, DecodeError, decode, load

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def pixels(image_bytes: bytes) -> npt.NDArray[np.uint8]:
    image = decode(image_bytes)
    assert image.mode == "RGB"
    return np.asarray(image)


def gradient(mode: str = "RGB") -> Image.Image:
    levels_HW = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    return Image.fromarray(np.stack([levels_HW, levels_HW[::-1], levels_HW // 2], axis=2)).convert(mode)


@pytest.mark.parametrize(("image_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_rgb_is_what_was_saved(image_format: str, options: dict[str, object]) -> None:
    assert np.array_equal(pixels(encoded(gradient(), image_format, **options)), np.asarray(gradient()))


def test_jpeg_is_decoded_as_pillow_does() -> None:
    assert abs(pixels(encoded(gradient(), "JPEG", quality=100)).astype(int) - np.asarray(gradient())).mean() < 12


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_grey_has_three_equal_channels(image_format: str) -> None:
    found = pixels(encoded(gradient("L"), image_format))
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    assert abs(found[..., 0].astype(int) - np.asarray(gradient("L"))).max() < 6


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (4, 2), 0)
    image.putpixel((3, 1), 1)
    found = pixels(encoded(image, "PNG"))
    assert found[1, 3].tolist() == [255, 255, 255]
    assert found.sum() == 3 * 255


def test_a_palette_gives_its_colours() -> None:
    image = Image.new("RGB", (4, 4), RED).quantize(4)
    assert image.mode == "P"
    assert (pixels(encoded(image, "PNG")) == RED).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255)).convert(mode)
    image.putpixel((1, 0), (0, 0, 0, 51) if mode == "RGBA" else (0, 51))  # a fifth of black
    assert pixels(encoded(image, "PNG")).tolist() == [[[0, 0, 0], [204, 204, 204]]]


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, "PNG", transparency=1)).tolist() == [[list(RED), list(WHITE)]]


def test_a_transparent_colour_is_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), (1, 2, 3))
    assert pixels(encoded(image, "PNG", transparency=(1, 2, 3))).tolist() == [[list(RED), list(WHITE)]]


def test_16_bit_grey_keeps_its_upper_byte() -> None:
    levels_HW = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    found = pixels(encoded(Image.fromarray(levels_HW), "PNG"))
    assert np.array_equal(found[..., 0], np.arange(256, dtype=np.uint8).reshape(16, 16))


def test_16_bit_colour_keeps_its_upper_byte() -> None:
    raw = b"\0" + struct.pack(">HHH", 0x1234, 0xABCD, 0xFF00)
    assert pixels(png_of(width=1, height=1, bits=16, colour_type=2, raw=raw)).tolist() == [[[0x12, 0xAB, 0xFF]]]


def png_of(width: int, height: int, bits: int, colour_type: int, raw: bytes) -> bytes:
    """A PNG that Pillow does not write."""
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_cmyk_with_an_adobe_marker_is_inverted_ink() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image_bytes = encoded(cyan, "JPEG", quality=100)
    assert b"Adobe" in image_bytes
    assert abs(pixels(image_bytes).astype(int) - (0, 255, 255)).max() <= 3


def test_cmyk_without_the_marker_is_plain_ink() -> None:
    # Pillow saves ink inverted and with a marker: the same file of inverted ink, without the marker, is plain ink.
    image_bytes = encoded(ImageChops.invert(Image.new("CMYK", (16, 16), (255, 0, 0, 0))), "JPEG", quality=100)
    start = image_bytes.index(b"\xff\xee")
    length = 2 + int.from_bytes(image_bytes[start + 2 : start + 4], "big")
    unmarked = image_bytes[:start] + image_bytes[start + length :]
    assert b"Adobe" not in unmarked
    assert abs(pixels(unmarked).astype(int) - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, image_format: str) -> None:
    # EXIF 2.3, tag 0x0112: where the stored picture's first row and first column lie in the upright one.
    upright = gradient()
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),  # the camera was turned: 6 asks for a turn clockwise
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if image_format == "JPEG" else {"lossless": True} if image_format == "WEBP" else {}
    found = pixels(encoded(stored, image_format, exif=exif, **options))
    assert found.shape == np.asarray(upright).shape
    assert abs(found.astype(int) - np.asarray(upright)).mean() < (12 if image_format == "JPEG" else 1e-9)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_unreadable_exif_block_counts_as_upright() -> None:
    image_bytes = encoded(gradient(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(pixels(image_bytes), np.asarray(gradient()))


def test_a_colour_profile_is_ignored() -> None:
    profiled = encoded(gradient(), "PNG", icc_profile=b"not even a profile")
    assert np.array_equal(pixels(profiled), np.asarray(gradient()))


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, WHITE)]
    animated = encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    assert (pixels(animated) == RED).all()


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.95])
def test_a_truncated_file_is_refused(image_format: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    image_bytes = encoded(noise, image_format)
    with pytest.raises(DecodeError, match=r"broken image|not an image"):
        decode(image_bytes[: int(len(image_bytes) * kept)])


@pytest.mark.parametrize("image_format", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_read_by_packing_only(image_format: str) -> None:
    image_bytes = encoded(gradient("L"), image_format)
    with pytest.raises(DecodeError, match="not an image in one of JPEG, PNG, WEBP"):
        decode(image_bytes)
    image, found_format = load(image_bytes, PACKED_FORMATS)
    assert found_format == image_format
    assert np.array_equal(np.asarray(image)[..., 0], np.asarray(gradient("L")))


def test_a_format_that_starts_programs_is_never_read() -> None:
    postscript = encoded(gradient(), "EPS")
    with pytest.raises(DecodeError, match="not an image in one of"):
        load(postscript, PACKED_FORMATS)


def test_32_bit_pixels_are_refused() -> None:
    with pytest.raises(DecodeError, match="32-bit pixels, which have no agreed range"):
        load(encoded(Image.new("F", (4, 4)), "TIFF"), PACKED_FORMATS)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    image_bytes = encoded(gradient(), "PNG")
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 100)
    monkeypatch.setattr(PngImageFile, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(DecodeError, match="16 x 12 pixels; at most 100 are read"):
        decode(image_bytes)


def test_a_decompression_bomb_is_refused() -> None:
    bomb = png_of(width=60_000, height=60_000, bits=1, colour_type=0, raw=b"")
    with pytest.raises(DecodeError, match=r"pixels"):
        decode(bomb)
