"""The laws of t: their shape, their draws, and what is minimised under them."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.diffusion.schedules import cosine, linear
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS, logit_normal, timestep_drawer
from pdm_tf.randomness import draw_each, stream


def draws(drawer, count=20_000):
    key, signature = stream(0, "test"), tf.TensorSpec((), tf.int32)
    return tf.function(lambda: draw_each(key, tf.range(count), drawer, signature))().numpy()


def test_uniform_draws_are_those_of_a_stateless_uniform_number():
    """Runs of before there were laws go on as they began."""
    assert T_DISTRIBUTIONS["uniform"](DiffusionConfig(), linear(), 64) is None
    drawer, key = timestep_drawer(None, 30, 400), tf.constant([1, 2])
    assert drawer(key) == tf.random.stateless_uniform((), key, 30, 400, dtype=tf.int32)
    assert DiffusionConfig().t_distribution == "uniform"


@pytest.mark.parametrize("schedule", [linear(), cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize(("side", "scale"), [(256, 1), (64, 0.25), (1024, 4)])
def test_log_snr_is_normal_shifted_by_the_resolution_whatever_the_schedule(schedule, side, scale):
    d = DiffusionConfig(t_distribution="logit_normal", t_mean=-0.5, t_std=0.6)
    mass = T_DISTRIBUTIONS["logit_normal"](d, schedule, side)
    mass, log_snr = mass / mass.sum(), np.log(schedule.snr)
    mean = np.sum(mass * log_snr)
    assert mean == pytest.approx(2 * -0.5 - 2 * np.log(scale), abs=0.02)
    assert np.sqrt(np.sum(mass * (log_snr - mean) ** 2)) == pytest.approx(2 * 0.6, abs=0.02)


def test_draws_follow_the_law_and_stay_in_the_range():
    mass = logit_normal(linear(), -0.8, 0.8, 256)
    for t_start, t_stop in ((0, 1000), (396, 700)):
        t = draws(timestep_drawer(mass, t_start, t_stop))
        assert t.min() >= t_start and t.max() < t_stop
        expected = mass[t_start:t_stop] / mass[t_start:t_stop].sum()
        middle = t_start + np.arange(len(expected))
        # The Kolmogorov distance of 20,000 draws is below this in all but one of 10^6 tries.
        share = np.array([np.mean(t <= value) for value in middle])
        assert np.abs(share - np.cumsum(expected)).max() < 2.7 / np.sqrt(len(t))


def test_a_t_without_mass_is_never_drawn_and_far_tails_do_not_vanish():
    assert set(draws(timestep_drawer(np.array([0.0, 1, 0, 3, 0]), 0, 5), 500)) == {1, 3}
    mass = logit_normal(linear(), 10.0, 0.1, 256)  # its mean lies beyond the process
    assert np.isfinite(mass).all() and mass.argmax() == 0
