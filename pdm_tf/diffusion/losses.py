"""The two objectives: L_simple for the network, L_vlb for the variance head (Eq. 3, Appendix C).

Images are (B, H, W, C). Each loss is one number an image, (B,), in their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from pdm_tf.diffusion.likelihood import step_kl
from pdm_tf.diffusion.process import learned_log_variance
from pdm_tf.diffusion.schedules import NoiseLevel

MIN_SNR_GAMMA = 5.0
LARGEST_V_WEIGHT = 0.05**-2


def _vlb(level: NoiseLevel) -> tf.Tensor:
    # Before the first step lies the data: the weight is that of a Gaussian decoder with the noise's variance.
    first = tf.math.is_inf(level.before.snr)
    return 0.5 * tf.where(first, level.snr, level.before.snr - level.snr)


# gamma_t of Eq. 3, the weight of ||x_theta - x||^2 at a noise level; b is `diffusion.loss_bias`.
WEIGHTINGS: dict[str, Callable[[NoiseLevel, float], tf.Tensor]] = {
    "sqrt_snr": lambda level, b: level.root_snr,  # sqrt(alpha / (1 - alpha)), the paper's choice
    "constant": lambda level, b: tf.ones_like(level.snr),
    "snr": lambda level, b: level.snr,  # the loss is then ||eps_theta - eps||^2
    "min_snr": lambda level, b: tf.minimum(level.snr, MIN_SNR_GAMMA),  # Min-SNR-5 (Hang et al., 2023)
    "vlb": lambda level, b: _vlb(level),  # (SNR_s - SNR_t) / 2, the weight in the ELBO, in nats
    "snr_plus_one": lambda level, b: level.snr + 1.0,  # the loss is then ||v_theta - v||^2
    "truncated_snr": lambda level, b: tf.maximum(level.snr, 1.0),  # (Salimans & Ho, 2022)
    "p2": lambda level, b: level.snr * level.noise,  # P2 of k = 1 and gamma = 1/2 (Choi et al., 2022)
    # The ELBO's, times sigmoid(b - log SNR): little noise counts less (Hoogeboom et al., 2024).
    "sigmoid": lambda level, b: _vlb(level) * math.exp(b) / (math.exp(b) + level.snr),
    # ||v_theta - v||^2 of the straight path z = tau x + (1 - tau) s eps, s = exp(-b / 2), which divides by
    # (1 - tau)^2, where 1 - tau is at least 0.05 (Li & He, 2025).
    "bounded_v": lambda level, b: tf.minimum(
        tf.square(1.0 + math.exp(-0.5 * b) * level.root_snr), LARGEST_V_WEIGHT
    ),
}


def simple_loss(
    x: tf.Tensor, pred_x: tf.Tensor, level: NoiseLevel, weighting: str, bias: float = 0.0
) -> tf.Tensor:
    """L_simple = gamma_t ||x_theta - x||^2, summed over H, W and C (Eq. 3); gamma_t of `WEIGHTINGS`."""
    squared_error = tf.reduce_sum(tf.square(pred_x - x), axis=[1, 2, 3])
    return tf.reshape(WEIGHTINGS[weighting](level, bias), [-1]) * squared_error


def vlb_loss(x: tf.Tensor, z: tf.Tensor, pred_x: tf.Tensor, u: tf.Tensor, level: NoiseLevel) -> tf.Tensor:
    """L_vlb = KL(q(z_s | z_t, x) || p_theta(z_s | z_t)), summed over H, W and C, in nats.

    Only the variance learns from it: the mean is taken at the gradient-stopped `pred_x`. The first step has
    no variance to learn (it returns x_theta itself) and its loss is 0.
    """
    kl = step_kl(x, z, tf.stop_gradient(pred_x), learned_log_variance(u, level), level)
    learns = tf.reshape(tf.cast(level.before.noise > 0, x.dtype), [-1])
    return learns * tf.reduce_sum(kl, axis=[1, 2, 3])
