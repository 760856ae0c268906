"""Patching: the reshaping before and after the paper's U-Net (Section 3, Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.stack import keras


def grid_of(image_shape: Sequence[int | None], patch_size: int) -> tuple[int | None, int | None]:
    """The patches of an image, (H, W, ...) -> (H/P, W/P); unknown sizes stay unknown.

    Raises:
      UserError: H or W does not divide by P.
    """
    height, width = image_shape[:2]
    for side, size in (("height", height), ("width", width)):
        if size is not None and size % patch_size:
            raise UserError(f"image {side} {size} does not divide by patch_size={patch_size}")
    return height and height // patch_size, width and width // patch_size


def _extract(image: tf.Tensor, patch_size: int) -> tf.Tensor:
    window = [1, patch_size, patch_size, 1]

    # TensorFlow differentiates extract_patches through a sparse matrix, which is slow and which XLA
    # cannot compile. Patches that do not overlap only move values, so the gradient is the inverse move.
    @tf.custom_gradient
    def extract(values):
        patches = tf.image.extract_patches(values, window, window, [1, 1, 1, 1], "VALID")
        return patches, lambda upstream: _assemble(upstream, patch_size)

    return extract(image)


def _assemble(patches: tf.Tensor, patch_size: int) -> tf.Tensor:
    return tf.nn.depth_to_space(patches, patch_size) if patch_size > 1 else tf.identity(patches)


class _PatchLayer(keras.layers.Layer):
    def __init__(self, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        if patch_size < 1:
            raise UserError(f"patch_size={patch_size}: use a whole number above 0")
        self.patch_size = int(patch_size)

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.utils.register_keras_serializable("pdm_tf")
class ImageToPatches(_PatchLayer):
    """Images (B, H, W, C) -> a grid of patches (B, H/P, W/P, P*P*C).

    The channels of a patch are ordered by row in the patch, column in the patch, colour, as
    `tf.image.extract_patches` has them. P = 1 is the identity.

    Raises:
      UserError: H or W does not divide by P.
    """

    def call(self, image: tf.Tensor) -> tf.Tensor:
        """Any dtype that `tf.image.extract_patches` takes."""
        grid_of(image.shape[1:], self.patch_size)
        return _extract(image, self.patch_size)

    def compute_output_shape(self, input_shape):
        """(B, H, W, C) -> (B, H/P, W/P, P*P*C); unknown sizes stay unknown."""
        batch, *size, channels = input_shape
        grid = grid_of(size, self.patch_size)
        return tf.TensorShape((batch, *grid, channels and channels * self.patch_size**2))


@keras.utils.register_keras_serializable("pdm_tf")
class PatchesToImage(_PatchLayer):
    """A grid of patches (B, H/P, W/P, P*P*C) -> images (B, H, W, C): the exact inverse of `ImageToPatches`.

    Raises:
      UserError: the channels do not divide by P*P.
    """

    def call(self, patches: tf.Tensor) -> tf.Tensor:
        """Any dtype that `tf.nn.depth_to_space` takes."""
        channels, area = patches.shape[-1], self.patch_size**2
        if channels % area:
            raise UserError(f"{channels} channels do not divide by patch_size^2 = {area}")
        return _assemble(patches, self.patch_size)

    def compute_output_shape(self, input_shape):
        """(B, h, w, c) -> (B, h*P, w*P, c/P^2); unknown sizes stay unknown."""
        batch, height, width, channels = input_shape
        p = self.patch_size
        return tf.TensorShape(
            (batch, height and height * p, width and width * p, channels and channels // (p * p))
        )
