"""Geometry of images, by the conventions of the data sets' authors; files are `pdm_tf.images`' work."""

from __future__ import annotations

from PIL import Image, ImageOps

# Times longer than the result: an image that covers it and is longer yet is a line, and never made whole.
LONGEST = 16


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """The centred rectangle of `height` x `width`, which must lie within the image."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def square_then_box(image: Image.Image, size: int) -> Image.Image:
    """Centre crop to a square, then one BOX resize: the convention for LSUN."""
    side = min(image.size)
    return center_crop(image, side, side).resize((size, size), Image.Resampling.BOX)


def resize_then_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Halves with BOX while twice too large, BICUBIC to cover, centre crop: that for ImageNet.

    Of a line, such as one of 1 x 65000 pixels, the middle alone is resized: all would take gigabytes.
    """
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    covering = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if max(covering) > LONGEST * max(width, height):
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return center_crop(image.resize(covering, Image.Resampling.BICUBIC), height, width)
