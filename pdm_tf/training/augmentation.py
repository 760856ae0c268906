"""Non-leaking augmentation: images changed at random, with labels of the changes (Karras et al., 2022).

The labels are an input of the network. Those of images as they are, zeros, are what a sampler gives: so even
changes that no image of the data shows, such as one upside down, do not leak into samples.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.networks.patched import AUGMENTATION_LABELS
from pdm_tf.randomness import draw_each

SPREAD = 0.2  # of log2 of a scale, or of a stretch
SHIFT = 0.125  # the spread of a shift, of the image's side


class Changes(NamedTuple):
    """Changes of images, in the order in which they are applied, float32 (B,) each; zeros change nothing."""

    mirror: tf.Tensor  # 1: left and right are swapped
    flip: tf.Tensor  # 1: top and bottom are
    log_scale: tf.Tensor  # log2 of how much larger the image gets
    angle: tf.Tensor  # of a rotation, in radians, from the axis to the right towards that downwards
    log_stretch: tf.Tensor  # log2 of the stretch along an axis, and of the shrinking across it
    axis: tf.Tensor  # the angle of that axis
    right: tf.Tensor  # a shift, as a share of the width
    down: tf.Tensor  # one of the height

    @property
    def labels(self) -> tf.Tensor:
        """The network's augmentation labels, numbers around 1, float32 (B, 9); zeros: no change.

        They are continuous, and the same for what gives the same image: a stretch along an axis is one along
        its reverse, and a shrinking across it, so the axis' doubled angle is taken.
        """
        turned = tf.cos(self.angle) - 1.0, tf.sin(self.angle)
        stretch = self.log_stretch / SPREAD
        stretched = stretch * tf.cos(2.0 * self.axis), stretch * tf.sin(2.0 * self.axis)
        placed = self.log_scale / SPREAD, self.right / SHIFT, self.down / SHIFT
        labels = self.mirror, self.flip, *turned, *stretched, *placed
        assert len(labels) == AUGMENTATION_LABELS
        return tf.stack(labels, axis=-1)


def draw_changes(key: tf.Tensor, indices: tf.Tensor, probability: float) -> Changes:
    """Each image's changes, from its own stream: half of all are mirrored, any other change comes seldom.

    Args:
      key: int32 (2,), see `stream`.
      indices: int32 (B,), each image's index in the global batch.
      probability: of scaling, rotating, stretching and shifting, each by itself; flips have half of it.
    """

    def draw(image_key):
        keys = tf.unstack(tf.random.experimental.stateless_split(image_key, 2))
        return tf.random.stateless_uniform((10,), keys[0]), tf.random.stateless_normal((4,), keys[1])

    uniform, normal = draw_each(key, indices, draw, (tf.TensorSpec((10,)), tf.TensorSpec((4,))))
    chosen = tf.unstack(tf.cast(uniform[:, :5] < probability, tf.float32), axis=-1)
    mirror, flip = tf.unstack(tf.cast(uniform[:, 5:7] < 0.5, tf.float32), axis=-1)
    angle, axis = tf.unstack((2.0 * uniform[:, 7:9] - 1.0) * np.pi, axis=-1)
    # As in EDM half of the stretches are along an axis of the image: which one is the sign's affair.
    oblique = tf.cast(uniform[:, 9] < 0.5, tf.float32)
    normal = tf.unstack(normal, axis=-1)
    return Changes(
        mirror=mirror,
        flip=flip * chosen[0],
        log_scale=SPREAD * normal[0] * chosen[1],
        angle=angle * chosen[2],
        log_stretch=SPREAD * normal[1] * chosen[3],
        axis=axis * oblique * chosen[3],
        right=SHIFT * normal[2] * chosen[4],
        down=SHIFT * normal[3] * chosen[4],
    )


def apply_changes(images: tf.Tensor, changes: Changes) -> tf.Tensor:
    """Images, float32 (B, H, W, C), so changed around their centres: bilinear, and mirrored beyond edges.

    Where nothing but swaps is done, pixels are copied as they are. The shapes are static and the operations
    such as XLA has for any device (it has none for ImageProjectiveTransformV3).
    """
    _, height, width, channels = images.shape
    right, down = _origins(height, width, changes)
    corners = _corners(right + (width - 1) / 2.0, down + (height - 1) / 2.0, width, height)
    pixels = tf.reshape(images, [-1, height * width, channels])
    found = [
        tf.reshape(weight, [-1, height * width, 1])
        * tf.gather(pixels, tf.reshape(place, [-1, height * width]), batch_dims=1)
        for place, weight in corners
    ]
    return tf.reshape(tf.add_n(found), [-1, height, width, channels])


def _origins(height: int, width: int, changes: Changes) -> tuple[tf.Tensor, tf.Tensor]:
    """Where each pixel of the changed image comes from, in pixels from the centre, (B, H, W) each.

    So the changes are undone, the last one first. Sums of products, as a TPU multiplies matrices in bfloat16.
    """
    c = Changes(*(change[:, None, None] for change in changes))
    right, down = (tf.range(size, dtype=tf.float32) - (size - 1) / 2.0 for size in (width, height))
    right = right[None, None, :] - c.right * width
    down = down[None, :, None] - c.down * height
    right, down = _turned(right, down, -c.axis)
    right *= 2.0**-c.log_stretch
    down *= 2.0**c.log_stretch
    right, down = _turned(right, down, c.axis - c.angle)
    shrunk = 2.0**-c.log_scale
    return right * shrunk * (1.0 - 2.0 * c.mirror), down * shrunk * (1.0 - 2.0 * c.flip)


def _turned(right: tf.Tensor, down: tf.Tensor, angle: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    cos = tf.cos(angle)
    sin = tf.sin(angle)
    return cos * right - sin * down, sin * right + cos * down


def _corners(right: tf.Tensor, down: tf.Tensor, width: int, height: int):
    """The four pixels around a place, as their numbers row by row, and their weights, (B, H, W) each."""
    left = tf.floor(right)
    top = tf.floor(down)
    for column, across in ((left, 1.0 + left - right), (left + 1.0, right - left)):
        for row, along in ((top, 1.0 + top - down), (top + 1.0, down - top)):
            yield _mirrored(row, height) * width + _mirrored(column, width), across * along


def _mirrored(index: tf.Tensor, size: int) -> tf.Tensor:
    """Any whole number -> int32 in 0..size - 1: ..1, 0, 0, 1, .. size - 1, size - 1, .. and back."""
    index = tf.math.floormod(tf.cast(index, tf.int32), 2 * size)
    return tf.minimum(index, 2 * size - 1 - index)
