"""Inpainting: the walk of resampling, known pixels, and the conditional distribution on an exact denoiser."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.schedules import linear, strided_timesteps
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.repaint import repaint, resampling_walk
from tests.sampling.mixture import Mixture, draw, noise_of, normal, unlabelled

FULL = linear()


def test_without_resampling_the_walk_goes_straight_down():
    np.testing.assert_array_equal(resampling_walk(5, 2, 1), [4, 3, 2, 1, 0, -1])


def test_the_walk_goes_over_each_stretch_as_often_as_asked():
    np.testing.assert_array_equal(resampling_walk(5, 2, 2), [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, -1])
    walk = resampling_walk(250, 10, 10)
    moves = np.diff(walk)
    assert set(np.abs(moves)) == {1} and walk[0] == 249 and walk[-1] == -1
    passes = np.bincount(walk[:-1][moves < 0], minlength=250)
    # The 24 stretches of 10 below the top one, and the data's own step, which is never gone up again.
    assert passes[0] == 1 and set(passes[1:241]) == {10} and set(passes[241:]) == {1}


@pytest.mark.parametrize("steps, jump_length", [(1, 10), (10, 10), (3, 1)])
def test_short_schedules_have_a_walk_too(steps, jump_length):
    walk = resampling_walk(steps, jump_length, 3)
    assert walk[0] == steps - 1 and walk[-1] == -1 and set(np.abs(np.diff(walk))) == {1}


RHO = 0.9
GAUSSIAN = Mixture([1.0], [[0.2, -0.1]], [[[0.25, 0.25 * RHO], [0.25 * RHO, 0.25]]])


def paint(resamplings, steps=50, count=2000, known=0.9):
    """Second coordinates painted beside a known first one."""
    shape = (count, 1, 1, 2)
    # A "pixel" of this image is one of the two coordinates.
    schedule = FULL.keep(strided_timesteps(1000, (steps,)))
    denoise = unlabelled(GAUSSIAN.denoiser(FULL))
    image, unknown = tf.constant([[[known, 0.0]]], tf.float64), tf.constant([[[False, True]]])
    run = tf.function(
        lambda z: repaint(
            denoise, schedule, z, noise_of(shape, 4), image, unknown,
            variance="small", jump_length=5, resamplings=resamplings,
        ).run()[-1]
    )  # fmt: skip
    x = run(normal(shape, 5)).numpy().reshape(count, 2)
    np.testing.assert_array_equal(x[:, 0], known)
    return x[:, 1]


def test_resampling_brings_the_painted_part_nearer_to_its_conditional_distribution():
    # Not all the way: each step down forgets that the known pixel is known, and only going over it again
    # makes up for that. That is RePaint, not a fault of this code: the data's own mean is -0.1.
    mean, std = -0.1 + RHO * (0.9 - 0.2), np.sqrt(0.25 * (1 - RHO**2))
    once, often = paint(1), paint(10)
    assert abs(often.mean() - mean) < 0.5 * abs(once.mean() - mean), (once.mean(), often.mean(), mean)
    assert abs(often.std() - std) < 0.5 * abs(once.std() - std), (once.std(), often.std(), std)


def test_with_everything_unknown_and_no_resampling_it_is_ancestral_sampling():
    shape, schedule = (6, 1, 1, 2), FULL.keep([0, 200, 600, 999])
    denoiser, z, noise = GAUSSIAN.denoiser(FULL, 0.3), normal(shape, 6), noise_of(shape, 2)
    last = len(schedule) - 1
    painted = repaint(
        unlabelled(denoiser), schedule, z, noise, tf.zeros((1, 1, 2), tf.float64), tf.constant([[[True]]]),
        variance="learned", jump_length=10, resamplings=1,
    ).run()[-1]  # fmt: skip
    plain = draw(ancestral, denoiser, schedule, z, lambda i: noise(2 * (last - i)))[-1]
    np.testing.assert_allclose(painted, plain, rtol=1e-12)
