"""Weights of a network made to begin another: of two patch sizes, of larger images, told of changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pdm_tf.networks.patched import EMBED_AUGMENTATION, LARGE


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
            completed[name] = _grown(small, shape, patch_size, 2, _side_by_side)
    return completed


def for_larger_images(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], patch_size: int, times: int
) -> dict[str, np.ndarray]:
    """Weights of a network, to begin one of images and patches some times as large: the grid stays.

    The stem gives what the smaller one gives for the image averaged down, and the head each pixel as a square
    of equal ones; everything between stays. Under a schedule that is shifted by the resolution, of the
    smaller one's (`diffusion.schedules.shifted`), the averaged image is also as noisy, and only its scale is
    another.

    Args:
      arrays: by variable name.
      shapes: those of the new network's variables, by name.
      patch_size: the smaller P.
      times: of the sides.
    """
    return {
        name: _grown(array, shapes[name], patch_size, times, np.repeat) if name in shapes else array
        for name, array in arrays.items()
    }


def with_augmentation(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Weights of a network, to begin one that is `augmented` or is not, whichever they are of.

    A layer of zeros is added, or the layer left out: a network that is told of no change answers the same.

    Args:
      arrays: by variable name.
      shapes: those of the new network's variables, by name.
    """
    kept = {n: array for n, array in arrays.items() if n in shapes or f"/{EMBED_AUGMENTATION}/" not in n}
    added = {n: np.zeros(s, np.float32) for n, s in shapes.items() if f"/{EMBED_AUGMENTATION}/" in n}
    return {**added, **kept}


def _grown(
    small: np.ndarray,
    shape: Sequence[int],
    p: int,
    times: int,
    copied: Callable[[np.ndarray, int, int], np.ndarray],
) -> np.ndarray:
    """A stem's or head's array with its axis of patches grown to patches some times as large; others stay.

    An axis of (row, column, colour) in a patch of side p becomes that of a patch of side times p, with a
    share of each value where they come in.

    Args:
      copied: makes `times` of the values along an axis, given (values, times, axis).
    """
    for axis, (many, few) in enumerate(zip(shape, small.shape)):
        if many == times**2 * few:
            patch = small.reshape(*small.shape[:axis], p, p, -1, *small.shape[axis + 1 :])
            patch = copied(copied(patch, times, axis), times, axis + 1).reshape(shape)
            comes_in = axis == small.ndim - 2
            return patch / (times**2 if comes_in else 1)
    return small


def _side_by_side(values: np.ndarray, times: int, axis: int) -> np.ndarray:
    return np.concatenate([values] * times, axis)
