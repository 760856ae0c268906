"""Patching: exact round trips, the paper's order of channels, errors."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.patching import ImageToPatches, PatchesToImage
from pdm_tf.stack import keras

SIZES = [(p, h * p, w * p, c) for p in (1, 2, 8) for h, w in ((2, 5), (4, 1)) for c in (1, 3)]


def images(height, width, channels, batch=2):
    return np.random.default_rng(0).normal(size=(batch, height, width, channels)).astype(np.float32)


def appendix_b(x: np.ndarray, p: int) -> np.ndarray:
    """`convert_image_to_patches` of Appendix B in NumPy: channels-first in and out."""
    batch, channels, height, width = x.shape
    x = x.transpose(0, 2, 3, 1).reshape(batch, height, width // p, channels * p)
    x = x.transpose(0, 2, 1, 3).reshape(batch, width // p, height // p, channels * p * p)
    return x.transpose(0, 3, 2, 1)


@pytest.mark.parametrize(("p", "height", "width", "channels"), SIZES)
def test_patches_are_those_of_appendix_b_and_the_round_trip_is_exact(p, height, width, channels):
    x = images(height, width, channels)
    patches = ImageToPatches(p)(x)
    np.testing.assert_array_equal(patches, appendix_b(x.transpose(0, 3, 1, 2), p).transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(PatchesToImage(p)(patches), x)


@pytest.mark.parametrize("layer", [ImageToPatches(2), PatchesToImage(2)])
def test_gradient_is_the_inverse_move(layer):
    x = tf.constant(images(4, 6, 4))
    inverse = PatchesToImage(2) if isinstance(layer, ImageToPatches) else ImageToPatches(2)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        weights = tf.reshape(tf.range(tf.size(y), dtype=tf.float32), tf.shape(y))
        loss = tf.reduce_sum(y * weights)
    np.testing.assert_array_equal(tape.gradient(loss, x), inverse(weights))


def test_layers_in_a_saved_keras_model(tmp_path):
    inputs = keras.Input((8, 12, 3))
    model = keras.Model(inputs, PatchesToImage(4)(ImageToPatches(4)(inputs)))
    assert model.output_shape == (None, 8, 12, 3)
    model.save(tmp_path / "model.keras")
    x = images(8, 12, 3)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), x)


@pytest.mark.parametrize(("height", "width", "side"), [(9, 8, "height 9"), (8, 10, "width 10")])
def test_sizes_that_do_not_divide_are_refused(height, width, side):
    with pytest.raises(UserError, match=f"image {side} does not divide by patch_size=4"):
        ImageToPatches(4)(images(height, width, 3))
