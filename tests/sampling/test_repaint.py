"""Inpainting: the indices of resampling, known pixels, and an exact denoiser's conditional distribution."""

import numpy as np
import tensorflow as tf

from pdm_tf.diffusion.schedules import linear, strided_timesteps
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.repaint import repaint, resampling_indices
from tests.sampling.mixture import Mixture, draw, noise_of, normal, unlabelled

FULL = linear()


def test_each_jump_is_gone_over_as_often_as_asked():
    np.testing.assert_array_equal(resampling_indices(5, 2, 1), [4, 3, 2, 1, 0, -1])
    np.testing.assert_array_equal(resampling_indices(5, 2, 2), [4, 3, 2, 3, 4, 3, 2, 1, 0, 1, 2, 1, 0, -1])
    indices = resampling_indices(250, 10, 10)
    steps = np.diff(indices)
    assert set(np.abs(steps)) == {1} and indices[0] == 249 and indices[-1] == -1
    passes = np.bincount(indices[:-1][steps < 0], minlength=250)
    # The 24 jumps of 10 below the top one, and the data's own step, which is never gone up again.
    assert passes[0] == 1 and set(passes[1:241]) == {10} and set(passes[241:]) == {1}


RHO = 0.9
GAUSSIAN = Mixture([1.0], [[0.2, -0.1]], [[[0.25, 0.25 * RHO], [0.25 * RHO, 0.25]]])


def inpaint(schedule, z, noise, known, unknown, variance, jump_length, resamplings, u=0.0):
    denoise = unlabelled(GAUSSIAN.denoiser(FULL, u))
    visited = resampling_indices(len(schedule), jump_length, resamplings)
    loop = repaint(denoise, schedule, noise, known, tf.constant(unknown), visited, variance)
    return loop.run(loop.begin(z), 0, loop.num_steps)[0]


def second_coordinates(resamplings, steps=50, count=2000, known=0.9):
    """Second coordinates inpainted beside a known first one: a "pixel" of this image is a coordinate."""
    shape = (count, 1, 1, 2)
    schedule = FULL.respaced(strided_timesteps(1000, (steps,)))
    image = tf.constant([[[known, 0.0]]], tf.float64)
    options = image, [[[False, True]]], "small", 5, resamplings
    run = tf.function(lambda z: inpaint(schedule, z, noise_of(shape, 4), *options))
    x = run(normal(shape, 5)).numpy().reshape(count, 2)
    np.testing.assert_array_equal(x[:, 0], known)
    return x[:, 1]


def test_resampling_brings_the_inpainted_part_nearer_to_its_conditional_distribution():
    # Not all the way: each step down forgets that the known pixel is known, and only going over it again
    # makes up for that. That is RePaint, not a fault of this code: the data's own mean is -0.1.
    mean, std = -0.1 + RHO * (0.9 - 0.2), np.sqrt(0.25 * (1 - RHO**2))
    once, often = second_coordinates(1), second_coordinates(10)
    assert abs(often.mean() - mean) < 0.5 * abs(once.mean() - mean), (once.mean(), often.mean(), mean)
    assert abs(often.std() - std) < 0.5 * abs(once.std() - std), (once.std(), often.std(), std)


def test_with_everything_unknown_and_no_resampling_it_is_ancestral_sampling():
    shape, schedule = (6, 1, 1, 2), FULL.respaced([0, 200, 600, 999])
    z, noise = normal(shape, 6), noise_of(shape, 2)
    last = len(schedule) - 1
    known = tf.zeros((1, 1, 2), tf.float64)
    inpainted = inpaint(schedule, z, noise, known, [[[True]]], "learned", 10, 1, u=0.3)
    plain = draw(ancestral, GAUSSIAN.denoiser(FULL, 0.3), schedule, z, lambda i: noise(2 * (last - i)))
    np.testing.assert_allclose(inpainted, plain, rtol=1e-12)
