"""Opening, colours and geometry of images, with Pillow alone."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps

# What Pillow's decoders are known to raise on damaged files; UserError is a ValueError.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode(data: bytes) -> Image.Image:
    """Bytes of an image file, of whatever format its first bytes tell -> its first frame, loaded.

    Raises:
        one of `UNREADABLE`: damaged or no image.
    """
    # Pillow warns of harmless oddities (EXIF, palettes) in files that it reads well.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any mode -> RGB: transparent parts on `background`, 16-bit greyscale by its upper 8 bits."""
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit values at 255.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, background)
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centred rectangle of `height` x `width`, which must lie within the image."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def square_then_box(image: Image.Image, size: int) -> Image.Image:
    """Centre crop to a square, then one BOX resize: the convention for LSUN."""
    side = min(image.size)
    return center_crop(image, side, side).resize((size, size), Image.Resampling.BOX)


def resize_then_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Halves with BOX while twice too large, BICUBIC to cover, centre crop: that for ImageNet."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = (
        max(width, round(image.width * scale)),
        max(height, round(image.height * scale)),
    )
    return center_crop(image.resize(covering, Image.Resampling.BICUBIC), height, width)


def encode(image: Image.Image, encoding: str, *, png_level: int, jpeg_quality: int) -> bytes:
    """RGB image -> bytes of a PNG (lossless) or JPEG (full-resolution colour) file."""
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, format="PNG", compress_level=png_level)
    else:
        image.save(buffer, format="JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()
