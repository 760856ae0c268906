"""The forward process and its posterior (Eqs. 1 and 2).

Images are (B, H, W, C); everything is computed in their dtype, at a `NoiseLevel` of one t or of one for each.
"""

from __future__ import annotations

import tensorflow as tf

from pdm_tf.diffusion.schedules import Level, NoiseLevel


def diffuse(x: tf.Tensor, eps: tf.Tensor, level: Level) -> tf.Tensor:
    """A sample of q(z_t | x) from standard normal eps: sqrt(alpha) x + sqrt(1 - alpha) eps (Eq. 2)."""
    return level.signal * x + level.noise * eps


def posterior_mean(z: tf.Tensor, x: tf.Tensor, level: NoiseLevel) -> tf.Tensor:
    """Mean of q(z_s | z_t, x): (z - beta (z - sqrt(alpha) x) / (1 - alpha)) / sqrt(1 - beta).

    s is the timestep of the schedule before t. At the first step, where z_s is the data, it is x.
    """
    return (z - (z - level.signal * x) * level.mean_residual) * level.mean_scale


def learned_log_variance(u: tf.Tensor, level: NoiseLevel) -> tf.Tensor:
    """log sigma^2 = u log b_tilde + (1 - u) log beta, u in [0, 1] from the variance head (Appendix C)."""
    return u * level.log_beta_tilde + (1.0 - u) * level.log_beta


# log sigma^2 of p_theta(z_s | z_t), (u, level) -> tensor. "small" is right for data that are one point,
# "large" for data that are standard normal (Ho et al., 2020); of a decoder, the first step, it is log
# b_tilde of the second (DDPM).
VARIANCES = {
    "learned": learned_log_variance,
    "small": lambda u, level: level.log_beta_tilde,
    "large": lambda u, level: tf.where(level.before.noise > 0, level.log_beta, level.log_beta_tilde),
}
