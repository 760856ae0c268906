"""The norms against the stack's own layer and against their definitions."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.networks.norms import GroupNorm, TokenNorm
from pdm_tf.stack import GroupNormalization
from tests.tiny_runs import randomized


def inputs(shape=(3, 5, 4, 64), mean=2.0, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(mean, 1.5, shape), tf.float32)


def with_weights(layer, shape):
    layer.build(shape)
    return randomized(layer)


@pytest.mark.parametrize("shape", [(3, 5, 4, 64), (2, 7, 32)])
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


def test_a_large_mean_does_not_cancel_the_variance():
    x = inputs(mean=3000.0)
    exact = tf.reshape(tf.cast(x, tf.float64), [3, 20, 32, 2])
    mean, variance = tf.nn.moments(exact, [1, 3], keepdims=True)
    expected = tf.reshape((exact - mean) * tf.math.rsqrt(variance + 1e-3), x.shape)
    np.testing.assert_allclose(GroupNorm(32)(x), expected, atol=2e-3)


@pytest.mark.parametrize("centered", [False, True])
def test_token_norm_equals_its_definition(centered):
    x, scale, shift = inputs((2, 5, 8)), inputs((2, 8), 0.0), inputs((2, 8), 0.0, seed=1)
    layer = TokenNorm(centered, True)
    layer(x)
    randomized(layer)
    x64 = x.numpy().astype(float)
    x64 -= x64.mean(-1, keepdims=True) * centered
    expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6) * layer.gain
    expected = (expected + (layer.offset if centered else 0)) * (1 + scale[:, None]) + shift[:, None]
    np.testing.assert_allclose(layer(x, scale, shift), expected, rtol=1e-4, atol=1e-5)
    plain = TokenNorm(centered, False)
    plain(x)
    assert (len(layer.weights), len(plain.weights)) == (1 + centered, 0)
