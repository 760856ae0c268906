"""The process against simulation, Bayes' rule and numerical integrals."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.process import diffuse, learned_log_variance, posterior_mean
from pdm_tf.diffusion.schedules import linear, strided_timesteps

FULL = linear()
STRIDED = FULL.respaced(strided_timesteps(1000, (90, 60, 60, 20, 20)))


def at(schedule, *i):
    return schedule.at(tf.constant(i), tf.float64)


def constant(value, shape=(1, 1, 1, 1)):
    return tf.constant(value, tf.float64, shape)


def test_marginals_equal_a_simulation_of_the_chain():
    """Eq. 1 applied t times gives Eq. 2, for a start that is not at the origin."""
    rng, x, count = np.random.default_rng(0), 0.7, 50_000
    beta = np.linspace(1e-4, 0.02, 1000)
    signal, noise = np.sqrt(FULL.alpha), np.sqrt(1 - FULL.alpha)
    z = np.full(count, x)
    for t in range(1000):
        z = np.sqrt(1 - beta[t]) * z + np.sqrt(beta[t]) * rng.standard_normal(count)
        if t in (0, 9, 99, 399, 999):
            assert z.mean() == pytest.approx(signal[t] * x, abs=4 / np.sqrt(count))
            assert z.std() == pytest.approx(noise[t], rel=4 / np.sqrt(count))
            noised = diffuse(constant(x), constant(1.0), at(FULL, t))
            assert noised.numpy().item() == pytest.approx(signal[t] * x + noise[t], rel=1e-12)


@pytest.mark.parametrize("schedule", [FULL, STRIDED], ids=["full", "strided"])
@pytest.mark.parametrize("place", [0.001, 0.4, 0.999])
def test_posterior_equals_bayes_rule(schedule, place):
    """q(z_s | z_t, x) ~ q(z_t | z_s) q(z_s | x): a product of two Gaussians in z_s."""
    i, x, z = max(1, int(place * (len(schedule) - 1))), 0.3, -0.8
    alpha_t, alpha_s = schedule.alpha[i], schedule.alpha[i - 1]
    ratio = alpha_t / alpha_s
    precision = 1 / (1 - alpha_s) + ratio / (1 - ratio)
    mean = (np.sqrt(alpha_s) * x / (1 - alpha_s) + np.sqrt(ratio) * z / (1 - ratio)) / precision
    level = at(schedule, i)
    found = posterior_mean(constant(z), constant(x), level)
    assert found.numpy().item() == pytest.approx(mean, rel=1e-9)
    assert tf.exp(level.log_beta_tilde).numpy().item() == pytest.approx(1 / precision, rel=1e-9)


@pytest.mark.parametrize("schedule", [FULL, STRIDED, FULL.respaced([999])])
def test_the_last_reverse_step_returns_x(schedule):
    mean = posterior_mean(constant(2.0), constant(-0.4), at(schedule, 0))
    assert mean.numpy().item() == pytest.approx(-0.4, abs=1e-9)


def test_float32_keeps_the_posterior_accurate_where_beta_is_small():
    z, x = tf.fill([1000, 1, 1, 1], 0.9), tf.fill([1000, 1, 1, 1], -0.5)
    exact = posterior_mean(tf.cast(z, tf.float64), tf.cast(x, tf.float64), at(FULL, *range(1000)))
    np.testing.assert_allclose(posterior_mean(z, x, FULL.at(tf.range(1000))), exact, atol=3e-7)


def test_learned_variance_lies_between_its_bounds():
    u = tf.constant([0.0, 1.0, 0.5], tf.float64, (3, 1, 1, 1))
    beta, tilde, middle = np.exp(np.ravel(learned_log_variance(u, at(FULL, 700, 700, 700))))
    assert beta == pytest.approx(FULL.beta[700]) and tilde == pytest.approx(FULL.beta_tilde[700])
    assert middle == pytest.approx(np.sqrt(beta * tilde))
