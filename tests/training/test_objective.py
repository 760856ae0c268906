"""What training minimises: the weighted loss in expectation under the timestep distribution."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.denoiser import SplitDenoiser
from pdm_tf.diffusion.losses import WEIGHTINGS
from pdm_tf.diffusion.schedules import linear
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS
from pdm_tf.randomness import stream
from pdm_tf.stack import keras
from pdm_tf.training.objective import Objective
from tests.fakes import FakeDenoiser
from tests.training.conftest import (
    TINY,
    assert_accumulation_equals_the_whole_batch,
    assert_two_devices_equal_one,
    batch_of,
)

TWO = {**TINY, "patch_switch_t": 400, "channel_multipliers": (1, 1)}
SCHEDULE, SWITCH = linear(20, 0.01, 0.4), 7
KEY = stream(0, "t")


def fake(x=0.0, t_start=0, t_stop=20, side=4):
    """A denoiser that answers one number."""
    return FakeDenoiser(
        lambda z, t, labels: tf.fill(tf.shape(z), x), SCHEDULE, (side, side, 1), 0, t_start, t_stop
    )


def halves(small=0.0, large=0.0):
    return SplitDenoiser([fake(small, 0, SWITCH), fake(large, SWITCH, 20)])


def training_losses(objective, count, side=4):
    """Losses of a batch of ones."""

    @tf.function
    def losses():
        groups = objective.training_examples(KEY, batch_of(tf.ones((count, side, side, 1))))
        return objective.training_losses(groups, None)

    return {name: values.numpy() for name, values in losses().items()}


def test_the_mean_loss_is_the_expectation_under_the_timestep_distribution():
    d = DiffusionConfig(t_distribution="logit_normal", loss_weighting="bounded_v", t_mean=0.0)
    losses = training_losses(Objective(fake(0.0, 3, 18, side=8), d), 20_000, side=8)["simple_loss"]
    mass = T_DISTRIBUTIONS["logit_normal"](d, SCHEDULE, 8)[3:18]
    gamma = np.ravel(WEIGHTINGS["bounded_v"](SCHEDULE.at(tf.range(3, 18)), 0.0))
    expected = np.sum(mass / mass.sum() * gamma) * 64
    error = np.std(losses) / np.sqrt(len(losses))
    assert abs(losses.mean() - expected) < 5 * error
    # The distribution matters here: a uniform one gives another number.
    assert abs(expected - gamma.mean() * 64) > 20 * error


@pytest.mark.parametrize(("share", "count", "large"), [
    (0.25, 8, [3, 7]), (0.01, 4, [3]), (0.99, 3, [1, 2]),
])  # fmt: skip
def test_a_batch_is_shared_out_evenly_between_two_patch_sizes(share, count, large):
    t = training_losses(Objective(halves(), DiffusionConfig(large_share=share)), count)["t"]
    assert np.flatnonzero(t >= SWITCH).tolist() == large


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("share", [0.125, 0.5])
def test_the_mean_of_two_patch_sizes_is_that_under_the_distribution_whatever_the_share(distribution, share):
    d = DiffusionConfig(t_distribution=distribution, large_share=share, loss_weighting="constant", t_mean=0.0)
    losses = training_losses(Objective(halves(0.5, -1.0), d), 4000)
    mass = T_DISTRIBUTIONS[distribution](d, SCHEDULE, 4)
    mass = np.ones(20) if mass is None else mass
    error = np.where(np.arange(20) < SWITCH, 0.5, 2.0) ** 2 * 16
    expected = np.sum(mass / mass.sum() * error)
    # Each interval's error is one number here, so nothing is left to chance.
    np.testing.assert_allclose(losses["simple_loss"].mean(), expected, rtol=1e-4)
    assert abs(expected - np.mean(error)) > 0.1 or distribution == "uniform"


def test_timesteps_of_each_patch_size_follow_the_distribution_within_its_interval():
    d = DiffusionConfig(t_distribution="logit_normal", t_mean=0.0)
    t = training_losses(Objective(halves(), d), 4000)["t"]
    mass = T_DISTRIBUTIONS["logit_normal"](d, SCHEDULE, 4)
    for inside in (np.arange(20) < SWITCH, np.arange(20) >= SWITCH):
        expected = mass * inside / np.sum(mass * inside)
        found = np.bincount(t[inside[t]], minlength=20) / np.sum(inside[t])
        np.testing.assert_allclose(found, expected, atol=5 * 0.5 / np.sqrt(2000))


def test_held_out_losses_have_the_t_of_a_network_of_one_patch_size():
    batch, d = batch_of(tf.ones((16, 4, 4, 1))), DiffusionConfig()
    two, one = (Objective(denoiser, d).held_out_examples(KEY, batch) for denoiser in (halves(), fake()))
    (training,) = Objective(fake(), d).training_examples(KEY, batch)
    for other in (two, training):
        np.testing.assert_array_equal(other.t, one.t)
        np.testing.assert_array_equal(other.eps, one.eps)


@pytest.fixture
def two_sizes(make_model):
    def make(**changes):
        network = {**TWO, **changes.pop("network", {})}
        return make_model(network=network, optimizer=keras.optimizers.legacy.SGD(1e-4), **changes)

    return make


def test_losses_of_two_patch_sizes_are_those_of_the_whole_denoiser_weighted(two_sizes, images):
    objective = two_sizes(large_share=0.25).objective
    groups = objective.training_examples(KEY, batch_of(images[:8]))
    assert [len(group.places) for group in groups] == [6, 2]
    for group, weight in zip(groups, (0.4 / 0.75, 0.6 / 0.25)):
        found, whole = objective.losses(group), group._replace(denoiser=objective.denoiser, weight=1.0)
        for name, values in objective.losses(whole).items():
            factor = 1 if name in ("mse", "t") else weight
            np.testing.assert_allclose(found[name], values.numpy() * factor, rtol=1e-3)


def test_accumulation_equals_the_whole_batch(two_sizes, images):
    assert_accumulation_equals_the_whole_batch(two_sizes(), images[:8], 2)


@pytest.mark.slow
def test_two_devices_equal_one(images):
    to_one = tf.distribute.ReductionToOneDevice()
    assert_two_devices_equal_one(TWO, lambda: keras.optimizers.legacy.SGD(1e-4), images, 2, to_one)
