"""The forward process, its posterior, and the Gaussian likelihoods they are compared with.

Images are (B, H, W, C); `i` is int32, () or (B,), the index of a step of `schedule`. Everything is
computed in the dtype of the images.
"""

from __future__ import annotations

import math

import tensorflow as tf

from pdm_tf.diffusion.schedules import NoiseSchedule, at


def diffuse(x: tf.Tensor, eps: tf.Tensor, schedule: NoiseSchedule, i: tf.Tensor) -> tf.Tensor:
    """A sample of q(z_t | x) from standard normal eps: sqrt(alpha) x + sqrt(1 - alpha) eps (Eq. 2)."""
    return at(schedule.signal_rate, i, x.dtype) * x + at(schedule.noise_rate, i, x.dtype) * eps


def posterior_mean(z: tf.Tensor, x: tf.Tensor, schedule: NoiseSchedule, i: tf.Tensor) -> tf.Tensor:
    """Mean of q(z_s | z_t, x): (z - beta (z - sqrt(alpha) x) / (1 - alpha)) / sqrt(1 - beta).

    s is the kept step before t. At the first step, where z_s is the data, it is x.
    """
    noise = (z - at(schedule.signal_rate, i, z.dtype) * x) * at(
        schedule.beta / (1.0 - schedule.alpha), i, z.dtype
    )
    return (z - noise) * at((1.0 - schedule.beta) ** -0.5, i, z.dtype)


def posterior_log_variance(schedule: NoiseSchedule, i: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """log b_tilde, the log variance of q(z_s | z_t, x)."""
    return at(schedule.log_beta_tilde, i, dtype)


def learned_log_variance(u: tf.Tensor, schedule: NoiseSchedule, i: tf.Tensor) -> tf.Tensor:
    """log sigma^2 = u log b_tilde + (1 - u) log beta, u in [0, 1] from the variance head (Appendix C)."""
    return u * at(schedule.log_beta_tilde, i, u.dtype) + (1.0 - u) * at(schedule.log_beta, i, u.dtype)


def gaussian_kl(
    mean_p: tf.Tensor, log_var_p: tf.Tensor, mean_q: tf.Tensor, log_var_q: tf.Tensor
) -> tf.Tensor:
    """KL(p || q) of two diagonal Gaussians, elementwise, in nats."""
    return 0.5 * (
        log_var_q
        - log_var_p
        - 1.0
        + tf.exp(log_var_p - log_var_q)
        + tf.square(mean_p - mean_q) * tf.exp(-log_var_q)
    )


def prior_kl(x: tf.Tensor, schedule: NoiseSchedule) -> tf.Tensor:
    """KL(q(z_T | x) || N(0, I)), elementwise, in nats: what the ELBO pays for starting from pure noise."""
    last = tf.constant(len(schedule) - 1)
    mean = at(schedule.signal_rate, last, x.dtype) * x
    log_variance = 2.0 * tf.math.log(at(schedule.noise_rate, last, x.dtype))
    return gaussian_kl(mean, log_variance, tf.zeros_like(x), tf.zeros_like(x))


def discretized_gaussian_log_likelihood(x: tf.Tensor, mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """log p(x) of 8-bit data under a Gaussian rounded to the 256 levels of [-1, 1], elementwise, in nats.

    The decoder of the last reverse step. Levels are 2/255 apart; the first and last take the tails.
    """
    inverse_std = tf.exp(-0.5 * log_variance)
    above = (x - mean + 1.0 / 255.0) * inverse_std
    below = (x - mean - 1.0 / 255.0) * inverse_std
    # Mirrored onto the lower tail, where the difference of two CDFs does not cancel against 1.
    flip = tf.where(above + below > 0.0, -tf.ones_like(x), tf.ones_like(x))
    inner = tf.abs(_normal_cdf(flip * above) - _normal_cdf(flip * below))
    probability = tf.where(x < -0.999, _normal_cdf(above), tf.where(x > 0.999, _normal_cdf(-below), inner))
    return tf.math.log(tf.maximum(probability, 1e-12))


def _normal_cdf(value: tf.Tensor) -> tf.Tensor:
    return 0.5 * tf.math.erfc(-value / math.sqrt(2.0))
