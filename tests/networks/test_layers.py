"""The U-Net's blocks against independent forms of them."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.networks.layers import (
    ResBlock,
    SelfAttention,
    position_encoding,
    swish,
    timestep_features,
    upsample,
)
from tests.tiny_runs import randomized


def test_timestep_features():
    features = timestep_features(tf.constant([0, 7, 999]), 8).numpy()
    frequencies = np.exp(-np.log(10000) * np.arange(4) / 3)
    for row, t in zip(features, (0, 7, 999)):
        np.testing.assert_allclose(row, [*np.sin(t * frequencies), *np.cos(t * frequencies)], atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 6)])
def test_position_encoding_has_the_columns_half_first(height, width):
    encoding = position_encoding(height, width, 8).numpy()
    frequencies = np.exp(-np.log(10000) * np.arange(4) / 3)
    for row in range(height):
        for column in range(width):
            by_column = np.sin(column * frequencies * 64 / width)
            by_row = np.sin(row * frequencies * 64 / height)
            np.testing.assert_allclose(encoding[row, column], [*by_column, *by_row], atol=1e-5)


def test_upsample_equals_nearest_resize():
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 3, 5, 4)), tf.float32)
    np.testing.assert_array_equal(upsample(x), tf.image.resize(x, (6, 10), method="nearest"))


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-6), ("bfloat16", 2.0**-8)])
def test_swish_and_its_gradient_are_exact_but_for_rounding(dtype, rounding):
    x = tf.cast(tf.linspace(-20.0, 20.0, 401), dtype)
    dy = tf.cast(tf.random.stateless_normal((401,), (0, 0)), dtype)

    @tf.function
    def ours(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = swish(x)
        return y, tape.gradient(y, x, dy)

    y, dx = ours(x, dy)
    exact, d = (np.array(one, np.float64) for one in (x, dy))
    sigmoid = 1 / (1 + np.exp(-exact))
    assert y.dtype == dx.dtype == x.dtype
    np.testing.assert_allclose(np.array(y, np.float64), exact * sigmoid, rtol=3 * rounding, atol=1e-6)
    expected = d * sigmoid * (1 + exact * (1 - sigmoid))
    np.testing.assert_allclose(np.array(dx, np.float64), expected, rtol=rounding, atol=1e-5)


def test_new_blocks_leave_their_input_as_it_is():
    x, t, label = tf.random.normal((2, 4, 4, 32)), tf.random.normal((2, 16)), tf.random.normal((2, 8))
    np.testing.assert_array_equal(ResBlock(32, gated=True)(x, t, label), x)
    np.testing.assert_array_equal(SelfAttention(32)(x), x)


def test_block_equals_its_formula():
    x, t, label = tf.random.normal((2, 4, 4, 32)), tf.random.normal((2, 16)), tf.random.normal((2, 8))
    block = ResBlock(64, gated=True)
    block(x, t, label)
    randomized(block)

    def norm(h):
        grouped = tf.reshape(h, [2, 16, 32, h.shape[-1] // 32])
        mean, variance = tf.nn.moments(grouped, [1, 3], keepdims=True)
        return tf.reshape((grouped - mean) / tf.sqrt(variance + 1e-3), h.shape)

    def conv(layer, h):
        return tf.nn.conv2d(h, layer.kernel, 1, "SAME") + layer.bias

    h = conv(block.conv_in, tf.nn.silu(norm(x) * block.norm_in.gamma + block.norm_in.beta))
    scale_shift = (t @ block.scale_shift.kernel + block.scale_shift.bias)[:, None, None, :]
    h = conv(block.conv_out, tf.nn.silu(norm(h) * (1 + scale_shift[..., :64]) + scale_shift[..., 64:]))
    gate = tf.sigmoid(label @ block.gate.kernel + block.gate.bias + 2)[:, None, None, :]
    expected = h * gate + x @ block.shortcut.kernel + block.shortcut.bias
    np.testing.assert_allclose(block(x, t, label), expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_a_function_of_its_key():
    x, t = tf.random.normal((2, 4, 4, 32)), tf.random.normal((2, 16))
    block = ResBlock(32, dropout=0.5)
    block(x, t)
    randomized(block)
    first, again, other = (block(x, t, None, tf.constant(key)) for key in ([1, 2], [1, 2], [1, 3]))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(block(x, t), block(x, t))


def test_attention_equals_its_formula_head_by_head():
    x = tf.random.normal((2, 3, 4, 96))
    attention = SelfAttention(32)
    attention(x)
    randomized(attention)
    projected = attention.query_key_value(attention.norm(x)).numpy().reshape(2, 12, 3, 96)
    parts = []
    for head in range(3):
        query, key, value = (projected[:, :, part, 32 * head : 32 * head + 32] for part in range(3))
        logits = query @ key.transpose(0, 2, 1) / np.sqrt(32)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        parts.append(weights @ value)
    joined = np.concatenate(parts, -1).reshape(2, 3, 4, 96)
    expected = x + joined @ attention.project.kernel + attention.project.bias
    np.testing.assert_allclose(attention(x), expected, rtol=1e-4, atol=1e-5)
