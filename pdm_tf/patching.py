"""Patching: the reshaping before and after the paper's U-Net (Section 3, Appendix B)."""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.stack import keras


class _PatchLayer(keras.layers.Layer):
    def __init__(self, patch_size: int, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


@keras.utils.register_keras_serializable("pdm_tf")
class ImageToPatches(_PatchLayer):
    """Images (B, H, W, C) -> a grid of patches (B, H/P, W/P, P*P*C).

    UserError if H or W does not divide by P. The channels of a patch are ordered by row in it, column in it,
    colour, as `tf.image.extract_patches` has them. P = 1 is the identity.
    """

    def call(self, image: tf.Tensor) -> tf.Tensor:
        for side, size in zip(("height", "width"), image.shape[1:3]):
            if size is not None and size % self.patch_size:
                raise UserError(f"image {side} {size} does not divide by patch_size={self.patch_size}")
        window = [1, self.patch_size, self.patch_size, 1]

        # TensorFlow differentiates extract_patches through a sparse matrix, which is slow and which XLA
        # cannot compile. Patches that do not overlap only move values, so the gradient is the inverse move.
        @tf.custom_gradient
        def extract(values):
            patches = tf.image.extract_patches(values, window, window, [1, 1, 1, 1], "VALID")
            return patches, lambda upstream: _assemble(upstream, self.patch_size)

        return extract(image)


@keras.utils.register_keras_serializable("pdm_tf")
class PatchesToImage(_PatchLayer):
    """A grid of patches (B, H/P, W/P, P*P*C) -> images (B, H, W, C): the inverse of `ImageToPatches`."""

    def call(self, patches: tf.Tensor) -> tf.Tensor:
        return _assemble(patches, self.patch_size)


def _assemble(patches: tf.Tensor, patch_size: int) -> tf.Tensor:
    return tf.nn.depth_to_space(patches, patch_size) if patch_size > 1 else tf.identity(patches)
