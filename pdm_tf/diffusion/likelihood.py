"""The Gaussian likelihoods that a bound on log p(x) is made of, and its terms. Elementwise, in nats.

-log p(x) <= KL(q(z_T | x) || N(0, I)) + sum_{t > 0} KL(q(z_s | z_t, x) || p_theta(z_s | z_t))
             - log p_theta(x | z_0),
each in expectation over z_t ~ q(z_t | x), s being the step before t.
"""

from __future__ import annotations

import math

import tensorflow as tf

from pdm_tf.diffusion.process import posterior_mean
from pdm_tf.diffusion.schedules import Level, NoiseLevel


def gaussian_kl(
    mean_p: tf.Tensor, log_var_p: tf.Tensor, mean_q: tf.Tensor, log_var_q: tf.Tensor
) -> tf.Tensor:
    """KL(p || q) of two diagonal Gaussians."""
    return 0.5 * (
        log_var_q
        - log_var_p
        - 1.0
        + tf.exp(log_var_p - log_var_q)
        + tf.square(mean_p - mean_q) * tf.exp(-log_var_q)
    )


def prior_kl(x: tf.Tensor, last: Level) -> tf.Tensor:
    """KL(q(z_T | x) || N(0, I)): the price of starting from pure noise; `last` is the level of T."""
    log_variance = 2.0 * tf.math.log(last.noise)
    return gaussian_kl(last.signal * x, log_variance, tf.zeros_like(x), tf.zeros_like(x))


def step_kl(
    x: tf.Tensor, z: tf.Tensor, pred_x: tf.Tensor, log_variance: tf.Tensor, level: NoiseLevel
) -> tf.Tensor:
    """KL(q(z_s | z_t, x) || p_theta(z_s | z_t)), p_theta = N(posterior_mean(z, pred_x), e^log_variance)."""
    return gaussian_kl(
        posterior_mean(z, x, level), level.log_beta_tilde, posterior_mean(z, pred_x, level), log_variance
    )


def bound_term(
    x: tf.Tensor, z: tf.Tensor, pred_x: tf.Tensor, log_variance: tf.Tensor, level: NoiseLevel
) -> tf.Tensor:
    """The term of t: `step_kl`, and at the first step -log p_theta(x | z_0), the discretized decoder's."""
    later = level.before.noise > 0
    decoder = tf.cond(  # its CDFs are dear, and of one t in a thousand
        tf.reduce_all(later),
        lambda: tf.zeros_like(x),
        lambda: -discretized_gaussian_log_likelihood(x, pred_x, log_variance),
    )
    return tf.where(later, step_kl(x, z, pred_x, log_variance, level), decoder)


def discretized_gaussian_log_likelihood(x: tf.Tensor, mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """log p(x) of 8-bit data under a Gaussian rounded to the 256 levels of [-1, 1].

    The decoder of the last reverse step. Levels are 2/255 apart; the first and last take the tails. Finite
    however far x lies from the mean.
    """
    inverse_std = tf.exp(-0.5 * log_variance)
    above = (x - mean + 1.0 / 255.0) * inverse_std
    below = (x - mean - 1.0 / 255.0) * inverse_std
    # Mirrored onto the lower tail, where the difference of two CDFs does not cancel against 1.
    flip = tf.where(above + below > 0.0, -tf.ones_like(x), tf.ones_like(x))
    log_upper = _log_normal_cdf(tf.maximum(flip * above, flip * below))
    log_lower = _log_normal_cdf(tf.minimum(flip * above, flip * below))
    inner = log_upper + tf.math.log(-tf.math.expm1(log_lower - log_upper))
    return tf.where(x < -0.999, _log_normal_cdf(above), tf.where(x > 0.999, _log_normal_cdf(-below), inner))


def _log_normal_cdf(value: tf.Tensor) -> tf.Tensor:
    """log Phi(value), by the tail's series to 1e-6 where Phi leaves the range of float32."""
    far = value < -10.0
    near, tail = tf.maximum(value, -10.0), tf.minimum(value, -10.0)
    inverse = 1.0 / tf.square(tail)
    series = -inverse * (1.0 - 3.0 * inverse * (1.0 - 5.0 * inverse))
    log_tail = -0.5 * (tf.square(tail) + math.log(2.0 * math.pi)) - tf.math.log(-tail)
    return tf.where(
        far,
        log_tail + tf.math.log1p(series),
        tf.math.log(0.5 * tf.math.erfc(-near / math.sqrt(2.0))),
    )
