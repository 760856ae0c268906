"""The samplers on a denoiser that is exact: what they draw is known, and how fast they converge."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, linear, strided_timesteps
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.ddim import ddim
from pdm_tf.sampling.dpm_solver import dpm_solver
from pdm_tf.sampling.heun import heun
from pdm_tf.sampling.ipndm import ipndm
from pdm_tf.sampling.loop import sampling_loop
from pdm_tf.sampling.sampler import SAMPLERS
from pdm_tf.sampling.unipc import _weights, unipc
from tests.sampling.mixture import Mixture, draw, noise_of, normal, unlabelled

FULL = linear()
DATA = Mixture(
    shares=[0.5, 0.3, 0.2],
    means=[[-0.8, 0.0], [0.8, 0.6], [0.5, -0.9]],
    covariances=[[[0.03, 0.02], [0.02, 0.03]], [[0.02, 0.0], [0.0, 0.005]], [[0.01, 0.0], [0.0, 0.01]]],
)
COUNT = 10_000
SHAPE = (COUNT, 1, 1, 2)
ALL = SAMPLERS.values()

WITH_OPTIONS = {
    "ancestral, large": (ancestral, {"variance": "large"}),
    "ancestral, learned": (ancestral, {"variance": "learned"}),
    "ddim, eta 0.5": (ddim, {"eta": 0.5}),
    "heun": (heun, {}),
}


def sample(sampler, kept, seed=0, u=0.7, **options):
    schedule, denoiser = FULL.respaced(kept), DATA.denoiser(FULL, u)
    run = tf.function(lambda z: draw(sampler, denoiser, schedule, z, noise_of(SHAPE, seed), **options))
    return run(normal(SHAPE, 1, seed)).numpy().reshape(COUNT, 2)


def errors(x):
    """Distances of the samples' mean, covariance and mode shares from the data's."""
    return np.array([
        np.abs(x.mean(axis=0) - DATA.mean).max(),
        np.abs(np.cov(x.T) - DATA.covariance).max(),
        np.abs(DATA.shares_of(x) - DATA.shares).max(),
    ])  # fmt: skip


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_the_samples_moments_and_mode_shares_converge_to_the_datas(name):
    # Of 10,000 true samples, the mean and shares are off by 0.007 and the covariance by 0.008, or so.
    sampler, options = WITH_OPTIONS[name]
    steps = 500 if "large" in name or "learned" in name else 250
    many = errors(sample(sampler, strided_timesteps(1000, (steps,)), **options))
    assert np.all(many < 0.02), many
    few = errors(sample(sampler, strided_timesteps(1000, (4,)), **options))
    assert few.max() > 2 * many.max(), (few, many)


# Processes of `steps` steps between the same two ends, so that every solver goes from the same z along the
# same ODE to the same noise level, whose x_theta is the image. Not respaced timesteps of one process, which
# are whole numbers: rounding to them would spoil the high orders.
LEAST, MOST = np.exp(-3.0), np.exp(3.0)  # noise over signal


def process_of(rho):
    return NoiseSchedule(np.arange(len(rho), dtype=np.int32), 1.0 / (1.0 + rho**2))


def equal_in_log_snr(steps):
    return process_of(np.exp(np.linspace(np.log(LEAST), np.log(MOST), steps + 1)))


def equal_in_rho(steps):
    return process_of(np.linspace(LEAST, MOST, steps + 1))


@functools.cache
def solve(solver, process, steps, **options):
    schedule, z = process(steps), normal((100, 1, 1, 2), 2)
    return tf.function(lambda: draw(solver, DATA.denoiser(schedule), schedule, z, **options))().numpy()


def error(solver, process, steps, **options):
    """Root mean square distance from the ODE's solution."""
    truth = solve(ipndm, equal_in_rho, 8192)
    return np.sqrt(np.mean((solve(solver, process, steps, **options) - truth) ** 2))


