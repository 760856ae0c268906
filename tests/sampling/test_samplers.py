"""The samplers on a denoiser that is exact: what they draw is known, and so is how fast they converge."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, linear_schedule, logsnr_timesteps, strided_timesteps
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.ddim import ddim
from pdm_tf.sampling.dpm_solver import dpm_solver
from tests.sampling.mixture import Mixture, noise_of, normal

FULL = linear_schedule()
DATA = Mixture(
    shares=[0.5, 0.3, 0.2],
    means=[[-0.8, 0.0], [0.8, 0.6], [0.5, -0.9]],
    covariances=[[[0.03, 0.02], [0.02, 0.03]], [[0.02, 0.0], [0.0, 0.005]], [[0.01, 0.0], [0.0, 0.01]]],
)
COUNT = 20_000
SHAPE = (COUNT, 1, 1, 2)

SAMPLERS = {
    "ancestral, small": lambda d, s, z, n: ancestral(d, s, z, n, "small"),
    "ancestral, large": lambda d, s, z, n: ancestral(d, s, z, n, "large"),
    "ancestral, learned": lambda d, s, z, n: ancestral(d, s, z, n, "learned"),
    "ddim": lambda d, s, z, n: ddim(d, s, z, n),
    "ddim, eta 0.5": lambda d, s, z, n: ddim(d, s, z, n, 0.5),
    "dpm_solver": lambda d, s, z, n: dpm_solver(d, s, z),
}


def sample(sampler, kept, seed=0, u=0.7):
    schedule, denoise = FULL.keep(kept), DATA.denoiser(FULL, u)
    run = tf.function(lambda z: sampler(denoise, schedule, z, noise_of(SHAPE, seed))[-1])
    return run(normal(SHAPE, 1, seed)).numpy().reshape(COUNT, 2)


def errors(x):
    """Distances of the samples' mean, covariance and mode shares from the data's."""
    return np.array([
        np.abs(x.mean(axis=0) - DATA.mean).max(),
        np.abs(np.cov(x.T) - DATA.covariance).max(),
        np.abs(DATA.shares_of(x) - DATA.shares).max(),
    ])  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samples_moments_and_mode_shares_converge_to_the_datas(name):
    # Of 20,000 true samples, the mean and shares are off by 0.005 and the covariance by 0.006, or so.
    steps = 500 if "large" in name or "learned" in name else 250
    many = errors(sample(SAMPLERS[name], strided_timesteps(1000, (steps,))))
    assert np.all(many < 0.02), many
    few = errors(sample(SAMPLERS[name], strided_timesteps(1000, (4,))))
    assert few.max() > 2 * many.max(), (few, many)


def test_each_mode_has_its_own_shape():
    x = sample(SAMPLERS["dpm_solver"], logsnr_timesteps(FULL, 100))
    nearest = np.argmin(np.linalg.norm(x[:, None] - DATA.means, axis=-1), axis=1)
    for mode, covariance in enumerate(DATA.covariances):
        np.testing.assert_allclose(np.cov(x[nearest == mode].T), covariance, atol=0.002)


# A process of 2,049 steps, evenly spaced in log-SNR between ends that all strided schedules share, so that
# every solver goes from the same z along the same ODE to the same noise level.
FINE = 2048
PROCESS = NoiseSchedule(
    np.arange(FINE + 1, dtype=np.int32), 1.0 / (1.0 + np.exp(-np.linspace(6, -6, FINE + 1)))
)


@functools.cache
def solve(solver, steps):
    schedule = PROCESS.keep(np.arange(0, FINE + 1, FINE // steps))
    denoise, z = DATA.denoiser(PROCESS), normal((500, 1, 1, 2), 2)
    return tf.function(lambda: solver(denoise, schedule, z))()[-1].numpy()


def ddim_ode(denoise, schedule, z):
    return ddim(denoise, schedule, z, noise=None)


@pytest.mark.parametrize("solver, order", [(ddim_ode, 1), (dpm_solver, 2)], ids=["ddim", "dpm_solver"])
def test_the_solvers_converge_at_their_orders(solver, order):
    truth = solve(dpm_solver, FINE)
    error = [np.sqrt(np.mean((solve(solver, n) - truth) ** 2)) for n in (32, 64, 128, 256)]
    measured = np.log2(np.divide(error[:-1], error[1:]))
    assert measured[-1] == pytest.approx(order, abs=0.2), (error, measured)
    assert np.all(measured > order - 0.35), (error, measured)


def test_the_multistep_solver_is_far_ahead_of_ddim_at_as_many_steps():
    truth = solve(dpm_solver, FINE)
    off = {s: np.sqrt(np.mean((solve(s, 32) - truth) ** 2)) for s in (ddim_ode, dpm_solver)}
    assert off[dpm_solver] < 0.3 * off[ddim_ode], off


def few(sampler, kept=(0, 300, 700, 999), u=0.0, dtype=tf.float64, **kwargs):
    schedule, shape = FULL.keep(list(kept)), (5, 1, 1, 2)
    z, noise = tf.cast(normal(shape, 3), dtype), noise_of(shape, 1)
    arguments = [] if sampler is dpm_solver else [lambda i: tf.cast(noise(i), dtype)]
    return sampler(DATA.denoiser(FULL, u), schedule, z, *arguments, **kwargs).numpy()


def test_eta_of_1_is_ancestral_sampling_with_the_small_variance():
    np.testing.assert_allclose(few(ddim, eta=1.0), few(ancestral, variance="small"), rtol=1e-9)


def test_the_learned_variance_lies_between_the_fixed_ones():
    np.testing.assert_array_equal(few(ancestral, u=1.0), few(ancestral, variance="small"))
    np.testing.assert_array_equal(few(ancestral, u=0.0), few(ancestral, variance="large"))
    assert np.abs(few(ancestral, u=0.5) - few(ancestral, u=0.0)).max() > 1e-3


def test_the_first_and_the_last_step_of_the_multistep_solver_are_ddims():
    np.testing.assert_allclose(few(dpm_solver, (0, 999)), few(ddim, (0, 999)), rtol=1e-9)
    assert np.abs(few(dpm_solver, (0, 400, 999)) - few(ddim, (0, 400, 999))).max() > 1e-3


@pytest.mark.parametrize("sampler", [ancestral, ddim, dpm_solver])
def test_one_step_returns_the_predicted_x(sampler):
    pred_x, _ = DATA.denoiser(FULL)(normal((5, 1, 1, 2), 3), tf.constant(999))
    np.testing.assert_array_equal(few(sampler, (999,))[-1], pred_x)


@pytest.mark.parametrize("sampler", [ancestral, ddim, dpm_solver])
def test_frames_show_the_way_and_end_at_the_image(sampler):
    x = few(sampler)[-1]
    np.testing.assert_array_equal(few(sampler, frames=2)[-1], x)
    frames = few(sampler, frames=4)
    np.testing.assert_array_equal(frames[-1], x)
    # The first frame is x_theta of the noise itself, and the second of two frames is the fourth of four.
    pred_x, _ = DATA.denoiser(FULL)(normal((5, 1, 1, 2), 3), tf.constant(999))
    np.testing.assert_array_equal(frames[0], pred_x)
    np.testing.assert_array_equal(few(sampler, frames=2)[0], frames[1])


def test_the_dtype_is_that_of_the_images():
    for sampler in (ancestral, ddim, dpm_solver):
        single = few(sampler, dtype=tf.float32)
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, few(sampler), atol=1e-5)
