"""The Gaussian likelihoods against their integrals."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.likelihood import discretized_gaussian_log_likelihood, gaussian_kl, prior_kl
from pdm_tf.diffusion.schedules import linear

FULL = linear()
LAST = FULL.at(len(FULL) - 1, tf.float64)


def constant(value, shape=(1, 1, 1, 1)):
    return tf.constant(value, tf.float64, shape)


def test_gaussian_kl_equals_its_integral():
    mean_p, std_p, mean_q, std_q = 0.3, 0.7, -0.2, 1.1
    y = np.linspace(-12, 12, 200_001)
    log_p = -0.5 * ((y - mean_p) / std_p) ** 2 - np.log(std_p * np.sqrt(2 * np.pi))
    log_q = -0.5 * ((y - mean_q) / std_q) ** 2 - np.log(std_q * np.sqrt(2 * np.pi))
    integral = np.sum(np.exp(log_p) * (log_p - log_q)) * (y[1] - y[0])
    arguments = [constant(v) for v in (mean_p, 2 * np.log(std_p), mean_q, 2 * np.log(std_q))]
    assert gaussian_kl(*arguments).numpy().item() == pytest.approx(integral, rel=1e-9)


def test_prior_kl_equals_the_kl_of_the_last_marginal():
    alpha = FULL.alpha[-1]
    expected = 0.5 * (alpha * 0.8**2 + (1 - alpha) - 1 - np.log(1 - alpha))
    assert prior_kl(constant(0.8), LAST).numpy().item() == pytest.approx(expected, rel=1e-6)
    assert prior_kl(constant(0.8), LAST).numpy().item() < 1e-4


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.3), (-0.99, 0.01), (0.5, 3.0), (0.0, 0.002)])
def test_discretized_likelihood_sums_to_one_over_the_256_levels(mean, std):
    levels = tf.constant(np.arange(256) / 127.5 - 1.0)
    log_p = discretized_gaussian_log_likelihood(levels, constant(mean, ()), constant(2 * np.log(std), ()))
    assert float(tf.reduce_sum(tf.exp(log_p))) == pytest.approx(1.0, abs=1e-9)


def test_discretized_likelihood_equals_its_integral_even_far_in_the_tail():
    """At 5 deviations above the mean, where 1 - CDF has no digits left in float32."""
    std = 0.05
    x = tf.constant([[[[np.float32(64 / 127.5)]]]], tf.float32)
    mean = x - 5 * std
    y = np.linspace(5 - 1 / 255 / std, 5 + 1 / 255 / std, 20_001)
    density = np.exp(-0.5 * y**2) / np.sqrt(2 * np.pi)
    integral = np.sum((density[1:] + density[:-1]) / 2) * (y[1] - y[0])
    log_p = discretized_gaussian_log_likelihood(x, mean, tf.math.log(tf.fill([1, 1, 1, 1], std**2)))
    assert log_p.numpy().item() == pytest.approx(np.log(integral), abs=2e-3)
