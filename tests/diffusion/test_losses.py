"""The losses: weights, what minimises them, and where their gradients go."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.presets import network_settings, preset
from pdm_tf.diffusion.likelihood import gaussian_kl
from pdm_tf.diffusion.losses import MIN_SNR_GAMMA, WEIGHTINGS, simple_loss, vlb_loss
from pdm_tf.diffusion.predictions import predicted_x
from pdm_tf.diffusion.process import diffuse, posterior_mean
from pdm_tf.diffusion.schedules import SCHEDULES, linear

SCHEDULE = linear()


def at(*i):
    """The levels of steps i in float64."""
    return SCHEDULE.at(tf.constant(i), tf.float64)


def weights(name, schedule=SCHEDULE, bias=0.0):
    """gamma_t of every step, float64 (N,)."""
    return np.ravel(WEIGHTINGS[name](schedule.at(tf.range(len(schedule)), tf.float64), bias))


def test_gamma_is_the_square_root_of_the_snr():
    gamma, alpha = weights("sqrt_snr"), SCHEDULE.alpha
    np.testing.assert_allclose(gamma, np.sqrt(alpha / (1 - alpha)), rtol=1e-12)
    assert gamma[0] == pytest.approx(99.995, rel=1e-6)
    assert gamma[396] == pytest.approx(0.5, abs=2e-3)


def test_other_weightings():
    assert np.all(weights("constant") == 1)
    np.testing.assert_array_equal(weights("snr"), SCHEDULE.snr)
    np.testing.assert_array_equal(weights("min_snr"), np.minimum(SCHEDULE.snr, 5))
    assert MIN_SNR_GAMMA == 5
    snr = SCHEDULE.snr
    np.testing.assert_allclose(weights("truncated_snr"), np.maximum(snr, 1), rtol=1e-12)
    # DDPM's weight, SNR, over (1 + SNR)^gamma with P2's gamma of 1/2.
    np.testing.assert_allclose(weights("p2"), snr / np.sqrt(1 + snr), rtol=1e-9)


@pytest.mark.parametrize("prediction, weighting", [("v", "snr_plus_one"), ("eps", "snr")])
def test_a_weighting_is_the_loss_on_v_or_eps(prediction, weighting):
    rng = np.random.default_rng(1)
    x, eps, output = (tf.constant(rng.normal(size=(3, 2, 2, 1))) for _ in range(3))
    level = at(1, 300, 900)
    target = eps if prediction == "eps" else level.signal * eps - level.noise * x
    pred_x = predicted_x(prediction, output, diffuse(x, eps, level), level)
    loss = simple_loss(x, pred_x, level, weighting)
    np.testing.assert_allclose(loss, tf.reduce_sum((output - target) ** 2, [1, 2, 3]), rtol=1e-9)


@pytest.mark.parametrize("bias", [0.0, 2.0, -3.0])
def test_sigmoid_weighting_is_the_elbo_s_times_a_sigmoid(bias):
    damped = 1 / (1 + np.exp(np.log(SCHEDULE.snr) - bias))
    np.testing.assert_allclose(weights("sigmoid", bias=bias), weights("vlb") * damped, rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_bounded_v_weighting_is_the_loss_on_v_of_the_straight_path(scale):
    """z = tau x + (1 - tau) s eps has velocity x - s eps, and predicts (x_theta - z) / max(1 - tau, 0.05)."""
    rng = np.random.default_rng(1)
    x, eps, pred_x = (rng.normal(size=(4, 2, 2, 1)) for _ in range(3))
    steps = [0, 10, 300, 900]
    root_snr = np.sqrt(SCHEDULE.snr[steps])[:, None, None, None]
    tau = scale * root_snr / (1 + scale * root_snr)  # where tau / ((1 - tau) s) is sqrt(SNR)
    z = tau * x + (1 - tau) * scale * eps
    on_v = (((pred_x - z) - (x - z)) / np.maximum(1 - tau, 0.05)) ** 2
    loss = simple_loss(x, tf.constant(pred_x), at(*steps), "bounded_v", -2 * np.log(scale))
    np.testing.assert_allclose(loss, on_v.sum((1, 2, 3)), rtol=1e-9)
    assert weights("bounded_v").max() == pytest.approx(400) and weights("bounded_v").min() >= 1


@pytest.mark.parametrize("dataset", ["avatars256", "avatars1024"])
@pytest.mark.parametrize("network", ["unet", "vit"])
def test_presets_of_shifted_processes_weight_each_t_as_one_of_64_pixels_does(dataset, network):
    config = preset(dataset)
    config = config.replace(network_settings(network, config))
    d, side = config.diffusion, max(config.data.image_shape)
    own, of_64 = (SCHEDULES[d.schedule](d, pixels) for pixels in (side, 64))
    # The preset's bias has two digits.
    np.testing.assert_allclose(
        weights(d.loss_weighting, own, d.loss_bias), weights(d.loss_weighting, of_64), rtol=0.01
    )


@pytest.mark.parametrize("schedule", [SCHEDULE, SCHEDULE.respaced([0, 40, 600])], ids=["full", "strided"])
def test_the_vlb_weight_is_half_the_fall_of_the_snr_and_the_first_step_a_decoder_of_the_noises_width(
    schedule,
):
    expected = 0.5 * np.concatenate([schedule.snr[:1], -np.diff(schedule.snr)])
    np.testing.assert_allclose(weights("vlb", schedule), expected, rtol=1e-9)


def test_vlb_weighting_is_the_kl_of_the_posteriors_at_the_true_variance():
    """(SNR_s - SNR_t)/2 ||x_theta - x||^2 = KL(N(mu(x), b_tilde) || N(mu(x_theta), b_tilde))."""
    rng = np.random.default_rng(2)
    x, pred_x, z = (tf.constant(rng.normal(size=(3, 2, 2, 1))) for _ in range(3))
    level = at(1, 300, 999)
    variance = tf.reshape(tf.constant(SCHEDULE.log_beta_tilde[[1, 300, 999]]), [3, 1, 1, 1])
    means = [posterior_mean(z, value, level) for value in (x, pred_x)]
    kl = tf.reduce_sum(gaussian_kl(means[0], variance, means[1], variance), [1, 2, 3])
    np.testing.assert_allclose(simple_loss(x, pred_x, level, "vlb"), kl, rtol=1e-6)


@pytest.mark.parametrize("prediction, t", [("x", 5), ("eps", 396), ("v", 900)])
def test_the_minimiser_for_gaussian_data_is_the_known_linear_denoiser(prediction, t):
    """For x ~ N(m, s^2), E[x | z] = m + s^2 sqrt(alpha) / (alpha s^2 + 1 - alpha) (z - sqrt(alpha) m).

    A denoiser whose output is a * z + b is fitted by Newton's method (the loss is quadratic in a and b) on
    the exact expectation, by Gauss-Hermite quadrature over x and eps.
    """
    m, s, alpha = 0.4, 0.6, SCHEDULE.alpha[t]
    nodes, shares = np.polynomial.hermite_e.hermegauss(8)
    x, eps = (grid.reshape(-1, 1, 1, 1) for grid in np.meshgrid(m + s * nodes, nodes, indexing="ij"))
    shares = np.outer(shares, shares).ravel() / shares.sum() ** 2
    level = at(*[t] * len(shares))
    z = diffuse(tf.constant(x), tf.constant(eps), level)

    parameters = tf.Variable([0.0, 0.0], dtype=tf.float64)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            output = parameters[0] * z + parameters[1]
            pred_x = predicted_x(prediction, output, z, level)
            loss = tf.reduce_sum(shares * simple_loss(tf.constant(x), pred_x, level, "sqrt_snr"))
        gradient = inner.gradient(loss, parameters)
    hessian = outer.jacobian(gradient, parameters)
    a, b = parameters.numpy() - np.linalg.solve(hessian, gradient)

    probe = np.array([-1.3, 0.0, 0.9]).reshape(-1, 1, 1, 1)
    fitted = predicted_x(prediction, tf.constant(a * probe + b), tf.constant(probe), at(t))
    gain = s**2 * np.sqrt(alpha) / (alpha * s**2 + 1 - alpha)
    np.testing.assert_allclose(fitted, m + gain * (probe - np.sqrt(alpha) * m), rtol=1e-6, atol=1e-8)


def test_vlb_is_zero_for_the_true_posterior_and_at_the_first_step():
    rng = np.random.default_rng(3)
    x, z = (tf.constant(rng.normal(size=(2, 2, 2, 1))) for _ in range(2))
    at_truth = vlb_loss(x, z, x, tf.ones_like(x), at(500, 1))
    np.testing.assert_allclose(at_truth, 0.0, atol=1e-12)
    first = vlb_loss(x, z, x + 1.0, tf.zeros_like(x), at(0, 0))
    np.testing.assert_array_equal(first, 0.0)


def test_vlb_teaches_the_variance_the_mean_squared_error_of_the_mean():
    """The sigma^2 that minimises L_vlb is b_tilde + E[(mu(x) - mu(x_theta))^2]."""
    t = 50
    x, z = (tf.constant(value, tf.float64, (1, 1, 1, 1)) for value in (0.2, 0.1))
    # An error of the mean whose square is half of beta - b_tilde, so that the optimum is inside.
    scale = SCHEDULE.beta[t] * np.sqrt(SCHEDULE.alpha_before[t]) / (1 - SCHEDULE.alpha[t])
    error = np.sqrt((SCHEDULE.beta[t] - SCHEDULE.beta_tilde[t]) / 2)
    best = SCHEDULE.beta_tilde[t] + error**2
    log_beta = np.log(SCHEDULE.beta[t])
    span = SCHEDULE.log_beta_tilde[t] - log_beta
    u = tf.Variable([[[[(np.log(best) - log_beta) / span]]]], dtype=tf.float64)
    with tf.GradientTape() as tape:
        loss = vlb_loss(x, z, x + error / scale, u, at(t))
    assert 0 < u.numpy().item() < 1
    assert tape.gradient(loss, u).numpy().item() == pytest.approx(0.0, abs=1e-9)
