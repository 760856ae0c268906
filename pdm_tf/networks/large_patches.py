"""Weights of a network made to begin one of two patch sizes, or one of larger images and patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pdm_tf.networks.patched import LARGE


def with_large_patches(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], patch_size: int
) -> dict[str, np.ndarray]:
    """Weights of a network of patches of side P, completed to begin one that has patches of 2P too.

    The large stem gives the mean of what the small one gives for the four patches in a large one, and the
    large head the same small patch four times (as PPFlow begins); the level's embedding is zero. So on an
    image in which each four are alike, seen from the same places, a ViT's two sizes answer alike.

    Args:
      arrays: by variable name; what is there of large patches stays.
      shapes: those of the new network's variables, by name.
      patch_size: P.
    """
    completed = dict(arrays)
    for name, shape in shapes.items():
        if LARGE not in name or name in arrays:
            continue
        small = arrays.get(name.replace(f"/{LARGE}", "/"))
        if f"/{LARGE}level/" in name:
            completed[name] = np.zeros(shape, np.float32)
        elif small is not None:
            completed[name] = _enlarged(small, shape, patch_size)
    return completed


def for_larger_images(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], patch_size: int, times: int
) -> dict[str, np.ndarray]:
    """Weights of a network, to begin one of images and patches some times as large: the grid stays.

    The stem gives what the smaller one gives for the image averaged down, and the head each pixel as a square
    of equal ones; everything between stays. Under a schedule that is shifted by the resolution
    (`shifted_cosine`) the averaged image is also as noisy, and only its scale is another.

    Args:
      arrays: by variable name.
      shapes: those of the new network's variables, by name.
      patch_size: the smaller P.
      times: of the sides.
    """
    return {
        name: _magnified(array, shapes[name], patch_size, times) if name in shapes else array
        for name, array in arrays.items()
    }


def _magnified(small: np.ndarray, shape: Sequence[int], p: int, times: int) -> np.ndarray:
    """A stem's or head's array with each pixel of its axis of patches repeated; others as they are."""
    for axis, (many, few) in enumerate(zip(shape, small.shape)):
        if many == times**2 * few:
            patch = small.reshape(*small.shape[:axis], p, p, -1, *small.shape[axis + 1 :])
            patch = patch.repeat(times, axis).repeat(times, axis + 1)
            return patch.reshape(shape) / (times**2 if axis == small.ndim - 2 else 1)
    return small


def _enlarged(small: np.ndarray, shape: Sequence[int], patch_size: int) -> np.ndarray:
    """A stem's or head's array, grown along its axis of patches; a quarter of each where they come in."""
    for axis, (many, few) in enumerate(zip(shape, small.shape)):
        if many == 4 * few:
            comes_in = axis == small.ndim - 2
            return _four_copies(small, axis, patch_size) / (4 if comes_in else 1)
    return small


def _four_copies(values: np.ndarray, axis: int, p: int) -> np.ndarray:
    """An axis of (row, column, colour) in a patch of side p -> that of a patch of 2p, of four of them."""
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    patch = values.reshape(*before, p, p, -1, *after)
    patch = np.concatenate([patch] * 2, axis=axis)
    patch = np.concatenate([patch] * 2, axis=axis + 1)
    return patch.reshape(*before, -1, *after)
