"""Images out of the program: 8-bit conversion, grids and files."""

from __future__ import annotations

import math
import os

import numpy as np
from PIL import Image

from pdm_tf.atomic import atomic_file


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in [-1, 1] -> uint8 0..255, rounded to the nearest level; values beyond are clipped."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


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


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (H, W, C) with 1 to 4 channels as PNG, atomically."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    with atomic_file(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


def write_samples(path: str | os.PathLike, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Writes uint8 images (N, H, W, C) and labels (N,) as `arr_0` and `arr_1` of an .npz file, ADM's form."""
    arrays = {"arr_0": images}
    if labels is not None:
        arrays["arr_1"] = labels
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)
