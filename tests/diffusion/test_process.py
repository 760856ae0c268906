"""The process against simulation, Bayes' rule and numerical integrals."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.process import (
    diffuse,
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    learned_log_variance,
    posterior_log_variance,
    posterior_mean,
    prior_kl,
)
from pdm_tf.diffusion.schedules import linear_schedule, strided_timesteps

FULL = linear_schedule()
STRIDED = FULL.keep(strided_timesteps(1000, (90, 60, 60, 20, 20)))


def constant(value, shape=(1, 1, 1, 1)):
    return tf.constant(value, tf.float64, shape)


def test_marginals_equal_a_simulation_of_the_chain():
    """Eq. 1 applied t times gives Eq. 2, for a start that is not at the origin."""
    rng, x, count = np.random.default_rng(0), 0.7, 200_000
    beta = np.linspace(1e-4, 0.02, 1000)
    z = np.full(count, x)
    for t in range(1000):
        z = np.sqrt(1 - beta[t]) * z + np.sqrt(beta[t]) * rng.standard_normal(count)
        if t in (0, 9, 99, 399, 999):
            assert z.mean() == pytest.approx(FULL.signal_rate[t] * x, abs=4 / np.sqrt(count))
            assert z.std() == pytest.approx(FULL.noise_rate[t], rel=4 / np.sqrt(count))
            noised = diffuse(constant(x), constant(1.0), FULL, tf.constant([t]))
            assert float(noised) == pytest.approx(FULL.signal_rate[t] * x + FULL.noise_rate[t], rel=1e-12)


@pytest.mark.parametrize("schedule", [FULL, STRIDED], ids=["full", "strided"])
@pytest.mark.parametrize("place", [0.001, 0.01, 0.4, 0.999])
def test_posterior_equals_bayes_rule(schedule, place):
    """q(z_s | z_t, x) ~ q(z_t | z_s) q(z_s | x): a product of two Gaussians in z_s."""
    i, x, z = max(1, int(place * (len(schedule) - 1))), 0.3, -0.8
    alpha_t, alpha_s = schedule.alpha[i], schedule.alpha[i - 1]
    ratio = alpha_t / alpha_s
    precision = 1 / (1 - alpha_s) + ratio / (1 - ratio)
    mean = (np.sqrt(alpha_s) * x / (1 - alpha_s) + np.sqrt(ratio) * z / (1 - ratio)) / precision
    index = tf.constant([i])
    assert float(posterior_mean(constant(z), constant(x), schedule, index)) == pytest.approx(mean, rel=1e-9)
    log_variance = posterior_log_variance(schedule, index, tf.float64)
    assert float(tf.exp(log_variance)) == pytest.approx(1 / precision, rel=1e-9)


@pytest.mark.parametrize("schedule", [FULL, STRIDED, FULL.keep([999])])
def test_the_last_reverse_step_returns_x(schedule):
    mean = posterior_mean(constant(2.0), constant(-0.4), schedule, tf.constant([0]))
    assert float(mean) == pytest.approx(-0.4, abs=1e-9)


def test_float32_keeps_the_posterior_accurate_where_beta_is_small():
    z, x = tf.fill([1000, 1, 1, 1], 0.9), tf.fill([1000, 1, 1, 1], -0.5)
    index = tf.range(1000)
    exact = posterior_mean(tf.cast(z, tf.float64), tf.cast(x, tf.float64), FULL, index)
    np.testing.assert_allclose(posterior_mean(z, x, FULL, index), exact, atol=3e-7)


def test_learned_variance_lies_between_its_bounds():
    index = tf.constant([700, 700, 700])
    u = tf.constant([0.0, 1.0, 0.5], tf.float64, (3, 1, 1, 1))
    beta, tilde, middle = np.exp(np.ravel(learned_log_variance(u, FULL, index)))
    assert beta == pytest.approx(FULL.beta[700]) and tilde == pytest.approx(FULL.beta_tilde[700])
    assert middle == pytest.approx(np.sqrt(beta * tilde))


def test_gaussian_kl_equals_its_integral():
    mean_p, std_p, mean_q, std_q = 0.3, 0.7, -0.2, 1.1
    y = np.linspace(-12, 12, 200_001)
    log_p = -0.5 * ((y - mean_p) / std_p) ** 2 - np.log(std_p * np.sqrt(2 * np.pi))
    log_q = -0.5 * ((y - mean_q) / std_q) ** 2 - np.log(std_q * np.sqrt(2 * np.pi))
    integral = np.sum(np.exp(log_p) * (log_p - log_q)) * (y[1] - y[0])
    arguments = [constant(v) for v in (mean_p, 2 * np.log(std_p), mean_q, 2 * np.log(std_q))]
    assert float(gaussian_kl(*arguments)) == pytest.approx(integral, rel=1e-9)


def test_prior_kl_equals_the_kl_of_the_last_marginal():
    alpha = FULL.alpha[-1]
    expected = 0.5 * (alpha * 0.8**2 + (1 - alpha) - 1 - np.log(1 - alpha))
    assert float(prior_kl(constant(0.8), FULL)) == pytest.approx(expected, rel=1e-6)
    assert float(prior_kl(constant(0.8), FULL)) < 1e-4


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
    assert float(log_p) == pytest.approx(np.log(integral), abs=2e-3)
