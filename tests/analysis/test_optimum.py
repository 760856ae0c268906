"""x* of a data set: against a posterior by brute force, and the closed form of a Gaussian."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.analysis.optimum import Optimum
from pdm_tf.diffusion.schedules import linear

SCHEDULE = linear()


def dataset(images, labels, chunk) -> tf.data.Dataset:
    slices = (images.astype(np.float32), np.asarray(labels, np.int32))
    return tf.data.Dataset.from_tensor_slices(slices).batch(chunk)


def brute_force(z, t, images):
    """Softmax over all images at once, of the squared distances themselves."""
    alpha = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t]
    distances = np.sum((z[None] - np.sqrt(alpha) * images) ** 2, axis=(1, 2, 3))
    exponents = -distances / (2 * (1 - alpha))
    weights = np.exp(exponents - exponents.max())
    weights /= weights.sum()
    return np.einsum("n,nhwc->hwc", weights, images), 1 / np.sum(weights**2)


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    images = np.round(generator.uniform(-1, 1, (23, 4, 4, 3)) * 127.5) / 127.5
    return images.astype(np.float32).astype(np.float64), generator.integers(0, 2, 23)


@pytest.mark.parametrize("chunk, horizontal_flip", [(1, False), (5, True), (64, False)])
def test_it_is_the_posterior_s_mean_however_the_data_are_cut(data, chunk, horizontal_flip):
    images, labels = data
    denoiser = Optimum(dataset(images, labels, chunk), SCHEDULE, (4, 4, 3), 2, horizontal_flip)
    if horizontal_flip:
        images = np.concatenate([images, images[:, :, ::-1]])
        labels = np.concatenate([labels, labels])
    t = np.array([0, 300, 700, 999, 999, 999], np.int32)
    asked = np.array([2, 2, 2, 2, 0, 1], np.int32)  # the null label, and each class alone
    z = np.random.default_rng(1).normal(size=(6, 4, 4, 3)).astype(np.float32)
    found, counts = tf.function(denoiser.posterior)(tf.constant(z), tf.constant(t), tf.constant(asked))
    for n in range(6):
        mine = images if asked[n] == 2 else images[labels == asked[n]]
        mean, count = brute_force(z[n].astype(np.float64), t[n], mine)
        np.testing.assert_allclose(found[n], mean, atol=1e-6)
        np.testing.assert_allclose(counts[n], count, rtol=1e-6)
    assert counts[3] > 10 > 1.001 > counts[0]  # an average at the most noise, one image at the least
    x, u = denoiser(tf.constant(z), tf.constant(t), None)
    assert x.dtype == tf.float32 and not np.any(u)
    np.testing.assert_allclose(x[3], found[3], atol=1e-6)


def test_of_many_draws_of_a_gaussian_it_is_the_gaussian_s_own():
    mean, std = 0.3, 0.5
    draws = mean + std * np.random.default_rng(2).normal(size=(100_000, 1, 1, 1))
    denoiser = Optimum(dataset(draws, np.zeros(len(draws)), 9_999), SCHEDULE, (1, 1, 1))
    t, z = np.array([200, 500, 800], np.int32), np.array([0.7, -0.4, 1.0], np.float32)
    found, _ = denoiser(tf.constant(z.reshape(3, 1, 1, 1)), tf.constant(t), None)
    alpha = SCHEDULE.alpha[t]
    gain = np.sqrt(alpha) * std**2 / (alpha * std**2 + 1 - alpha)
    np.testing.assert_allclose(np.ravel(found), mean + gain * (z - np.sqrt(alpha) * mean), atol=0.01)
