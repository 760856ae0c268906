"""GroupNorm against the stack's own layer and against its definition."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.networks.group_norm import GroupNorm
from pdm_tf.stack import GroupNormalization
from tests.tiny_runs import randomized


def inputs(shape=(3, 5, 4, 64), mean=2.0, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(mean, 1.5, shape), tf.float32)


def with_weights(layer, shape):
    layer.build(shape)
    return randomized(layer)


@pytest.mark.parametrize("shape", [(3, 5, 4, 64), (2, 7, 32), (1, 1, 1, 96), (2, 16, 16, 128)])
@pytest.mark.parametrize("affine", [True, False])
def test_values_and_gradients_equal_the_stacks_own(shape, affine):
    layers = [
        with_weights(cls(32, center=affine, scale=affine), shape) for cls in (GroupNorm, GroupNormalization)
    ]
    assert [w.shape for w in layers[0].weights] == [w.shape for w in layers[1].weights]
    x, probe = inputs(shape), inputs(shape, 0.0, seed=2)
    results = []
    for layer in layers:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y * probe)
        results.append((y, *tape.gradient(loss, [x, *layer.trainable_variables])))
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_scale_and_shift_follow_the_normalization():
    x, scale, shift = inputs(), inputs((3, 64), 0.0, 3), inputs((3, 64), 0.0, 4)
    layer = with_weights(GroupNorm(32), x.shape)
    expected = layer(x) * (1 + scale[:, None, None, :]) + shift[:, None, None, :]
    np.testing.assert_allclose(layer(x, scale=scale, shift=shift), expected, rtol=1e-5, atol=1e-5)


def test_a_large_mean_does_not_cancel_the_variance():
    x = inputs(mean=3000.0)
    exact = tf.reshape(tf.cast(x, tf.float64), [3, 20, 32, 2])
    mean, variance = tf.nn.moments(exact, [1, 3], keepdims=True)
    expected = tf.reshape((exact - mean) * tf.math.rsqrt(variance + 1e-3), x.shape)
    np.testing.assert_allclose(GroupNorm(32)(x), expected, atol=2e-3)


def test_bfloat16_inputs_have_float32_statistics():
    x = inputs(mean=50.0)
    layer = GroupNorm(32, dtype="mixed_bfloat16")
    y = layer(tf.cast(x, tf.bfloat16))
    assert y.dtype == tf.bfloat16
    exact = GroupNorm(32)(tf.cast(tf.cast(x, tf.bfloat16), tf.float32))
    np.testing.assert_allclose(tf.cast(y, tf.float32), exact, rtol=1e-2, atol=1e-3)


def test_keras_own_layer_and_the_one_of_tensorflow_addons_give_the_same_numbers():
    """On a stack without tensorflow-addons Keras' own layer is the base."""
    pytest.importorskip("tensorflow_addons", reason="this stack has no tensorflow-addons to compare with")
    program = """
import sys
sys.modules["tensorflow_addons"] = None
import tensorflow as tf
from pdm_tf.networks.group_norm import GroupNorm
assert GroupNorm.__mro__[1] is tf.keras.layers.GroupNormalization
print(float(tf.reduce_sum(GroupNorm(2)(tf.reshape(tf.range(32.0), [1, 2, 4, 4])) ** 3)))
"""
    with_keras = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    program = program.replace('sys.modules["tensorflow_addons"] = None', "")
    program = program.replace("tf.keras", "__import__('tensorflow_addons')")
    with_addons = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(with_keras.stdout) == pytest.approx(float(with_addons.stdout), rel=1e-5)
    assert "TensorFlow Addons" not in with_addons.stderr
