"""Warm starts: weights of one network for another, with two patch sizes, larger images or augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pdm_tf.networks.patched import EMBED_AUGMENTATION, LARGE


def with_large_patches(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]], patch_size: int
) -> dict[str, np.ndarray]:
    """Weights of a network with patches of P, completed for one that has patches of 2P, too.

    The large stem is the mean of the small one over the four patches in a large one, the large head repeats
    the small patch four times (as in PPFlow), and the level's embedding is zero. So for an
    image whose patches are equal in fours a ViT predicts the same at both sizes, up to position encodings.

    Args:
      arrays: by variable name; those of layers for large patches are kept.
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
    """Weights of a network, for images and patches `times` as large, on the same grid.

    The stem is the old one on the image averaged down, and the head repeats each pixel as a square; the trunk
    stays. With a schedule shifted by the resolution (`diffusion.schedules.shifted`) the averaged image has
    the same signal-to-noise ratio, at another scale.

    Args:
      arrays: by variable name.
      shapes: those of the new network's variables, by name.
      patch_size: the smaller P.
      times: larger height, width and P over the smaller ones.
    """
    return {
        name: _grown(array, shapes[name], patch_size, times, np.repeat) if name in shapes else array
        for name, array in arrays.items()
    }


def with_augmentation(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Weights of a network, for one that is `augmented` or is not.

    The layer for augmentation labels is added as zeros, or left out: predictions without labels stay.

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
    """An array of a stem or head with its axis of a patch's values grown; other arrays as they are.

    The axis (row, column, colour) of a patch of side p becomes that of a patch of side times * p. Input axes
    are divided by times^2.

    Args:
      copied: (values, times, axis) -> `times` copies of the values along an axis.
    """
    for axis, (large_size, small_size) in enumerate(zip(shape, small.shape)):
        if large_size == times**2 * small_size:
            patch = small.reshape(*small.shape[:axis], p, p, -1, *small.shape[axis + 1 :])
            patch = copied(copied(patch, times, axis), times, axis + 1).reshape(shape)
            is_input = axis == small.ndim - 2
            return patch / (times**2 if is_input else 1)
    return small


def _side_by_side(values: np.ndarray, times: int, axis: int) -> np.ndarray:
    return np.concatenate([values] * times, axis)