ORDERS = {
    "ddim": (ddim, {}, equal_in_log_snr, (64, 128, 256), 1),
    "heun": (heun, {}, equal_in_log_snr, (64, 128, 256), 2),
    "dpm_solver": (dpm_solver, {}, equal_in_log_snr, (64, 128, 256), 2),
    # The corrector adds one to the order p of the predictor. Of p = 3 the first and last steps are of lower
    # order, but their errors are much smaller here than those of the steps in between.
    "unipc, order 2": (unipc, {"order": 2}, equal_in_log_snr, (64, 128, 256), 3),
    "unipc, order 3": (unipc, {"order": 3}, equal_in_log_snr, (64, 128, 256), 4),
    # Its weights are those of equal steps in rho, fine enough for the modes' widths from 1024 on. The
    # first ones, of lower order, err little, since eps is all but constant where there is so much noise.
    "ipndm": (ipndm, {}, equal_in_log_snr, (64, 128, 256), 2),
    "ipndm, equal steps in rho": (ipndm, {}, equal_in_rho, (1024, 2048), 4),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_solvers_converge_at_their_orders(name):
    solver, options, process, steps, order = ORDERS[name]
    off = [error(solver, process, n, **options) for n in steps]
    measured = np.log2(np.divide(off[:-1], off[1:]))
    print(f"{name}: errors {np.array(off)}, orders {measured}")
    assert measured[-1] == pytest.approx(order, abs=0.2), (off, measured)
    assert np.all(measured > order - 0.35), (off, measured)


def test_two_solvers_of_different_kinds_agree_on_the_truth():
    # Far below the smallest error that an order is measured at.
    assert error(unipc, equal_in_log_snr, 1024, order=3) < 1e-7


def few(sampler, timesteps=(0, 300, 700, 999), u=0.0, dtype=tf.float64, **options):
    schedule, shape = FULL.respaced(list(timesteps)), (5, 1, 1, 2)
    z, noise = tf.cast(normal(shape, 3), dtype), noise_of(shape, 1)
    in_dtype = lambda i: tf.cast(noise(i), dtype)  # noqa: E731
    return draw(sampler, DATA.denoiser(FULL, u), schedule, z, in_dtype, **options).numpy()


def test_eta_of_1_is_ancestral_sampling_with_the_small_variance():
    np.testing.assert_allclose(few(ddim, eta=1.0), few(ancestral, variance="small"), rtol=1e-9)


def test_a_step_of_heun_is_the_trapezoidal_rule_on_eps():
    """By hand, in y = z / sqrt(alpha) and rho; the step to the data is the Euler step."""
    denoiser, z = DATA.denoiser(FULL), normal((5, 1, 1, 2), 3)
    signal, noise = np.sqrt(FULL.alpha), np.sqrt(1 - FULL.alpha)
    rho = noise / signal

    def eps(z, t):
        return (z - signal[t] * denoiser(z, tf.constant(t), None)[0]) / noise[t]

    def there(slope):
        return signal[400] * (z / signal[999] + (rho[400] - rho[999]) * slope)

    first = eps(z, 999)
    mean = (first + eps(there(first), 400)) / 2
    expected, _ = denoiser(there(mean), tf.constant(400), None)
    np.testing.assert_allclose(few(heun, (400, 999)), expected, rtol=1e-9)


@pytest.mark.parametrize("sampler", ALL)
def test_one_step_returns_the_predicted_x(sampler):
    pred_x, _ = unlabelled(DATA.denoiser(FULL))(normal((5, 1, 1, 2), 3), tf.constant(999))
    np.testing.assert_array_equal(few(sampler, (999,)), pred_x)


@pytest.mark.parametrize("sampler", ALL)
def test_the_network_runs_as_often_as_is_said(sampler):
    """Counted in eager steps; the first x_theta is that of the noise itself."""
    denoiser, schedule, shape = DATA.denoiser(FULL), FULL.respaced([0, 300, 700, 999]), (5, 1, 1, 2)
    step_function = sampler(unlabelled(denoiser), schedule)
    loop = sampling_loop(step_function, schedule, noise_of(shape, 1))
    state = loop.begin(normal(shape, 3))
    frames = []
    for k in range(loop.num_steps):
        x, state = loop.step(tf.constant(k), *state)
        frames.append(x)
    assert len(denoiser.rows) == step_function.passes * (len(schedule) - 1) + 1
    np.testing.assert_allclose(frames[-1], few(sampler), rtol=1e-9)
    np.testing.assert_array_equal(frames[0], denoiser(normal(shape, 3), tf.constant(999), None)[0])


# Steps of all sizes, h from 0.2 to 3.2.
UNEVEN = FULL.respaced([0, 1, 4, 20, 90, 200, 230, 600, 999])


def polynomial_path(schedule, power):
    """x = lambda^power, and the z that it leads along: z = sigma F, F' = exp(lambda) x, at each step."""
    time = schedule.half_log_snr
    antiderivative = np.exp(time)
    for k in range(1, power + 1):
        antiderivative = time**k * np.exp(time) - k * antiderivative
    return time**power, np.sqrt(1 - schedule.alpha) * antiderivative


@pytest.mark.parametrize(
    "order, part, degree", [(2, "corrector", 2), (3, "predictor", 2), (3, "corrector", 3)]
)
def test_unipc_follows_a_polynomial_x_exactly(order, part, degree):
    table, last = _weights(UNEVEN, order), len(UNEVEN) - 1
    exact = 0
    for power in range(degree + 2):
        x, z = polynomial_path(UNEVEN, power)
        off = []
        for i in range(2, last - 2):  # where enough steps came before and more than one is to come
            nodes = x[i : i + order + 1]
            if part == "corrector":
                found, wanted = table[i, 1 : order + 3] @ [z[i + 1], *nodes], z[i]
            else:
                found, wanted = table[i, order + 3 :] @ [z[i], *nodes[:order]], z[i - 1]
            off.append(abs(found / wanted - 1))
        exact += max(off) < 1e-10
        assert power <= degree or min(off) > 1e-6, off
    assert exact == degree + 1
