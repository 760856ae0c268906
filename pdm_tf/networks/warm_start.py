"""Warm starts: weights of one network for another, with two patch sizes, other images or augmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pdm_tf.networks.patched import EMBED_AUGMENTATION, LARGE

# The layers of stems and heads that have an axis of a patch's values, their kernels' inputs or their outputs.
PATCH_AXES = {
    **dict.fromkeys(("conv_in", "embed_narrow", "embed", "refiner_in"), -2),
    **dict.fromkeys(("conv_out", "project_out", "variance_out", "refiner_out"), -1),
}


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
    """
    completed = dict(arrays)
    for name, shape in shapes.items():
        if LARGE not in name or name in arrays:
            continue
        small = arrays.get(name.replace(f"/{LARGE}", "/"))
        if f"/{LARGE}level/" in name:
            completed[name] = np.zeros(shape, np.float32)
        elif small is not None:
            patches = (2 * patch_size, 1), (patch_size, 1)
            completed[name] = _resized(name, small, shapes, *patches, _side_by_side)
    return completed


def for_other_images(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, Sequence[int]],
    here: tuple[int, int],
    there: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Weights of a network, for patches of another side or number of colours; the trunk stays.

    The stem is the old one on the image averaged down, or magnified, to the old patches, and the head does
    the opposite; grey is the mean of the colours. With a schedule shifted by the resolution
    (`diffusion.schedules.shifted`) an averaged image has the same signal-to-noise ratio, at another scale.
    Weights for patches of 2P or more become the large stem and head, too, of a network that has two sizes.

    Args:
      arrays, shapes: as of `with_large_patches`.
      here, there: (P, colours) of the new network and of the weights. Of 3 colours and 4, say, stem and head
        stay as they are, and do not fit.
    """
    if here[1] != there[1] and 1 not in (here[1], there[1]):
        return dict(arrays)
    adapted = {}
    if there[0] >= 2 * here[0]:
        for name in shapes.keys() - arrays.keys():
            if LARGE in name and (one := arrays.get(name.replace(f"/{LARGE}", "/"))) is not None:
                adapted[name] = _resized(name, one, shapes, (2 * here[0], here[1]), there, _averages)
    for name, array in arrays.items():
        times = 2 if LARGE in name else 1
        patches = [(times * patch_size, channels) for patch_size, channels in (here, there)]
        if "/refiner_" in name:  # whose patches are its own: colours alone change
            patches = [(1, channels) for _, channels in patches]
        adapted[name] = _resized(name, array, shapes, *patches, _averages) if name in shapes else array
    return adapted


def with_augmentation(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """Weights of a network, for one that is `augmented` or is not.

    The layer for augmentation labels is added as zeros, or left out: predictions without labels stay.
    `arrays` and `shapes` as of `with_large_patches`.
    """
    kept = {n: array for n, array in arrays.items() if n in shapes or f"/{EMBED_AUGMENTATION}/" not in n}
    added = {n: np.zeros(s, np.float32) for n, s in shapes.items() if f"/{EMBED_AUGMENTATION}/" in n}
    return {**added, **kept}


def _resized(
    name: str,
    array: np.ndarray,
    shapes: Mapping[str, Sequence[int]],
    here: tuple[int, int],
    there: tuple[int, int],
    resize: Callable[[int, int], np.ndarray],
) -> np.ndarray:
    """An array of a stem or head with its axis of a patch's values resized; other arrays as they are.

    That axis is (row, column, image or blur of it, colour).

    Args:
      name, shapes: the new array's, and the shapes of the new network's variables.
      here, there: (side, colours) of a patch, new and old.
      resize: (new, old) -> the matrix, (new, old), from the values of an old side to a new one's.
    """
    p, channels = here
    old_p, old_channels = there
    axis = _patch_axis(name, shapes)
    if axis is None or array.ndim != len(shapes[name]):
        return array
    new, old = shapes[name][axis], array.shape[axis]
    if new == old or new * old_p**2 * old_channels != old * p**2 * channels:
        return array
    values = np.moveaxis(array, axis, 0)
    rest = values.shape[1:]
    values = values.reshape(old_p, old_p, -1, old_channels, *rest)
    for place, sizes in ((0, (p, old_p)), (1, (p, old_p)), (3, (channels, old_channels))):
        # Of an input the transpose of the way back, so that sums stay.
        matrix = resize(*sizes) * (sizes[1] / sizes[0] if axis == -2 else 1)
        values = np.moveaxis(np.tensordot(matrix, values, (1, place)), 0, place)
    return np.moveaxis(values.reshape(new, *rest), 0, axis).astype(array.dtype)


def _patch_axis(name: str, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """The axis of a patch's values in a variable of a network with `shapes`; None where it has none."""
    layer = "/".join(name.split("/")[1:-1])  # a trunk's blocks have a conv_in, too
    axis = PATCH_AXES.get(layer.removeprefix(LARGE))
    # A bottleneck, and not the patch, is what `embed` takes behind one.
    behind = name.replace(f"/{layer}/", f"/{layer}_narrow/") in shapes
    return None if behind or axis is None or -axis > len(shapes[name]) else axis


def _averages(new: int, old: int) -> np.ndarray:
    """(new, old): each new value is the mean of the old ones that lie in its part of the side."""
    edges = np.arange(new + 1) * old / new
    places = np.arange(old)
    overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return (np.maximum(overlap, 0) * new / old).astype(np.float32)


def _side_by_side(new: int, old: int) -> np.ndarray:
    """(new, old), new a multiple of old: all values, and all of them again."""
    return np.tile(np.eye(old, dtype=np.float32), (new // old, 1))
