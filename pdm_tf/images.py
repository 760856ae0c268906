"""Images in and out of the program: 8-bit conversion, grids and files."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from flags.errors import UserError
from pdm_tf.atomic import atomic_file

PILLOW_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in [-1, 1] -> uint8 0..255, rounded to the nearest level; values beyond are clipped."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 in [-1, 1]; `to_uint8` gives back the same bytes."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def image_grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Lays uint8 images (N, H, W, C) out in rows on white; about square unless `columns` is given.

    Returns:
      uint8 (height, width, C).
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def read_image(path: str | os.PathLike, image_shape: Sequence[int]) -> np.ndarray:
    """Reads an image file of exactly `image_shape` = (H, W, C), uint8. Transparent parts become white.

    Raises:
      UserError: it is missing, no image, or of another size.
    """
    height, width, channels = image_shape
    if channels not in PILLOW_MODES:
        raise UserError(f"{path}: a model of {channels} channels cannot edit image files")
    image = _open_image(path, width, height)
    if channels in (1, 3):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert(PILLOW_MODES[channels])).reshape(image_shape)


def read_mask(path: str | os.PathLike, image_shape: Sequence[int]) -> np.ndarray:
    """Reads a mask of the size of `image_shape` = (H, W, C): bool (H, W), True where the file is light.

    Raises:
      UserError: it is missing, no image, of another size, or dark everywhere.
    """
    mask = np.asarray(_open_image(path, image_shape[1], image_shape[0]).convert("L")) >= 128
    if not mask.any():
        raise UserError(f"{path} is black everywhere: make white what is to be painted anew")
    return mask


def _open_image(path: str | os.PathLike, width: int, height: int) -> Image.Image:
    try:
        with Image.open(path) as file:
            image = file.copy()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path} cannot be read as an image ({error})") from error
    if image.size != (width, height):
        raise UserError(
            f"{path} is {image.width} pixels wide and {image.height} high: resize it to the model's "
            f"{width} x {height}"
        )
    return image


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (H, W, C) with 1 to 4 channels as PNG, atomically."""
    with atomic_file(path) as partial:
        _to_pillow(image).save(partial, format="PNG")


def write_gif(path: str | os.PathLike, frames: Sequence[np.ndarray], seconds: float = 0.15) -> None:
    """Writes uint8 frames (H, W, C) as an endless GIF, atomically; the last frame stays ten times as long."""
    first, *rest = map(_to_pillow, frames)
    durations = [round(1000 * seconds)] * len(rest) + [round(10_000 * seconds)]
    with atomic_file(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def write_samples(
    path: str | os.PathLike,
    batches: Iterable[np.ndarray],
    shape: Sequence[int],
    labels: np.ndarray | None,
) -> None:
    """Writes images and labels as `arr_0` and `arr_1` of an .npz file, in the form of ADM's evaluator.

    The file is that of `np.savez`, but only one batch at a time is in memory.

    Args:
      batches: uint8 (B, H, W, C), in order; together N images.
      shape: (N, H, W, C).
      labels: int32 (N,), or None.
    """
    with atomic_file(path) as partial, zipfile.ZipFile(partial, "w", allowZip64=True) as file:
        with file.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(member, header)
            written = 0
            for batch in batches:
                member.write(np.ascontiguousarray(batch, np.uint8).data)
                written += len(batch)
            assert written == shape[0], f"{written} images came, and {shape[0]} were promised"
        if labels is not None:
            with file.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)
