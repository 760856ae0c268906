"""The two objectives: L_simple for the network, L_vlb for the variance head (Eq. 3, Appendix C).

Images are (B, H, W, C). Each loss is one number an image, (B,), in their dtype.
"""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.diffusion.likelihood import step_kl
from pdm_tf.diffusion.process import learned_log_variance
from pdm_tf.diffusion.schedules import NoiseLevel

MIN_SNR_GAMMA = 5.0


def _vlb(level: NoiseLevel) -> tf.Tensor:
    # Before the first step lies the data: the weight is that of a Gaussian decoder with the noise's variance.
    first = tf.math.is_inf(level.before.snr)
    return 0.5 * tf.where(first, level.snr, level.before.snr - level.snr)


# gamma_t of Eq. 3, the weight of ||x_theta - x||^2 at a noise level.
WEIGHTINGS = {
    "sqrt_snr": lambda level: level.root_snr,  # sqrt(alpha / (1 - alpha)), the paper's choice
    "constant": lambda level: tf.ones_like(level.snr),
    "snr": lambda level: level.snr,  # the loss is then ||eps_theta - eps||^2
    "min_snr": lambda level: tf.minimum(level.snr, MIN_SNR_GAMMA),  # Min-SNR-5 (Hang et al., 2023)
    "vlb": _vlb,  # (SNR_s - SNR_t) / 2, the weight in the ELBO, in nats
}


def simple_loss(x: tf.Tensor, pred_x: tf.Tensor, level: NoiseLevel, weighting: str) -> tf.Tensor:
    """L_simple = gamma_t ||x_theta - x||^2, summed over H, W and C (Eq. 3); gamma_t of `WEIGHTINGS`."""
    squared_error = tf.reduce_sum(tf.square(pred_x - x), axis=[1, 2, 3])
    return tf.reshape(WEIGHTINGS[weighting](level), [-1]) * squared_error


def vlb_loss(x: tf.Tensor, z: tf.Tensor, pred_x: tf.Tensor, u: tf.Tensor, level: NoiseLevel) -> tf.Tensor:
    """L_vlb = KL(q(z_s | z_t, x) || p_theta(z_s | z_t)), summed over H, W and C, in nats.

    Only the variance learns from it: the mean is taken at the gradient-stopped `pred_x`. The first step has
    no variance to learn (it returns x_theta itself) and its loss is 0.
    """
    kl = step_kl(x, z, tf.stop_gradient(pred_x), learned_log_variance(u, level), level)
    learns = tf.reshape(tf.cast(level.before.noise > 0, x.dtype), [-1])
    return learns * tf.reduce_sum(kl, axis=[1, 2, 3])
